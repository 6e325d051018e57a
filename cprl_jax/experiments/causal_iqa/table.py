"""The table of Causal-IQA: updates compared on distortions that training did not see, as text and in words.

`rows`: one per (`update`, `distortion`, `seed`) with `images`, `srcc`, `plcc`; the distortion '(test part)' stands for
all test images together. Cells that are not there are shown as missing; an SRCC of NaN (all scores are the same)
counts as 0, as in `causal_iqa.results`. `averages`: one per update with
`update`, `srcc` (mean over the cells), `srcc_low`, `srcc_high`, `difference` (to ERM), `difference_low`,
`difference_high` (95 % intervals), `wins` (in how many cells it beats ERM) and `cells`; NaN is unknown. Nothing is
measured here: seeds are averaged, that is all.
"""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cprl_jax.experiments.causal_iqa.results import BASELINE, WHOLE
from cprl_jax.report import tables
from cprl_jax.report import zero_shot as zero_shot_table
from cprl_jax.report.results import Row, decimals, number, value

ROW_KEYS = ("update", "distortion", "seed", "images", "srcc", "plcc")
AVERAGE_KEYS = (
    "update",
    "srcc",
    "srcc_low",
    "srcc_high",
    "difference",
    "difference_low",
    "difference_high",
    "wins",
    "cells",
)
FEW = 10  # distortions below which a bootstrap over them is called rough
TITLES = {"erm": "ERM", "metaiqa": "MetaIQA", "cis": "CIS", "cip": "CIP"}


def title_of(update: str) -> str:
    """'ERM' for 'erm'; names that are not known as they are."""
    return TITLES.get(update, update)


def of_cell(rows: Sequence[Row], distortion: str, update: str) -> Float[np.ndarray, " seeds"]:
    """The SRCC of every seed that is there; 0 where it is NaN: scores that are all the same put nothing in order."""
    found = [row["srcc"] for row in rows if row["distortion"] == distortion and row["update"] == update]
    return np.nan_to_num([number(srcc) for srcc in found if srcc not in (None, "")])


class Cell(NamedTuple):
    """SRCC of an update on a distortion: mean and range over the seeds, and how many of the seeds are there."""

    mean: float
    low: float
    high: float
    seeds: int


class Table(NamedTuple):
    """The paper's table: what `rows` say, by distortion and update."""

    distortions: list[str]
    updates: list[str]
    seeds: int
    cells: dict[tuple[str, str], Cell]
    constant: int  # results whose SRCC is NaN
    images: dict[str, str]
    averages: dict[str, Row]

    @property
    def held_out(self) -> bool:
        """Whether the distortions were held out, rather than being those of a test part."""
        return WHOLE not in self.distortions

    @property
    def missing(self) -> int:
        """How many results are not there."""
        return self.seeds * len(self.cells) - sum(cell.seeds for cell in self.cells.values())

    def best(self, distortion: str | None) -> set[str]:
        """The updates with the highest SRCC as printed on a distortion, or on average (None).

        Only those with every seed compete, and two of them must; averages do when nothing is missing.
        """
        if distortion is None:
            known = {} if self.missing else {name: value(row, "srcc") for name, row in self.averages.items()}
        else:
            found = {update: self.cells[distortion, update] for update in self.updates}
            known = {update: cell.mean for update, cell in found.items() if cell.seeds == self.seeds}
        known = {update: round(srcc, 3) for update, srcc in known.items() if math.isfinite(srcc)}
        return {update for update, srcc in known.items() if srcc == max(known.values())} if len(known) > 1 else set()


def table_of(rows: Sequence[Row], averages: Sequence[Row]) -> Table:
    """Arranges the rows.

    Raises:
      ValueError: a row lacks a key.
    """
    check(rows, ROW_KEYS, "rows")
    check(averages, AVERAGE_KEYS, "averages")
    distortions = sorted(dict.fromkeys(str(row["distortion"]) for row in rows), key=lambda name: name == WHOLE)
    updates = list(dict.fromkeys(str(row["update"]) for row in (*averages, *rows)))
    cells = {}
    for distortion in distortions:
        for update in updates:
            srcc = of_cell(rows, distortion, update)
            range_ = (srcc.mean(), srcc.min(), srcc.max()) if srcc.size else (math.nan,) * 3
            cells[distortion, update] = Cell(*map(float, range_), srcc.size)
    images = {str(row["distortion"]): decimals(number(row["images"]), 0) for row in rows}
    seeds = len({row["seed"] for row in rows})
    constant = sum(row["srcc"] not in (None, "") and math.isnan(number(row["srcc"])) for row in rows)
    by_update = {str(row["update"]): row for row in averages}
    return Table(distortions, updates, seeds, cells, constant, images, by_update)


# ---------------------------------------------------------------------------------------------------- words


