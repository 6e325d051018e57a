"""Tables of scores (CSV, XLS, XLSX), and what releases share whose file names say scene, distortion and level."""

import csv
import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cprl_jax.data.dataset import listing
from cprl_jax.data.releases._common import NAN, Files, Record, check_range, check_scores, find_images, one_line, place

Cell = str | float | None


def read_table(
    path: Path, columns: Sequence[str], problems: list[str], *, optional: Sequence[str] = (), sheet: str = ""
) -> list[dict[str, Cell]] | None:
    """The rows below a table's header as dictionaries, or None and what is wrong with the table in `problems`.

    Columns are found by their headers, without regard to case and to the width of blanks. Empty rows are skipped.

    Args:
      columns: headers that must exist; the keys of the dictionaries.
      optional: headers of columns that are read if they exist.
      sheet: name of the sheet, for XLSX; '' is the first one.
    """
    sheets = read_sheets(path, problems, sheet=sheet)
    if sheets is None:
        return None
    header, *rows = (sheets[sheet] if sheet else next(iter(sheets.values()))) or [[]]
    place_of = {_folded(cell): index for index, cell in reversed(list(enumerate(header)))}
    missing = [column for column in columns if _folded(column) not in place_of]
    if missing:
        present = listing([str(cell) for cell in header if cell not in ("", None)], most=12) or "none at all"
        problems.append(f"{path.name} has no column {listing(missing)}, only {present}")
        return None
    place_of = {column: place_of[_folded(column)] for column in (*columns, *optional) if _folded(column) in place_of}
    return [{column: row[i] if i < len(row) else "" for column, i in place_of.items()} for row in rows]


def read_sheets(path: Path, problems: list[str], *, sheet: str = "") -> dict[str, list[list[Cell]]] | None:
    """The cells of each sheet without its empty rows (a CSV file is one sheet), or None and a problem.

    Args:
      sheet: the only sheet to read, for XLSX files with many; '' is all of them.
    """
    try:
        sheets = {".csv": _read_csv, ".xls": _read_xls, ".xlsx": _read_xlsx}[path.suffix.lower()](path, sheet)
    except Exception as error:  # each library has different ones for damaged files
        problems.append(f"{path.name} is not a readable {path.suffix[1:].upper()} file ({one_line(error)})")
        return None
    if sheet and sheet not in sheets:
        problems.append(f"{path.name} has no sheet {sheet!r}, only {listing(list(sheets))}")
        return None
    return {name: [row for row in rows if any(cell not in ("", None) for cell in row)] for name, rows in sheets.items()}


def _read_csv(path: Path, sheet: str) -> dict[str, list[list[Cell]]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return {sheet: [[cell.strip() for cell in row] for row in csv.reader(file, strict=True)]}


def _read_xls(path: Path, sheet: str) -> dict[str, list[list[Cell]]]:
    import xlrd

    with xlrd.open_workbook(path) as book:
        return {page.name: [page.row_values(row) for row in range(page.nrows)] for page in book.sheets()}


def _read_xlsx(path: Path, sheet: str) -> dict[str, list[list[Cell]]]:
    import openpyxl

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)  # data_only: values instead of formulas
    try:
        wanted = [sheet] if sheet in book.sheetnames else book.sheetnames
        for name in wanted:
            book[name].reset_dimensions()  # what other programs write there may be too small
        unread = {name: [] for name in book.sheetnames if sheet}
        return unread | {name: [list(row) for row in book[name].iter_rows(values_only=True)] for name in wanted}
    finally:
        book.close()


def _folded(cell: Cell) -> str:
    return " ".join(str(cell).split()).lower()


def text(cell: Cell) -> str:
    """A cell as text without surrounding blanks; '' if it is empty."""
    return "" if cell is None else str(cell).strip()


def number(cell: Cell) -> float:
    """A cell as a number; NaN, which every check of scores refuses, if it holds none."""
    try:
        return float(text(cell))
    except ValueError:
        return NAN


