"""One table for every result: rows of plain numbers, printed to the terminal, Markdown, HTML and CSV."""

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from cprl_jax.report.values import Row, decimals, shorten, value

LONGEST_NAME = 32  # characters of a line's name in the terminal


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
      key: where its number is in a row.
      title: the heading.
      group: a second heading, over neighbouring columns.
      of: the value of the table's `across` whose row is shown here; None for the first row of a line.
      digits: decimals.
      text: the cell's text, for what is no plain number.
      note: small print beside the number, such as its interval.
      best: 1 marks the largest number, -1 the smallest.
      tone: on the page, a colour from -1 (orange) over 0 (none) to 1 (blue), or the name of a CSS class.
      wrapped: on the page, long text, which is broken into lines.
    """

    key: str
    title: str
    _: dataclasses.KW_ONLY
    group: str = ""
    of: Any = None
    digits: int = 3
    text: Callable[[Row], str] | None = None
    note: Callable[[Row], str] = lambda row: ""
    best: int = 0
    tone: Callable[[Row], float | str] = lambda row: 0.0
    wrapped: bool = False


class Cell(NamedTuple):
    text: str
    note: str = ""
    best: bool = False
    tone: float | str = 0.0


class Line(NamedTuple):
    name: str
    subtitle: str
    flagged: bool
    cells: list[Cell]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows arranged for reading. A line may hold several rows side by side, and lines may stand in blocks.

    Attributes:
      rows: plain numbers and texts, as in the CSV.
      columns: what is shown of them.
      line: the keys by which rows belong to one line; the last one names it.
      across: the key whose values stand side by side in a line; "" where each line is one row.
      heading: the heading over the lines' names.
      name: a line's name, from its first row; by default the value of its last key.
      subtitle: on the page and in Markdown, small print under the name.
      block: the heading of the block that a line is in.
      block_heading: in Markdown, the heading of the column of blocks.
      flag: whether a line's name is marked with '!'.
      competes: whether a row may be marked as the best.
      contest: "down": the best of a column in each block; "across": the best of a line.
      legend: explains the columns.
      best_legend: what the mark of the best means.
    """

    rows: Sequence[Row]
    columns: Sequence[Column]
    line: Sequence[str]
    _: dataclasses.KW_ONLY
    across: str = ""
    heading: str = ""
    name: Callable[[Row], str] | None = None
    subtitle: Callable[[Row], str] | None = None
    block: Callable[[Row], str] | None = None
    block_heading: str = ""
    flag: Callable[[Row], bool] = lambda row: False
    competes: Callable[[Row], bool] = lambda row: True
    contest: str = "down"
    legend: str = ""
    best_legend: str = ""

    def __bool__(self) -> bool:
        return bool(self.rows)

    def blocks(self) -> dict[str, list[Line]]:
        """The lines under the heading of their block, both in order of first appearance; '' without blocks."""
        blocks: dict[str, dict[tuple, dict[Any, Row]]] = {}
        for row in self.rows:
            lines = blocks.setdefault(self.block(row) if self.block else "", {})
            lines.setdefault(tuple(row[key] for key in self.line), {})[row.get(self.across)] = row
        return {heading: self._lines(list(lines.values())) for heading, lines in blocks.items()}

    def _lines(self, lines: list[dict[Any, Row]]) -> list[Line]:
        """One block, from the rows of each line by their value of `across`."""
        firsts = [next(iter(rows.values())) for rows in lines]
        shown = [
            [first if column.of is None else rows.get(column.of) for column in self.columns]
            for first, rows in zip(firsts, lines, strict=True)
        ]
        bests = self._bests(shown)
        return [
            Line(
                self.name(first) if self.name else str(first[self.line[-1]]),
                self.subtitle(first) if self.subtitle else "",
                self.flag(first),
                [self._cell(row, self.columns[place], (index, place) in bests) for place, row in enumerate(rows)],
            )
            for index, (first, rows) in enumerate(zip(firsts, shown, strict=True))
        ]

    def _cell(self, row: Row | None, column: Column, best: bool) -> Cell:
        if row is None:
            return Cell("–")
        text = column.text(row) if column.text else decimals(value(row, column.key), column.digits)
        return Cell(text, column.note(row), best, column.tone(row))

    def _bests(self, shown: list[list[Row | None]]) -> set[tuple[int, int]]:
        """(line, column) of the best numbers as printed. Two must compete; equal ones are all the best."""
        contests: dict[int, dict[tuple[int, int], float]] = {}
        for index, place in itertools.product(range(len(shown)), range(len(self.columns))):
            row, column = shown[index][place], self.columns[place]
            content = value(row, column.key)
            if column.best and math.isfinite(content) and self.competes(row):
                contest = contests.setdefault(index if self.contest == "across" else place, {})
                contest[index, place] = round(column.best * content, column.digits)
        rivals = [contest for contest in contests.values() if len(contest) > 1]
        return {cell for contest in rivals for cell, content in contest.items() if content == max(contest.values())}

    def groups(self) -> list[tuple[str, int, int]]:
        """(heading, first column, number of columns) of neighbouring columns with one heading over them."""
        runs = [list(run) for _, run in itertools.groupby(enumerate(self.columns), lambda item: item[1].group)]
        return [(run[0][1].group, run[0][0], len(run)) for run in runs]

    def explained(self, mark: str = "Bold:") -> str:
        """The legend, and what the mark of the best means where there is one."""
        marked = any(cell.best for lines in self.blocks().values() for line in lines for cell in line.cells)
        best = f"{mark} {self.best_legend}." if marked and self.best_legend else ""
        return " ".join(filter(None, [best, self.legend]))

    def text(self) -> str:
        """For a terminal: aligned columns, * at the best."""
        blocks = self.blocks()
        lines = [line for block in blocks.values() for line in block]
        indents = ["  " * bool(heading) for heading, block in blocks.items() for _ in block]
        names = [shorten(line.name, LONGEST_NAME) + " !" * line.flagged for line in lines]
        names = [self.heading, *(indent + name for indent, name in zip(indents, names, strict=True))]
        width = max(map(len, names))
        over, printed = " " * width, [name.ljust(width) for name in names]
        for heading, start, count in self.groups():
            columns = [
                _aligned(self.columns[i], [line.cells[i] for line in lines]) for i in range(start, start + count)
            ]
            rows = ["  ".join(fields) for fields in zip(*columns, strict=True)]
            heading = f" {heading} " if heading else ""
            width = max(len(heading), len(rows[0]))
            over += "  " + heading.center(width, "─" if heading else " ")
            printed = [f"{line}  {row.rjust(width)}" for line, row in zip(printed, rows, strict=True)]
        head, *body = (line.rstrip() for line in printed)
        shown, remaining = [over.rstrip()] * bool(over.strip()) + [head], iter(body)
        for heading, block in blocks.items():
            shown += [heading] * bool(heading) + [next(remaining) for _ in block]
        return "\n".join(shown)

    def markdown(self) -> str:
        """In Markdown: the best in bold, blocks as a column."""
        header = [self.block_heading] * bool(self.block) + [self.heading] + ["what ran"] * bool(self.subtitle)
        rule = ["---"] * len(header) + ["---:"] * len(self.columns)
        header += [f"{column.group}: {column.title}" if column.group else column.title for column in self.columns]
        printed = [[*map(escaped, header)], rule]
        for heading, lines in self.blocks().items():
            for line in lines:
                cells = [escaped(heading)] * bool(self.block) + [escaped(line.name) + " !" * line.flagged]
                cells += [escaped(line.subtitle)] * bool(self.subtitle)
                for cell in line.cells:
                    cells.append(f"{f'**{cell.text}**' if cell.best else escaped(cell.text)} {cell.note}".strip())
                printed.append(cells)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in printed)

    def csv(self) -> str:
        """All rows and all their columns: those of the lines first, then those that are shown, then the others."""
        return csv_text(self.rows, [*self.line, *filter(None, [self.across]), *(column.key for column in self.columns)])


