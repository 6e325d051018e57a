"""From the scores of updates to rows, averages and their intervals. NumPy, on the host."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cprl_jax.evaluation import statistics

Rows = list[dict[str, Any]]
PerImage = Float[np.ndarray, " images"]

WHOLE = "(test part)"  # in the place of a distortion: all test images
BASELINE = "erm"  # the update that the others are compared with


def row(update: str, distortion: str, seed: int, scores: PerImage, mos: PerImage) -> dict[str, Any]:
    """One cell: `update`, `distortion`, `seed`, `images`, `srcc` and `plcc` (NaN where all scores are the same)."""
    return {
        "update": update,
        "distortion": distortion,
        "seed": seed,
        "images": len(mos),
        "srcc": float(statistics.srcc(scores, mos)),
        "plcc": float(statistics.plcc(scores, mos)),
    }


def rows_by_distortion(update: str, seed: int, scores: PerImage, mos: PerImage, distortions: Sequence[str]) -> Rows:
    """A row for all images together (`WHOLE` in place of a distortion), and one for each distortion that has three."""
    distortions = np.asarray(distortions, str)
    chosen = {name: distortions == name for name in sorted({*distortions.tolist()} - {""})}
    return [row(update, WHOLE, seed, scores, mos)] + [
        row(update, name, seed, scores[images], mos[images])
        for name, images in chosen.items()
        if images.sum() >= statistics.MIN_IMAGES
    ]


def averages(rows: Rows, *, seed: int, resamples: int) -> Rows:
    """One row per update: its mean SRCC over distortions and seeds, and the difference to that of ERM.

    A model with the same score for all images has no rank correlation, and counts as 0: it puts nothing in order.

    Intervals are 95 % percentile bootstrap intervals: distortions are drawn with replacement, and for each one that is
    drawn, its seeds with replacement. They say how much the mean would vary with other distortions and seeds; the same
    draws are made for all updates, so that the difference is taken within them. NaN for fewer than two distortions.

    Args:
      rows: made by `row`, with every distortion and seed for every update. Those of `WHOLE` do not take part, unless
        there are no others.
      seed: determines the draws.
      resamples: how many draws.

    Returns:
      `update`, `srcc`, `srcc_low`, `srcc_high`; `difference`, `difference_low`, `difference_high` to ERM (NaN without
      it); `wins`, the number of cells in which the update is above ERM; `cells`.

    Raises:
      ValueError: a cell that is missing or occurs twice.
    """
    kept = [entry for entry in rows if entry["distortion"] != WHOLE] or rows
    updates = list(dict.fromkeys(entry["update"] for entry in kept))
    tables = {update: _table([entry for entry in kept if entry["update"] == update]) for update in updates}
    shapes = {table.shape for table in tables.values()}
    if len(shapes) > 1:
        raise ValueError(f"every update needs the same distortions and seeds, but their numbers are {sorted(shapes)}")
    baseline = tables.get(BASELINE)
    (distortions, seeds), generator = shapes.pop(), np.random.default_rng(seed)
    drawn = generator.integers(distortions, size=(resamples, distortions, 1))
    draws = drawn, generator.integers(seeds, size=(resamples, distortions, seeds))
    summary = []
    for update, table in tables.items():
        difference = np.full_like(table, np.nan) if baseline is None else table - baseline
        entry = {"update": update}
        for name, values in (("srcc", table), ("difference", difference)):
            low, high = math.nan, math.nan
            if distortions > 1 and not np.isnan(values).any():
                low, high = np.quantile(values[draws].mean(axis=(1, 2)), (0.025, 0.975)).tolist()
            entry |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        summary.append({**entry, "wins": int((difference > 0).sum()), "cells": table.size})
    return summary


def _table(rows: Rows) -> Float[np.ndarray, "distortions seeds"]:
    """The SRCC of every distortion and seed of one update, both sorted."""
    distortions = sorted({entry["distortion"] for entry in rows})
    seeds = sorted({entry["seed"] for entry in rows})
    if len(rows) != len(distortions) * len(seeds):
        raise ValueError(
            f"{rows[0]['update']}: {len(rows)} cells for {len(distortions)} distortions and {len(seeds)} seeds; give "
            "one for each pair"
        )
    table = np.full((len(distortions), len(seeds)), np.inf)
    for entry in rows:
        table[distortions.index(entry["distortion"]), seeds.index(entry["seed"])] = np.nan_to_num(entry["srcc"])
    if np.isinf(table).any():
        raise ValueError(f"{rows[0]['update']}: some distortion and seed occurs twice, and another is missing")
    return table