def verdict(rows: Sequence[Row], averages: Sequence[Row]) -> str:
    """Which update has the highest average, and which differ from ERM: no more than the intervals say.

    An update beats ERM, or is worse, where the interval of its difference excludes 0 as printed. Before all cells are
    there nothing is decided.
    """
    table = table_of(rows, averages)
    known = {name: row for name, row in table.averages.items() if math.isfinite(value(row, "srcc"))}
    if not table.distortions:
        return "There are no results yet."
    expected = table.seeds * len(table.cells)
    if table.missing or not known:
        return (
            f"This comparison is not complete: {expected - table.missing} of {expected} results are there. Nothing is "
            "decided before all are, and averaged."
        )
    where = (
        "distortions that training did not see"
        if table.held_out
        else "the test part"
        if table.distortions == [WHOLE]
        else "the distortions of the test part"
    )
    top = [name for name in known if name in table.best(None)] or list(known)
    sentences = [
        f"{_listed([title_of(name) for name in top])} {'has' if len(top) == 1 else 'have'} "
        f"{'the highest' if len(known) > 1 else 'an'} average SRCC on {where}, "
        f"{decimals(value(known[top[0]], 'srcc'), 3)} {tables.interval(known[top[0]], 'srcc')}".rstrip()
        + "."
    ]
    others = {name: row for name, row in known.items() if name != BASELINE}
    if BASELINE not in known:
        sentences.append("Without ERM among the updates there is nothing to compare with.")
    elif not others:
        sentences.append("No other update was trained to compare it with.")
    else:
        sentences.append("; ".join(_compared(name, row) for name, row in others.items()) + ".")
        if all(_side(row) != 1 for row in others.values()):
            sentences.append("No update is shown to be better than ERM.")
    if table.constant:
        sentences.append(
            f"{table.constant} of the {expected} results {'has' if table.constant == 1 else 'have'} no SRCC, as when a "
            "model gives all images the same score, and count as 0."
        )
    if table.seeds == 1:
        sentences.append(
            "Every model was trained once: seeds were not repeated, so how much of this is chance in training is not "
            "known."
        )
    return " ".join(sentences)


def _compared(update: str, row: Row) -> str:
    name, difference = title_of(update), value(row, "difference")
    low, high = value(row, "difference_low"), value(row, "difference_high")
    match _side(row):
        case 1:
            return f"{name} beats ERM by {decimals(difference, 3)} {_range(low, high)}"
        case -1:
            return f"{name} is worse than ERM by {decimals(-difference, 3)} {_range(-high, -low)}"
        case 0:
            return f"{name} cannot be told from ERM, the difference is {_signed(difference)} {_range(low, high)}"
    return f"{name} has no interval of its difference to ERM ({_signed(difference)}), which decides nothing"


def _side(row: Row) -> int | None:
    """1: the interval of the difference lies above 0 as printed; -1: below; 0: neither; None: there is none."""
    low, high = value(row, "difference_low"), value(row, "difference_high")
    if not all(map(math.isfinite, (value(row, "difference"), low, high))):
        return None
    return int(round(low, 3) > 0) - int(round(high, 3) < 0)


def explanation(table: Table) -> str:
    """What the numbers of the table are."""
    count = sum(name != WHOLE for name in table.distortions)
    sentences = ["SRCC of scores and MOS."]
    if count:
        sentences.append(
            "Each line is a distortion that was held out of training and is the whole test."
            if table.held_out
            else "Each line is a distortion of the test part."
        )
    if count and not table.held_out:
        sentences.append("The average is that of the distortions, each counting alike.")
    sentences.append(
        "One seed." if table.seeds == 1 else f"Means over {table.seeds} seeds, with the lowest to the highest."
    )
    if count > 1:
        sentences.append("Intervals in brackets are 95 % bootstrap intervals over the distortions, seeds within.")
        if count < FEW:
            sentences.append(f"With {count} distortions they are rough.")
        sentences.append("A cell is one distortion and seed.")
    return " ".join(sentences)


# ---------------------------------------------------------------------------------------------------- text


def format_table(rows: Sequence[Row], averages: Sequence[Row]) -> str:
    """The table for a terminal, best values marked *, with the differences to ERM and the verdict beneath.

    Raises:
      ValueError: a row lacks a key.
    """
    table = table_of(rows, averages)
    if not table.distortions:
        return "No results."
    cells = [[corner(table), "images", *(text for update in table.updates for text in (f"{title_of(update)} ", ""))]]
    for distortion in (*table.distortions, None):
        line = [label(distortion), "" if distortion is None else table.images[distortion]]
        for update in table.updates:
            mean, small = shown(table, distortion, update)
            line += [mean + ("*" if update in table.best(distortion) else " "), small]
        cells.append(line)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        text = f"{line[0].ljust(widths[0])}  {line[1].rjust(widths[1])}"
        for place in range(2, len(line), 2):
            text += f"  {line[place].rjust(widths[place])} {line[place + 1].ljust(widths[place + 1])}"
        lines.append(text.rstrip())
    lines.insert(-1, "")
    compared = [
        f"{title_of(update)} less ERM: {f'{difference} {interval}'.strip()}, better in {wins}"
        for update, difference, interval, wins in comparisons(table)
    ]
    starred = "* best. " if len(table.updates) > 1 else ""
    below = (starred + explanation(table), verdict(rows, averages))
    return "\n".join(
        [*lines, *compared, *(line for text in below for line in ("", *textwrap.wrap(text, tables.WIDTH)))]
    )


