"""Just-noticeable differences: how far a candidate has to be from its original to be told from it, with intervals.

Strengths are distances in decibels, 20 log10(distance), Chebyshev's in grey levels. The JND is the distance at which
half of the differences are detected, corrected for guesses and lapses; about 75 % of forced choices are right there.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cprl_jax.experiments.perceptual.intervals import draw, interval
from cprl_jax.experiments.perceptual.observers import LIMITS
from cprl_jax.study.analysis import detection, psychometric
from cprl_jax.study.analysis.answers import Answers, Row, seen

RESAMPLES = 500
FEWEST_ANSWERS = 20


def decibels(distance: float, fidelity: str) -> float:
    """20 log10 of a distance; of 255 times the distance under Chebyshev. -inf for 0."""
    scaled = distance * (255 if fidelity == "chebyshev" else 1)
    return 20 * math.log10(scaled) if scaled > 0 else -math.inf


def rows(
    answers: Answers,
    tests: Sequence[Row],
    catches: Sequence[Row],
    *,
    shape: str = "gaussian",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Row]:
    """A row for each fidelity over all models ("all") and for each model and fidelity: JND, interval, function.

    Groups of fewer than `FEWEST_ANSWERS` answers, or all at one distance, have none.
    """
    pairs: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in answers.pairs:
        for model in ("all", row["model"]):
            pairs[model, row["fidelity"]].setdefault(row["pair"], row)
    fitted = []
    for (model, fidelity), members in sorted(pairs.items(), key=lambda item: (item[0][0] != "all", item[0])):
        own = [row for row in tests if row["pair"] in members]
        strengths = {pair: decibels(row["distance"], fidelity) for pair, row in members.items()}
        if len(own) >= FEWEST_ANSWERS and len({strengths[row["pair"]] for row in own} - {-math.inf}) > 1:
            options = {"trial": answers.trial, "shape": shape, "seed": seed, "resamples": resamples}
            numbers = jnd(own, catches, strengths, **options)
            fitted.append({"model": model, "fidelity": fidelity, **numbers})
    return fitted


def jnd(
    tests: Sequence[Row],
    catches: Sequence[Row],
    strengths: Mapping[str, float],
    *,
    trial: str,
    shape: str = "gaussian",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The psychometric function of some pairs, and the JND with its 95 % interval.

    Identical pairs among the catch trials tell the rate of false alarms, plainly different ones that of lapses. The
    interval is from draws of observers and of images, independent of each other (Owen, "The pigeonhole bootstrap",
    Annals of Applied Statistics 2007); catch trials follow their observers. With few observers or images it says
    little, and with one image nothing of others. A JND beyond the strengths that were shown is known by its side
    alone: it is NaN, as are width and d'; an interval that leaves the strengths is open on that side. d' is also NaN
    where it takes false alarms and no identical pair was asked.

    Args:
      tests, catches: rows of answers, with `observer`, `answer`, `expected`; of tests also `pair` and `image`.
      strengths: pair -> its strength in dB.
      trial: "yesno", "flicker" or "2afc".
      shape: of `psychometric.SHAPES`.
    """
    observers = {name: place for place, name in enumerate(dict.fromkeys(row["observer"] for row in tests))}
    images = {name: place for place, name in enumerate(dict.fromkeys(row["image"] for row in tests))}
    shown = {pair: place for place, pair in enumerate(dict.fromkeys(row["pair"] for row in tests))}
    caught = (len(shown), len(shown) + 1)  # places of identical and of plainly different pairs
    x = np.array([strengths[pair] for pair in shown] + [-math.inf, math.inf])
    image_of = np.zeros(len(shown), int)
    detected, asked = np.zeros((2, len(observers), len(x)))
    for row in [*tests, *catches]:
        if row["observer"] not in observers:
            continue
        test = row["role"] == "test"
        place = shown[row["pair"]] if test else caught[row["role"] == "catch_different"]
        if test:
            image_of[place] = images[row["image"]]
        asked[observers[row["observer"]], place] += 1
        detected[observers[row["observer"]], place] += seen(row, trial)
    guess = 0.5 if trial == "2afc" else None
    fit = psychometric.fit(x, detected.sum(axis=0), asked.sum(axis=0), shape=shape, guess=guess)

    draws = draw(len(images), len(observers), seed=seed, resamples=resamples)
    weights = np.stack([(draws.images == place).sum(axis=1) for place in range(len(images))], axis=1)
    factor = np.concatenate([weights[:, image_of], np.ones((resamples, 2))], axis=1)
    counts = [(draws.observers @ values) * factor for values in (detected, asked)]
    finite = np.isfinite(x)
    usable = [np.unique(x[finite & (row > 0)]).size > 1 for row in counts[1]]
    drawn = psychometric.fit(x, counts[0][usable], counts[1][usable], shape=shape, guess=guess, start=fit)
    threshold, limit = float(fit.threshold), float(fit.strength(LIMITS[trial]))
    thresholds, limits = drawn.threshold, drawn.strength(LIMITS[trial])
    count = detected[:, : len(shown)].sum()
    if count in (0, len(tests)):
        threshold = limit = math.inf if count == 0 else -math.inf
        thresholds = limits = np.full(resamples, threshold)
    ends = (x[finite].min(), x[finite].max())
    threshold, low, high = within(threshold, thresholds, ends)
    limit, limit_low, limit_high = within(limit, limits, ends)
    share = fit.share(fit.threshold[None])[0]
    identical = asked[:, caught[0]].sum()  # none in a forced choice
    false_alarms = detection.rate(detected[:, caught[0]].sum(), identical) if identical else math.nan
    sensitive = not math.isnan(threshold) and (identical or trial == "2afc")
    return {
        "answers": len(tests),
        "observers": len(observers),
        "images": len(images),
        "jnd_db": threshold,
        "jnd_db_low": low,
        "jnd_db_high": high,
        "jnd": 10 ** (threshold / 20),
        "jnd_low": 10 ** (low / 20),
        "jnd_high": 10 ** (high / 20),
        "limit_db": limit,
        "limit_db_low": limit_low,
        "limit_db_high": limit_high,
        "width_db": math.nan if math.isnan(threshold) else float(fit.width),
        "guess": float(fit.guess),
        "lapse": float(fit.lapse),
        "false_alarms": float(false_alarms),
        "d_prime": float(sensitivity(share, false_alarms, trial)) if sensitive else math.nan,
    }


def within(
    estimate: float, draws: Float[np.ndarray, " draws"], ends: tuple[float, float]
) -> tuple[float, float, float]:
    """A strength and its 95 % interval, as far as answers tell: between the lowest and highest strength shown, `ends`.

    The slope of a function that was not seen to rise is a guess, and so is every distance from `ends`. A strength
    beyond them is NaN, and draws beyond them only say on which side: the interval then reaches to infinity there, and
    from the nearer of `ends`, never from within the unseen.
    """
    low, _ = interval(np.where(draws < ends[0], -math.inf, np.minimum(draws, ends[1])))
    _, high = interval(np.where(draws > ends[1], math.inf, np.maximum(draws, ends[0])))
    if ends[0] <= estimate <= ends[1]:
        return estimate, low, high
    return math.nan, (-math.inf if estimate < ends[0] else low), (math.inf if estimate > ends[1] else high)


def sensitivity(share: Any, false_alarms: float, trial: str) -> Any:
    """d' of a share of detections, by the model of the trial (`detection`)."""
    if trial == "2afc":
        return detection.forced_choice(share)
    return (detection.same_different if trial == "yesno" else detection.yes_no)(share, false_alarms)
