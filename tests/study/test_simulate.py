"""Modelled observers answer by their formula, through the real interface; kills of the server lose nothing."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from cprl_jax.runtime.errors import UserError
from cprl_jax.study import export, host, server, simulate
from cprl_jax.study.analysis import answers, exclusion
from cprl_jax.study.simulate import Observers

from .conftest import record_of, token

CERTAIN = Observers({"chebyshev": 5 / 255, "ssim": 20 / 255}, spread=1e-6, between=0.0, guess=0.0, lapse=0.0)


@pytest.mark.parametrize("trial", ["yesno", "flicker", "2afc"])
def test_observers_who_never_err_answer_by_their_threshold(make_store, trial):
    store = make_store(trial=trial, trials=18)
    with host.in_background(server.create_app(store, admin="x")) as url:
        codes = simulate.run(url, store.catalogue, store.settings, CERTAIN, observers=3, accelerated=True)
    assert len(set(codes)) == 3 and "" not in codes
    distances = {row["pair"]: row["distance"] / CERTAIN.thresholds[row["fidelity"]] for row in store.rows("pairs")}
    answers = store.rows("answers")
    assert len([row for row in answers if row["role"] == "test"]) == 3 * 18
    if trial == "2afc":  # who sees nothing guesses
        assert all(row["correct"] for row in answers if not row["pair"] or distances[row["pair"]] > 1)
        return
    for row in answers:
        if row["pair"]:
            assert row["answer"] == ("different" if distances[row["pair"]] > 1 else "same")
        else:
            assert row["correct"]


def test_the_psychometric_function_is_the_one_that_is_written_down(store):
    model = Observers({"chebyshev": 0.02, "ssim": 0.03}, spread=0.7, guess=0.1, lapse=0.04)
    world = simulate._World(store.catalogue, store.settings, model, True)
    for pair in store.catalogue.pairs:
        (row,) = pair.candidates
        z = math.log(row["distance"] / (1.5 * model.thresholds[row["fidelity"]])) / 0.7
        expected = 0.1 + 0.86 * norm.cdf(z)
        assert world._probability(pair.original, pair.perturbed, 1.5) == pytest.approx(expected, abs=1e-12)
        assert world._probability(pair.perturbed, pair.original, 1.5) == pytest.approx(expected, abs=1e-12)
        assert world._probability(pair.original, pair.original, 1.5) == 0.1


@pytest.mark.parametrize("trial", ["yesno", "flicker", "2afc"])
def test_answers_to_trials_of_every_kind_count(make_store, trial):
    store = make_store(trial=trial)
    with host.in_background(server.create_app(store, admin="x")) as url:
        simulate.run(url, store.catalogue, store.settings, CERTAIN, observers=2, accelerated=True)
    given = answers.combine({"x": export.as_json(store)})
    rows = [row for row in given.answers if row["role"] != "training" and row["rt_ms"] >= exclusion.FASTEST_MS]
    spoilt = {exclusion.spoilt(row, given.settings, exclusion._nominal(given.settings)) for row in rows}
    assert rows and spoilt == {""}


def test_median_thresholds(store):
    assert simulate.median_thresholds(store.catalogue) == pytest.approx({"chebyshev": 6 / 255, "ssim": 6 / 255})


def test_a_server_of_another_study_is_named_and_keeps_nothing(make_store):
    theirs, ours = make_store("theirs"), make_store("ours", seed=1)
    with (
        host.in_background(server.create_app(theirs, admin="x")) as url,
        pytest.raises(UserError, match="--url=.*this server has another study"),
    ):
        simulate.run(url, ours.catalogue, ours.settings, CERTAIN, observers=2, accelerated=True)
    assert theirs.rows("observers") == []


def test_a_server_that_is_not_there_is_said_after_a_while():
    client = simulate.Client("http://127.0.0.1:9/", patience=0.5)
    with pytest.raises(UserError, match="not answered for 0.5 seconds"):
        client.get("GET", "/api/session")
    with pytest.raises(UserError, match="write http://HOST:PORT/"):
        simulate.Client("somewhere")


@pytest.mark.parametrize(("observers", "kills"), [(20, 2), pytest.param(100, 12, marks=pytest.mark.slow)])
def test_no_answer_is_lost_and_none_doubled_when_the_server_is_killed(make_store, observers, kills):
    """kill -9, again and again, while all observers are at it; some of them go away in the middle as well."""
    store = make_store(trials=6, repeats=1, catches=1)
    port = _free_port()
    url = f"http://127.0.0.1:{port}/"
    acknowledged, failures = Counter(), []
    codes = {}
    process = _start(store.catalogue.folder, port)

    def observe(number):
        rng = np.random.default_rng(number)
        try:
            while not codes.get(number):
                client = simulate.Client(url, patience=300)  # a page that is loaded again
                client.token = token(number)
                state = client.get("POST", "/api/sessions", {"token": client.token, "participant": ""})
                for step in state["steps"][state["done"] :]:
                    world = np.random.default_rng([number, int(step["id"][:4])])  # the same answer after a reload
                    record = record_of(step, store.settings.answers[world.integers(2)])
                    client.get("POST", "/api/steps", {"step": step["id"], "record": record, "events": []})
                    acknowledged[number, step["id"], record.get("answer")] += 1
                    if rng.random() < 0.05:
                        break  # goes away
                codes[number] = client.get("GET", "/api/session")["code"]
                client.close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=observe, args=(number,)) for number in range(observers)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(0)
    killed = 0
    while killed < kills and any(thread.is_alive() for thread in threads):
        enough = len(acknowledged) + rng.integers(5, 40)
        while len(acknowledged) < enough and any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        process = _start(store.catalogue.folder, port)
    for thread in threads:
        thread.join()
    process.kill()
    process.wait()
    assert not failures and killed == kills
    stored = [(row["observer"], row["step"], row["answer"]) for row in store.rows("answers")]
    assert len(stored) == len(set(stored))
    trials = {key[1:] for key in acknowledged if key[2]}
    assert trials == {(step, answer) for _, step, answer in stored}  # every acknowledged answer, as it was given
    rows = store.rows("observers")
    assert len(rows) == observers and all(row["done"] == row["steps"] for row in rows)
    assert sorted(codes.values()) == sorted(row["completion_code"] for row in rows)
    assert "test pairs: 18, each" in export.status(store)


def _free_port():
    with host.listen("127.0.0.1", 0) as listener:
        return listener.getsockname()[1]


def _start(folder, port):
    program = Path(__file__).with_name("serve_program.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, program, folder, str(port)], env=environment, stdout=subprocess.DEVNULL)
