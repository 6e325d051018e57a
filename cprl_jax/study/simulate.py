"""Observers that are formulas: they go through a study as a browser does, by its HTTP interface.

A modelled observer says "different" with the probability

    guess + (1 - guess - lapse) * Phi(log(distance / threshold) / spread)

where the threshold is that of the pair's fidelity times a factor of the observer's own, and Phi the normal
distribution. With two alternatives the guess rate is one half, and the answer the perturbed image.
"""

import concurrent.futures
import hashlib
import http.client
import json
import math
import random
import statistics
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

from cprl_jax.runtime.errors import UserError
from cprl_jax.study import records
from cprl_jax.study.catalogue import Catalogue
from cprl_jax.study.settings import Settings

NAME = "simulated "  # of participants, and a number
PAGES = {  # what they send for the pages that are no trials
    "consent": {"agreed": True},
    "instructions": {},
    "display": {
        "dark_seen": 4,
        "bright_seen": 4,
        "frame_ms": 16.7,
        "pixel_ratio": 1.0,
        "zoom": 1.0,
        "screen_width": 1920,
        "screen_height": 1080,
        "browser": "simulated",
        "system": "simulated",
        "mobile": False,
        "verified": "sha256",
    },
    "break": {},
    "comments": {"comment": "simulated"},
}


class Observers(NamedTuple):
    """What modelled observers are like.

    Attributes:
      thresholds: fidelity -> the distance at which half of what can be seen is seen.
      spread: of the psychometric function, in natural logarithms of the distance.
      between: standard deviation of the logarithm of the observers' own factors.
      guess: how often "different" is said where nothing can be seen (0.5 with two alternatives).
      lapse: how often it is not said where everybody sees it.
    """

    thresholds: Mapping[str, float]
    spread: float = 0.5
    between: float = 0.2
    guess: float = 0.05
    lapse: float = 0.02


def median_thresholds(catalogue: Catalogue) -> dict[str, float]:
    """fidelity -> the median distance of its pairs."""
    distances: dict[str, list[float]] = {}
    for pair in catalogue.pairs:
        for candidate in pair.candidates:
            distances.setdefault(candidate["fidelity"], []).append(candidate["distance"])
    return {fidelity: statistics.median(values) for fidelity, values in distances.items()}


