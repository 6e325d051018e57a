"""What an observer goes through, step by step: drawn from a seed, balanced over observers.

A step is a plain dict, the same for the server, the folder of files and the page: `id`, `kind` (one of `KINDS`), and
for a trial its images. What the page must not know (which image is perturbed, which trials are catch trials) is taken
out by `public`.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cprl_jax.study.catalogue import Catalogue
from cprl_jax.study.settings import Settings

KINDS = ("consent", "instructions", "display", "trial", "break", "comments")
ROLES = ("training", "test", "repeat", "catch_same", "catch_different")
COUNTED = "test"  # the role whose pairs are balanced over observers
Step = dict[str, Any]


class _Shown(NamedTuple):
    """What a trial is about."""

    role: str
    image: str
    original: str
    other: str  # the perturbed image; the original again in a catch trial of identical images
    pair: str


def make(settings: Settings, catalogue: Catalogue, key: Sequence[int], counts: Mapping[str, int]) -> list[Step]:
    """All steps of one observer.

    Args:
      settings, catalogue: of the study.
      key: numbers that tell observers apart; with `settings.seed` they decide every random choice.
      counts: pair -> how many observers have been given it. Those with the fewest are given first.
    """
    rng = np.random.default_rng([settings.seed, *key])
    draws = rng.random(len(catalogue.pairs))
    order = sorted(range(len(draws)), key=lambda row: (counts.get(catalogue.pairs[row].id, 0), draws[row]))
    tests = [catalogue.pairs[row] for row in order[: settings.trials]]
    shown = [_Shown("test", pair.image, pair.original, pair.perturbed, pair.id) for pair in tests]
    again = rng.permutation(len(tests))[: settings.repeats]
    shown += [shown[row]._replace(role="repeat") for row in again]
    shown += list(_catches(settings, catalogue, rng))
    trials = _roles_in_order(_spread([shown[row] for row in rng.permutation(len(shown))]))
    training = list(_training(settings, catalogue, rng))

    steps: list[Step] = [{"kind": kind} for kind in ("consent", "instructions", "display")]
    flips = _flips(len(training), rng)
    steps += [_trial(settings, one, flip, block=0) for one, flip in zip(training, flips, strict=True)]
    blocks = max(1, -(-len(trials) // settings.block))
    flips = _flips(len(trials), rng)
    for block, rows in enumerate(np.array_split(np.arange(len(trials)), blocks), start=1):
        if block > 1 or training:
            steps.append({"kind": "break", "block": block, "blocks": blocks})
        steps += [_trial(settings, trials[row], flips[row], block=block) for row in rows]
    steps.append({"kind": "comments"})
    tag = hashlib.sha256(repr((catalogue.study, settings.seed, tuple(key))).encode()).hexdigest()
    for position, step in enumerate(steps):
        mark = hashlib.sha256(f"{tag} {position}".encode()).hexdigest()[:12]
        step["id"] = f"{position:04d}-{mark}"
    return steps


def of_files(settings: Settings, catalogue: Catalogue) -> Iterator[list[Step]]:
    """The steps of the plans of a folder of files, without end, each plan balanced with those before it."""
    counts: Counter[str] = Counter()
    for number in itertools.count(1):
        steps = make(settings, catalogue, (1, number), counts)
        counts.update(step["pair"] for step in steps if step.get("role") == COUNTED)
        yield steps


def of_file(settings: Settings, catalogue: Catalogue, number: int) -> list[Step]:
    """The steps of plan `number` (from 1) of a folder of files."""
    return next(itertools.islice(of_files(settings, catalogue), number - 1, None))


def public(step: Step) -> Step:
    """What the page may know of a step: in training also the right answer."""
    hidden = {"role", "pair", "image", "perturbed_at", "expected"}
    if step.get("role") == "training":
        hidden -= {"expected"}
    return {name: value for name, value in step.items() if name not in hidden}


def images_of(steps: Sequence[Step]) -> list[str]:
    """The ids of all images that the steps show, in order of first appearance."""
    return list(dict.fromkeys(image for step in steps for image in step.get("stimuli", ())))


def _catches(settings: Settings, catalogue: Catalogue, rng: np.random.Generator) -> Iterator[_Shown]:
    """Identical pairs (but where a trial always has a difference) and plainly different ones."""
    for role in ("catch_same", "catch_different"):
        if role == "catch_same" and settings.trial == "2afc":
            continue
        for picture in _taken(catalogue.pictures, settings.catches, rng):
            other = picture.original if role == "catch_same" else picture.coarse[0]
            yield _Shown(role, picture.name, picture.original, other, "")


def _training(settings: Settings, catalogue: Catalogue, rng: np.random.Generator) -> Iterator[_Shown]:
    """Alternately a plain difference, none, a smaller one, none, ..."""
    for number, picture in enumerate(_taken(catalogue.pictures, settings.training, rng)):
        same = number % 2 == 1 and settings.trial != "2afc"
        coarse = picture.coarse[(number // 2) % len(picture.coarse)]
        yield _Shown("training", picture.name, picture.original, picture.original if same else coarse, "")


def _taken(things: Sequence[Any], count: int, rng: np.random.Generator) -> list[Any]:
    """`count` of them in random order; none a second time before each was taken once."""
    rows: list[int] = []
    while len(rows) < count:
        rows += rng.permutation(len(things)).tolist()
    return [things[row] for row in rows[:count]]


def _spread(trials: list[_Shown]) -> list[_Shown]:
    """The same trials, no image twice in a row where that can be had: then one would remember it."""
    left, order = list(trials), []
    while left:
        last = order[-1].image if order else None
        remaining = Counter(trial.image for trial in left)
        others = [place for place, trial in enumerate(left) if trial.image != last] or [0]
        # An image that makes up half of what is left has to come now, or it will have to come twice in a row.
        urgent = [place for place in others if 2 * remaining[left[place].image] > len(left)]
        order.append(left.pop((urgent or others)[0]))
    return order


def _roles_in_order(trials: list[_Shown]) -> list[_Shown]:
    """Of a pair that comes twice, the first is the test and the second the repeat."""
    seen: set[str] = set()
    ordered = []
    for trial in trials:
        if trial.pair:
            trial = trial._replace(role="repeat" if trial.pair in seen else "test")
            seen.add(trial.pair)
        ordered.append(trial)
    return ordered


def _flips(count: int, rng: np.random.Generator) -> list[bool]:
    """Whether the perturbed image comes first: in half of the trials, in random order."""
    return rng.permutation(np.arange(count) % 2).astype(bool).tolist()


def _trial(settings: Settings, shown: _Shown, flip: bool, *, block: int) -> Step:
    pair = [shown.other, shown.original] if flip else [shown.original, shown.other]
    same = shown.other == shown.original
    if settings.trial == "2afc":
        stimuli, perturbed_at, expected = [shown.original, *pair], 1 if flip else 2, "first" if flip else "second"
    else:
        # A test pair has no right answer: whether its difference can be seen is the question.
        known = {"training", "catch_same", "catch_different"}
        expected = ("same" if same else "different") if shown.role in known else ""
        stimuli, perturbed_at = pair, None if same else (1 if flip else 2)
    return {
        "kind": "trial",
        "block": block,
        "training": shown.role == "training",
        "stimuli": stimuli,
        "role": shown.role,
        "pair": shown.pair,
        "image": shown.image,
        "perturbed_at": perturbed_at,
        "expected": expected,
    }