def markdown(
    rows: Sequence[Row],
    averages: Sequence[Row],
    *,
    title: str,
    zero_shot: Sequence[Row] = (),
    notes: Sequence[str] = (),
) -> str:
    """The same in Markdown, best values in bold, and the zero-shot table and the notes."""
    table = table_of(rows, averages)
    lines = [f"# {tables.plain_text(title)}", "", tables.plain_text(verdict(rows, averages))]
    if table.distortions:
        header = [corner(table), "images", *map(title_of, table.updates)]
        lines += [
            "",
            tables.markdown_row(map(tables.plain_text, header)),
            tables.markdown_row(["---", *["---:"] * (len(header) - 1)]),
        ]
        for distortion in (*table.distortions, None):
            line = [tables.plain_text(label(distortion)), "" if distortion is None else table.images[distortion]]
            for update in table.updates:
                mean, small = shown(table, distortion, update)
                small = f"({small})" if small and not small.startswith("[") else small
                line.append(f"{f'**{mean}**' if update in table.best(distortion) else mean} {small}".strip())
            lines.append(tables.markdown_row(line))
        lines += ["", explanation(table) + (" Bold: best." if len(table.updates) > 1 else "")]
    if compared := comparisons(table):
        lines += [
            "",
            "| less ERM | difference | better than ERM in |",
            "| --- | ---: | ---: |",
            *(
                tables.markdown_row([tables.plain_text(title_of(update)), f"{difference} {interval}".strip(), wins])
                for update, difference, interval, wins in compared
            ),
        ]
    if zero_shot:
        lines += ["", zero_shot_table.markdown(over_seeds(zero_shot)), note_on_seeds(zero_shot)]
    lines += ["", *(f"- {tables.plain_text(note)}" for note in notes)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).rstrip()) + "\n"


def over_seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Zero-shot rows with the means over the seeds of each update and data set; intervals, too, are means."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row["method"]), str(row["dataset"])), []).append(row)
    result = []
    for (method, dataset), group in groups.items():
        merged = {"method": title_of(method), "dataset": dataset, "images": group[0]["images"]}
        for metric in tables.METRICS:
            for key in (metric, f"{metric}_low", f"{metric}_high"):
                found = [value(row, key) for row in group if math.isfinite(value(row, key))]
                merged[key] = sum(found) / len(found) if found else math.nan
        result.append(merged)
    return result


def note_on_seeds(rows: Sequence[Row]) -> str:
    seeds = len({row.get("seed") for row in rows})
    return f"All numbers, the ends of the intervals too, are means over {seeds} seeds.\n" if seeds > 1 else ""


def corner(table: Table) -> str:
    return "held out" if table.held_out else "distortion"


def label(distortion: str | None) -> str:
    return "average" if distortion is None else "all of the test part" if distortion == WHOLE else distortion


def shown(table: Table, distortion: str | None, update: str) -> tuple[str, str]:
    """A number, and what stands in small type beside it: the range over seeds, or the average's interval."""
    if distortion is None:
        row = table.averages.get(update)
        return decimals(value(row, "srcc"), 3), tables.interval(row, "srcc")
    cell = table.cells[distortion, update]
    if 0 < cell.seeds < table.seeds:
        return decimals(cell.mean, 3), f"{cell.seeds} of {table.seeds} seeds"
    spread = f"{decimals(cell.low, 2)} to {decimals(cell.high, 2)}" if cell.seeds > 1 else ""
    return decimals(cell.mean, 3), spread


def comparisons(table: Table) -> list[tuple[str, str, str, str]]:
    """Update, '+0.031', '[0.012, 0.052]' and '8 of 10 cells', for all that were compared with ERM."""
    return [
        (update, _signed(value(row, "difference")), _interval(row), _wins(row))
        for update, row in table.averages.items()
        if update != BASELINE and math.isfinite(value(row, "difference"))
    ]


def _wins(row: Row) -> str:
    return f"{decimals(value(row, 'wins'), 0)} of {decimals(value(row, 'cells'), 0)} cells"


def _interval(row: Row) -> str:
    return "" if _side(row) is None else _range(value(row, "difference_low"), value(row, "difference_high"))


def _range(low: float, high: float) -> str:
    return f"[{decimals(low, 3)}, {decimals(high, 3)}]"


def _signed(difference: float) -> str:
    text = decimals(difference, 3)
    return f"+{text}" if text[0].isdigit() and float(text) > 0 else text


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def check(entries: Sequence[Mapping[str, Any]], keys: Sequence[str], what: str) -> None:
    """Raises ValueError for an entry without one of `keys`."""
    for index, entry in enumerate(entries):
        if missing := [key for key in keys if key not in entry]:
            raise ValueError(f"{what}[{index}] lacks {', '.join(missing)}; it has {', '.join(map(str, entry))}")