def _aligned(column: Column, cells: Sequence[Cell]) -> list[str]:
    """The title and the cells of a column, all of one width: numbers, then small print."""
    space = " " * bool(column.best)
    numbers = [column.title + space, *(cell.text + ("*" if cell.best else space) for cell in cells)]
    notes = ["", *(f" {cell.note}" if cell.note else "" for cell in cells)]
    width, small = (max(map(len, texts)) for texts in (numbers, notes))
    return [number.rjust(width) + note.rjust(small) for number, note in zip(numbers, notes, strict=True)]


def csv_text(rows: Sequence[Row], first: Sequence[str]) -> str:
    """Rows as CSV: the columns of `first`, then the others as they come."""
    columns = list(dict.fromkeys([*first, *(key for row in rows for key in row)]))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(row.get(column, ""), column) for column in columns] for row in rows)
    return file.getvalue()


def _field(content: Any, column: str) -> str:
    """Numbers with every digit they need to be read back exactly; radius without a needless '.0'."""
    if isinstance(content, Integral):  # bool, int, NumPy integers
        return str(int(content))
    if not hasattr(content, "__float__"):  # text; what has it are Python's, NumPy's and JAX's numbers
        return "" if content is None else str(content)
    content = float(content)
    return str(int(content)) if column == "radius" and content.is_integer() else repr(content)


def escaped(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for character in "\\`*_{}[]<>#|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
