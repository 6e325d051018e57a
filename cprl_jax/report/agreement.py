"""Columns and words for the agreement of scores with labels: SRCC, PLCC and RMSE, wherever a report has them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from cprl_jax.report.table import Column, Table
from cprl_jax.report.values import Row, interval, value

METRICS = {"srcc": 3, "plcc": 3, "rmse": 2}  # digits
WORDS = {
    "MOS": "Mean opinion score: the label of an image, from 0 (bad) to 100 (excellent). In a data set with human "
    "labels, the average of what people said.",
    "SRCC": "Spearman's rank correlation: does the model put the images in the right order? 1: exactly, 0: not at all, "
    "-1: the order is reversed.",
    "PLCC": "Pearson's linear correlation: do scores rise in proportion with the labels? 1: on a straight line, "
    "0: no relation, -1: they fall instead.",
    "RMSE": "Root mean square error: how many points of 100 the scores are off, typically. 0 is best.",
}

UNDEFINED = " –: fewer than three images, or labels or scores that are all alike or not finite."

Note = Callable[[Row, str], str]


def undefined(rows: Sequence[Row]) -> str:
    """`UNDEFINED`, to follow a legend, where some row has no SRCC; else ''."""
    return UNDEFINED * any(math.isnan(value(row, "srcc")) for row in rows)


def columns(
    *, group: str = "", of: Any = None, note: Note = interval, noted: Sequence[str] = ("srcc",)
) -> list[Column]:
    """A column for each metric, with small print such as an interval beside those that are `noted`."""
    return [
        Column(
            metric,
            metric.upper(),
            group=group,
            of=of,
            digits=digits,
            note=(lambda row, metric=metric: note(row, metric)) if metric in noted else lambda row: "",
            best=-1 if metric == "rmse" else 1,
            tone=error_tone if metric == "rmse" else lambda row, metric=metric: value(row, metric),
        )
        for metric, digits in METRICS.items()
    ]


def error_tone(row: Row) -> float:
    """Orange, the darker the larger the error, up to 50 points."""
    return -min(1.0, value(row, "rmse") / 50)


def zero_shot(rows: Sequence[Row], *, note: Note = interval, subtitle: Callable[[Row], str] | None = None) -> Table:
    """Models on data sets that they were not trained on: a block for each set.

    Args:
      rows: with `method`, `dataset`, `images`, `srcc`, `plcc`, `rmse`, and where known their intervals.
      note: the small print beside SRCC.
      subtitle: a row's, see `Table`.
    """
    return Table(
        rows,
        [Column("images", "images", digits=0), *columns(note=note)],
        line=("method", "dataset"),
        heading="method",
        name=lambda row: str(row["method"]),
        subtitle=subtitle,
        block=lambda row: f"zero-shot on {row['dataset']}",
        block_heading="data set",
        best_legend="best of the methods on that set",
        legend="Every image of each set, nothing trained on it. The models keep to the scale of the labels that they "
        "were trained on: SRCC does not depend on scales, RMSE does." + undefined(rows),
    )
