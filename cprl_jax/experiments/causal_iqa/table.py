"""The table of Causal-IQA: updates compared on distortions that training did not see, as a table and in words."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cprl_jax.experiments.causal_iqa.results import BASELINE, WHOLE
from cprl_jax.report.table import Column, Table
from cprl_jax.report.values import (
    Row,
    bounds,
    check,
    decimals,
    distinct,
    grouped,
    interval,
    listed,
    number,
    side_of_zero,
    value,
)

ROW_KEYS = ("update", "distortion", "seed", "images", "srcc", "plcc")
_ENDS = ("", "_low", "_high")
AVERAGE_KEYS = ("update", *(name + end for name in ("srcc", "difference") for end in _ENDS), "wins", "cells")
FEW = 10  # distortions below which a bootstrap over them is called rough
TITLES = {"erm": "ERM", "metaiqa": "MetaIQA", "cis": "CIS", "cip": "CIP"}


def title_of(update: str) -> str:
    """'ERM' for 'erm'; unknown names stay as they are."""
    return TITLES.get(update, update)


def of_cell(rows: Sequence[Row], distortion: str, update: str) -> Float[np.ndarray, " seeds"]:
    """The SRCC of every seed that is there; 0 where it is NaN: scores that are all the same put nothing in order."""
    cell = [row["srcc"] for row in rows if row["distortion"] == distortion and row["update"] == update]
    return np.nan_to_num([number(srcc) for srcc in cell if srcc not in (None, "")])


class Comparison:
    """The updates on every distortion and seed, averaged over seeds.

    Args:
      rows: one for each (`update`, `distortion`, `seed`) with `images`, `srcc`, `plcc`, as in table.csv; the distortion
        '(test part)' stands for all test images together. An SRCC of NaN (all scores are the same) counts as 0, as in
        `causal_iqa.results`; cells that are not there are shown as missing.
      averages: made by `results.averages`.

    Attributes:
      held_out: whether the distortions were held out, rather than being those of a test part.
      expected: how many results there are when all are there.
      missing: how many of them are not there.

    Raises:
      ValueError: a row lacks a key.
    """

    def __init__(self, rows: Sequence[Row], averages: Sequence[Row]):
        check(rows, ROW_KEYS, "rows")
        check(averages, AVERAGE_KEYS, "averages")
        self.rows, self.averages = rows, averages
        self.updates = distinct([*averages, *rows], "update")
        self.distortions = sorted(distinct(rows, "distortion"), key=lambda name: name == WHOLE)
        self.seeds = len({row["seed"] for row in rows})
        self.held_out = WHOLE not in self.distortions
        self.expected = self.seeds * len(self.distortions) * len(self.updates)
        self.missing = self.expected - sum(row["srcc"] not in (None, "") for row in rows)

    def table(self) -> Table:
        """A line for each distortion, one for the average, and two that compare it with ERM's."""
        columns = [
            Column(
                "srcc",
                title_of(update),
                of=update,
                text=lambda row: row.get("text") or decimals(row["srcc"], 3),
                note=lambda row: row["note"],
                best=1,
                tone=lambda row: row["srcc"] if row["images"] else 0.0,
            )
            for update in self.updates
        ]
        return Table(
            [*self._cells(), *self._averages()] if self.rows else [],
            [Column("images", "images", text=lambda row: row["images"]), *columns],
            line=("line",),
            across="update",
            heading="held out" if self.held_out else "distortion",
            block=lambda row: "" if row["images"] else "all distortions",
            competes=lambda row: row["complete"],
            contest="across",
            best_legend="best of a line",
            legend=self._explanation(),
        )

    def _cells(self) -> list[dict[str, Any]]:
        """Means over the seeds, with the range over them; a cell without all of them does not compete."""
        cells = []
        images = {row["distortion"]: decimals(number(row["images"]), 0) for row in self.rows}
        for distortion in self.distortions:
            for update in self.updates:
                srcc = of_cell(self.rows, distortion, update)
                note = f"{decimals(srcc.min(), 2)} to {decimals(srcc.max(), 2)}" if srcc.size > 1 else ""
                cells.append(
                    {
                        "line": "all of the test part" if distortion == WHOLE else distortion,
                        "update": update,
                        "images": images[distortion],
                        "srcc": float(srcc.mean()) if srcc.size else math.nan,
                        "note": f"{srcc.size} of {self.seeds} seeds" if 0 < srcc.size < self.seeds else note,
                        "complete": srcc.size == self.seeds,
                    }
                )
        return cells

    def _averages(self) -> list[dict[str, Any]]:
        lines = []
        for row in self.averages:
            shared = {"update": row["update"], "images": "", "note": "", "complete": False, "srcc": math.nan}
            average = {"srcc": value(row, "srcc"), "note": interval(row, "srcc"), "complete": not self.missing}
            lines.append(shared | average | {"line": "average"})
            if row["update"] != BASELINE and math.isfinite(value(row, "difference")):
                less = {"text": decimals(value(row, "difference"), 3, signed=True), "note": _bounds(row)}
                wins = {"text": f"{number(row['wins']):.0f} of {number(row['cells']):.0f}"}
                lines += [shared | less | {"line": "less ERM's"}, shared | wins | {"line": "cells above ERM's"}]
        return lines

    def _explanation(self) -> str:
        """What the numbers of the table are."""
        count = sum(name != WHOLE for name in self.distortions)
        sentences = ["SRCC of scores and MOS."]
        if count and self.held_out:
            sentences.append("Each line is a distortion that was held out of training and is the whole test.")
        elif count:
            sentences.append("Each line is a distortion of the test part; in their average each counts alike.")
        means = f"Means over {self.seeds} seeds, with the lowest to the highest."
        sentences.append("One seed." if self.seeds == 1 else means)
        if count > 1:
            sentences.append("Intervals in brackets are 95 % bootstrap intervals over the distortions, seeds within.")
            sentences += [f"With {count} distortions they are rough."] * (count < FEW)
            sentences.append("A cell is one distortion and seed.")
        return " ".join(sentences)

    def verdict(self) -> str:
        """Which update has the highest average, and which differ from ERM: no more than the intervals say.

        An update beats ERM, or is worse, where the interval of its difference excludes 0 as printed. Before all cells
        are there nothing is decided.
        """
        averages = {row["update"]: row for row in self.averages if math.isfinite(value(row, "srcc"))}
        if not self.rows:
            return "There are no results yet."
        if self.missing or not averages:
            return (
                f"This comparison is not complete: {self.expected - self.missing} of {self.expected} results are "
                "there. Nothing is decided before all are, and averaged."
            )
        where = "distortions that training did not see"
        if not self.held_out:
            where = "the test part" if self.distortions == [WHOLE] else "the distortions of the test part"
        highest = max(round(value(row, "srcc"), 3) for row in averages.values())
        top = [name for name, row in averages.items() if round(value(row, "srcc"), 3) == highest]
        sentences = [
            f"{listed(list(map(title_of, top)))} {'has' if len(top) == 1 else 'have'} "
            f"{'the highest' if len(averages) > 1 else 'an'} average SRCC on {where}, "
            f"{decimals(highest, 3)} {interval(averages[top[0]], 'srcc')}".strip()
            + "."
        ]
        others = {name: row for name, row in averages.items() if name != BASELINE}
        if BASELINE not in averages:
            sentences.append("Without ERM among the updates there is nothing to compare with.")
        elif not others:
            sentences.append("No other update was trained to compare it with.")
        else:
            sentences.append("; ".join(_compared(title_of(name), row) for name, row in others.items()) + ".")
            if all(_side(row) != 1 for row in others.values()):
                sentences.append("No update is shown to be better than ERM.")
        if constant := sum(math.isnan(number(row["srcc"])) for row in self.rows):
            sentences.append(
                f"{constant} of the {self.expected} results {'has' if constant == 1 else 'have'} no SRCC, as when a "
                "model gives all images the same score, and count as 0."
            )
        if self.seeds == 1:
            sentences.append("Every model was trained once: how much of this is chance in training is not known.")
        return " ".join(sentences)