def numbers(pattern: re.Pattern, name: str, largest: Sequence[int]) -> tuple[int, ...] | None:
    """The numbers in a file name, each 1 to the largest that the release has; None for any other name."""
    matched = pattern.fullmatch(name)
    values = tuple(map(int, matched.groups())) if matched else ()
    fits = matched and all(1 <= value <= most for value, most in zip(values, largest, strict=True))
    return values if fits else None


def find_inside(release: Path, name: str) -> Path | None:
    """A file or folder of that name, whatever its case, in the release or in one of its folders."""
    for folder in (release, *folders_of(release)):
        if folder.is_dir():
            alike = [path for path in sorted(folder.iterdir()) if path.name.lower() == name.lower()]
            if alike:
                return next((path for path in alike if path.name == name), alike[0])
    return None


def folders_of(release: Path) -> list[Path]:
    """The folders directly below, in the order of their names."""
    return sorted(path for path in release.iterdir() if path.is_dir()) if release.is_dir() else []


class Scale(NamedTuple):
    """The ends of a release's scale: the worst and the best score that it allows, which become 0 and 100."""

    worst: float
    best: float

    def mos(self, score: float) -> float:
        return 100 * (score - self.worst) / (self.best - self.worst)


@dataclasses.dataclass(frozen=True)
class Listed:
    """One row of a release's list of scores; the fields are those of `Record`, `std` None where none is given."""

    row: int
    name: str
    score: float
    std: float | None = None
    reference: str = ""
    distortion: str = ""
    level: int = 0
    part: str = ""

    @property
    def place(self) -> str:
        return place(self.row, self.name)


def match(listed: Sequence[Listed], files: Files, scale: Scale, problems: list[str]) -> tuple[Record, ...]:
    """Checks scores and finds files: a record for each row that has a file which no other row has.

    Args:
      files: `Files`, or whatever has its method `find`.
    """
    labels = [item.place for item in listed]
    check_scores([item.score for item in listed], *scale, problems, labels=labels)
    rated = [item for item in listed if item.std is not None]
    deviations, rated_labels = [item.std for item in rated], [item.place for item in rated]
    check_scores(deviations, 0, np.inf, problems, labels=rated_labels, what="standard deviation")
    paths = find_images(files, [item.name for item in listed], labels, problems)
    return tuple(
        Record(
            row=item.row,
            name=item.name,
            path=path,
            mos=scale.mos(item.score),
            mos_raw=item.score,
            mos_std=NAN if item.std is None else item.std,
            reference=item.reference or item.name,
            distortion=item.distortion,
            level=item.level,
            part=item.part,
        )
        for item, path in zip(listed, paths, strict=True)
        if path is not None
    )


def check_complete(names: Iterable[str], expected: Sequence[str], what: str, problems: list[str]) -> None:
    """A problem that names those of the release's images that the list does not have, whatever their case."""
    present = {name.lower() for name in names}
    missing = [name for name in expected if name.lower() not in present]
    if missing:
        problems.append(f"{what} lacks {len(missing)} of the {len(expected)} images of the release: {listing(missing)}")


def check_published_range(
    scores: Sequence[float], scale: Scale, published: tuple[float, float], what: str, problems: list[str]
) -> None:
    """As `_common.check_range`, for the scores that are on the scale; the others are separate problems."""
    scores = [score for score in scores if scale.worst <= score <= scale.best]
    check_range(scores, *published, f"{what}: scores", problems)


def check_direction(listed: Sequence[Listed], problems: list[str]) -> None:
    """A problem unless the mean score falls from the mildest level to the strongest, as higher is better."""
    levels = sorted({item.level for item in listed})
    if len(levels) < 2:
        return
    mild, strong = (
        np.mean([item.score for item in listed if item.level == level and np.isfinite(item.score)] or [NAN])
        for level in (levels[0], levels[-1])
    )
    if mild <= strong:
        problems.append(
            f"the labels look flipped: their mean is {mild:.4g} at level {levels[0]} and {strong:.4g} at level "
            f"{levels[-1]}, but higher must be better; take the scores of the release as they are"
        )