class Client:
    """A connection to a study's server that tries again, as the page does, when there is no answer or it is refused for
    now: at most `patience` seconds long."""

    def __init__(self, url: str, *, patience: float = 60.0):
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError:  # no such port, or half an IPv6 address
            parts, port = urllib.parse.SplitResult("", "", "", "", ""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--url={url}: write http://HOST:PORT/")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, port, timeout=30)
        self._path, self.patience, self.token = parts.path.rstrip("/"), patience, ""

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and content of the reply; raises UserError if none comes in time."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body)
        deadline, trouble = time.monotonic() + self.patience, "no answer"
        while True:
            try:
                self._connection.request(method, self._path + path, content, headers)
                reply = self._connection.getresponse()
                text = reply.read()
                if reply.status not in (429, 500, 502, 503, 504):
                    return reply.status, text
                trouble = f"{reply.status}: {text[:200].decode(errors='replace')}"
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                trouble = str(error) or type(error).__name__
            if time.monotonic() > deadline:
                raise UserError(f"{method} {path} was not answered for {self.patience:g} seconds ({trouble})")
            time.sleep(random.uniform(0.05, 0.3))

    def get(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a reply; raises UserError for a refusal."""
        status, text = self.ask(method, path, body)
        if status != 200:
            raise UserError(f"{method} {path} was refused ({status}: {text[:300].decode(errors='replace')})")
        return json.loads(text)

    def close(self) -> None:
        self._connection.close()


def run(
    url: str,
    catalogue: Catalogue,
    settings: Settings,
    model: Observers,
    *,
    observers: int,
    seed: int = 0,
    accelerated: bool = False,
    at_once: int = 100,
) -> list[str]:
    """Plays `observers` sessions to their end, many at once; returns their completion codes.

    Args:
      url: of the server.
      catalogue, settings: of its study.
      model: the observers, with a threshold for each fidelity of the study.
      seed: of their answers.
      accelerated: without waiting for what a person would look at.
      at_once: at most so many at the same time.

    Raises:
      UserError: the server is gone for a minute, or refuses.
    """
    world = _World(catalogue, settings, model, accelerated)
    with concurrent.futures.ThreadPoolExecutor(min(observers, at_once) or 1) as pool:
        return list(pool.map(lambda number: world.observe(url, seed, number), range(observers)))


class _World:
    """What all modelled observers share."""

    def __init__(self, catalogue: Catalogue, settings: Settings, model: Observers, accelerated: bool):
        self.settings, self.model, self.accelerated, self.study = settings, model, accelerated, catalogue.study
        self.originals = {picture.original for picture in catalogue.pictures}
        self.pairs = {(pair.original, pair.perturbed): pair.candidates[0] for pair in catalogue.pairs}
        self._verified: set[str] = set()
        self._lock = threading.Lock()

    def observe(self, url: str, seed: int, number: int) -> str:
        rng = random.Random(f"{seed} {number}")
        factor = math.exp(rng.gauss(0, self.model.between))
        client = Client(url)
        client.token = random.SystemRandom().randbytes(32).hex()
        begun = {"token": client.token, "participant": f"{NAME}{number}"}
        state = client.get("POST", "/api/sessions", begun)
        if state["study"]["id"] != self.study:
            client.get("DELETE", "/api/session")
            raise UserError(f"--url={url}: this server has another study; give its --run and --study, and its settings")
        for step in state["steps"][state["done"] :]:
            record = (
                PAGES.get(step["kind"]) if step["kind"] != "trial" else self._trial(client, state, step, rng, factor)
            )
            client.get("POST", "/api/steps", {"step": step["id"], "record": record, "events": []})
        code = client.get("GET", "/api/session")["code"]
        client.close()
        return code

    def _trial(self, client: Client, state: Any, step: Any, rng: random.Random, factor: float) -> dict[str, Any]:
        for image in step["stimuli"]:
            self._verify(client, state["images"][image])
        settings = self.settings
        answers, (first, second) = settings.answers, step["stimuli"][-2:]
        seen = rng.random() < self._probability(first, second, factor)
        if settings.trial == "2afc":
            where = 1 if first in self.originals else 0
            answer = answers[where if seen else 1 - where]
        else:
            answer = answers[1 if seen else 0]
        rt_ms = 1000 * rng.lognormvariate(-0.3, 0.4)
        durations = [ms for _, ms in settings.schedule]
        seconds = (rt_ms if settings.trial == "flicker" else sum(durations) + rt_ms) / 1000
        if settings.trial == "flicker":
            durations = 2 * [settings.flicker_ms] if rt_ms > settings.flicker_ms else []
        if not self.accelerated:
            time.sleep(seconds)
        record = {column.name: PAGES["display"].get(column.name) for column in records.fields("trial")}
        return record | {
            "answer": answer,
            "rt_ms": round(rt_ms, 1),
            "input": "key",
            "durations_ms": durations,
            "dropped_frames": 0,
            "shown": 1,
            "hidden": False,
            "fullscreen": True,
            "pinch_zoom": 1.0,
            "width": 1920,
            "height": 1080,
            "started_ms": round(1000 * time.time()),
        }

    def _probability(self, first: str, second: str, factor: float) -> float:
        """Of seeing the difference of two images."""
        model = self.model
        guess = 0.5 if self.settings.trial == "2afc" else model.guess
        candidate = self.pairs.get((first, second)) or self.pairs.get((second, first))
        if first == second:
            return guess
        if candidate is None:  # plainly different, or training
            return 1 - model.lapse
        threshold = factor * model.thresholds[candidate["fidelity"]]
        if candidate["distance"] <= 0:
            return guess
        z = math.log(candidate["distance"] / threshold) / model.spread
        return guess + (1 - guess - model.lapse) * statistics.NormalDist().cdf(z)

    def _verify(self, client: Client, image: Mapping[str, Any]) -> None:
        """That the server hands out the image that it announces; once for each."""
        with self._lock:
            if image["id"] in self._verified:
                return
            self._verified.add(image["id"])
        status, content = client.ask("GET", f"/api/images/{image['id']}")
        if status != 200 or hashlib.sha256(content).hexdigest() != image["sha256"] or len(content) != image["bytes"]:
            raise UserError(f"the server's image {image['id']} is not the one that it announces")