def _compared(title: str, row: Row) -> str:
    difference, low, high = (value(row, f"difference{end}") for end in _ENDS)
    signed = decimals(difference, 3, signed=True)
    if not _bounds(row):
        return f"{title} has no interval of its difference to ERM ({signed}), which decides nothing"
    if _side(row) == 1:
        return f"{title} beats ERM by {decimals(difference, 3)} {_bounds(row)}"
    if _side(row) == -1:
        return f"{title} is worse than ERM by {decimals(-difference, 3)} {bounds(-high, -low, 3)}"
    return f"{title} cannot be told from ERM, the difference is {signed} {_bounds(row)}"


def _side(row: Row) -> int:
    return side_of_zero(value(row, "difference_low"), value(row, "difference_high"), 3)


def _bounds(row: Row) -> str:
    return interval(row, "difference", 3)


def over_seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Zero-shot rows with the means over the seeds of each update and data set, of finite numbers and of intervals."""
    means = []
    for (method, dataset), group in grouped(rows, ("method", "dataset")).items():
        mean = {"method": title_of(method), "dataset": dataset, "images": group[0]["images"]}
        for key in group[0]:
            if key.startswith(("srcc", "plcc", "rmse")):
                finite = [value(row, key) for row in group if math.isfinite(value(row, key))]
                mean[key] = sum(finite) / len(finite) if finite else math.nan
        means.append(mean)
    return means
