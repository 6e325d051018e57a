"""The paper's two tables with 95 % intervals: images and observers are drawn again, many times.

Each draw of observers gives its own verdicts, so its own counterexamples. Where a threshold decides, images alone are
drawn. The intervals cover the choice of the images and of the observers; not that of models, attacks or seeds.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cprl_jax.evaluation import statistics
from cprl_jax.experiments.perceptual import results
from cprl_jax.experiments.perceptual.inputs import HIGHEST, LOWEST
from cprl_jax.experiments.perceptual.observers import Observations

MEASURES = ("srcc", "r", "mean_change")
FEWEST_FOR_SRCC = 10  # images: of fewer, draws repeat so many that their SRCC is not spread around that of the images


class Draws(NamedTuple):
    """Which images and observers each draw has.

    Attributes:
      images: places in the list of images.
      observers: how often each observer was drawn; no columns where there are none.
    """

    images: Int[np.ndarray, "draws images"]
    observers: Int[np.ndarray, "draws observers"]


def draw(images: int, observers: int, *, seed: int, resamples: int) -> Draws:
    """Images and observers with replacement, each as many as there are, independently of each other."""
    random = np.random.default_rng(seed)
    chosen = random.integers(images, size=(resamples, images))
    counts = random.multinomial(observers, np.full(observers, 1 / observers), resamples) if observers else None
    return Draws(chosen, counts if observers else np.zeros((resamples, 0), int))


def tables(
    candidates: results.Rows,
    counterexamples: results.Rows,
    others: results.Others,
    *,
    observations: Observations | None,
    base: str,
    seed: int,
    resamples: int = 1000,
) -> dict[str, results.Rows]:
    """'intra' and 'transfer': the rows of `results`, with `srcc_low`, `srcc_high` and so on.

    The interval of SRCC is NaN for fewer than ten images that have a counterexample.
    """
    intra = results.intra_rows(counterexamples, base=base)
    transfer = results.transfer_rows(others, counterexamples, base=base)
    names = list(dict.fromkeys(row["image"] for row in counterexamples))
    draws = draw(len(names), len(observations.observers) if observations else 0, seed=seed, resamples=resamples)
    mos = {row["image"]: row["mos"] for row in counterexamples}
    of_cell: dict[tuple[str, str, str], results.Rows] = {}
    for row in candidates:
        of_cell.setdefault((row["model"], row["fidelity"], row["image"]), []).append(row)
    picks = {
        (model, fidelity): _pick([of_cell[model, fidelity, name] for name in names], observations, draws)
        for model, fidelity in dict.fromkeys((row["model"], row["fidelity"]) for row in candidates)
    }
    labels = np.array([mos[name] for name in names])
    for row in intra:
        cells = [of_cell[row["model"], row["fidelity"], name] for name in names]
        scores = [(rows[0]["before"], np.array([one["after"] for one in rows])) for rows in cells]
        row |= _intervals(scores, labels, *picks[row["model"], row["fidelity"]], draws, base)
    for row in transfer:
        scores = [others[row["model"], row["attacked"], row["fidelity"], name] for name in names]
        row |= _intervals(scores, labels, *picks[row["attacked"], row["fidelity"]], draws, base)
    return {"intra": intra, "transfer": transfer}


def _pick(
    cells: list[results.Rows], observations: Observations | None, draws: Draws
) -> tuple[Int[np.ndarray, "draws images"], Bool[np.ndarray, "draws images"]]:
    """The counterexample of every image in each draw of observers (as `results.choose`), and whether there is one."""
    chosen = np.zeros((len(draws.images), len(cells)), int)
    found = np.zeros(chosen.shape, bool)
    for place, rows in enumerate(cells):
        change = np.abs([row["after"] - row["before"] for row in rows])
        if observations is None:
            allowed = np.array([[bool(row["below_threshold"]) for row in rows]])
        else:
            cell = tuple(rows[0][key] for key in ("model", "fidelity", "image"))
            seen, asked = (draws.observers @ counts for counts in observations.of(cell, len(rows)))
            unchanged = np.array([row["max_change"] == 0 for row in rows])
            allowed = ((asked > 0) & (seen < observations.limit * asked)) | unchanged
        allowed = allowed & ~np.isnan(change)
        chosen[:, place] = np.argmax(np.where(allowed, change, -1), axis=1)
        found[:, place] = allowed.any(axis=1)
    return chosen, found


def _intervals(
    scores: list[tuple[float, np.ndarray]],
    mos: Float[np.ndarray, " images"],
    chosen: Int[np.ndarray, "draws images"],
    found: Bool[np.ndarray, "draws images"],
    draws: Draws,
    base: str,
) -> dict[str, float]:
    """The ends of the intervals of one cell of a table, from the scores of each image and of its candidates."""
    before = np.array([score for score, _ in scores])
    after = np.stack([values[chosen[:, place]] for place, (_, values) in enumerate(scores)], axis=1)
    after, found = (np.take_along_axis(values, draws.images, axis=1) for values in (after, found))
    before, labels = before[draws.images], mos[draws.images]
    change = np.where(found, np.abs(after - before), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log(np.maximum(HIGHEST - before, before - LOWEST) / change) / math.log(_base(base))
        count = found.sum(axis=1)
        values = {"r": np.nansum(ratios, axis=1) / count, "mean_change": np.nansum(change, axis=1) / count}
    values["srcc"] = _srcc(before, after, labels, found)
    ends: dict[str, float] = {}
    for measure in MEASURES:
        ends[f"{measure}_low"], ends[f"{measure}_high"] = interval(values[measure])
    return ends


def _srcc(before: np.ndarray, after: np.ndarray, mos: np.ndarray, found: np.ndarray) -> np.ndarray:
    """SRCC over originals and counterexamples of each draw, without images that have none; as `results.intra_rows`."""
    values = np.full(len(before), np.nan)
    order = np.argsort(~found, axis=1, kind="stable")  # those with a counterexample first
    before, after, mos = (np.take_along_axis(array, order, axis=1) for array in (before, after, mos))
    for count in np.unique(found.sum(axis=1)):
        draws = found.sum(axis=1) == count
        if count >= FEWEST_FOR_SRCC:
            first = [array[draws, :count] for array in (before, after, mos, mos)]
            values[draws] = statistics.srcc(np.concatenate(first[:2], axis=1), np.concatenate(first[2:], axis=1))
    return values


def interval(values: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """From the 2.5 % to the 97.5 % quantile; NaN where more than half of the draws have no value."""
    known = values[~np.isnan(values)]
    if known.size < 0.5 * values.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975], method="nearest")  # that of infinite values is infinite, not NaN
    return float(low), float(high)


def _base(base: str) -> float:
    return math.e if base == "e" else float(base)
