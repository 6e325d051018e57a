"""CSV files of labels: one line names the columns, one line follows for each image."""

import csv
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from absl import logging

from cprl_jax.data.dataset import listing
from cprl_jax.runtime.errors import UserError

COLUMNS = ("image", "mos", "reference", "distortion", "level", "std", "split")
WEAK = "# WEAK LABELS"  # how a file begins whose labels a formula computed
MOST_PROBLEMS = 20  # named in one message

SCALES = ((0, 1), (1, 5), (0, 5), (1, 10), (0, 10), (0, 100))  # of opinion scores

Problem = tuple[int, str]  # the line it is in, for their order, and its text

_SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # a line with which Excel is told how values are separated


class Row(NamedTuple):
    """A line: its number, its values by column without blanks around them, and what separates them in the file."""

    line: int
    values: dict[str, str]
    delimiter: str

    def number(self, column: str, default: str = "") -> float:
        """A value as a number, or NaN. A comma that separates no values is a decimal point, as in many countries."""
        text = self.values.get(column) or default
        try:
            return float(text if self.delimiter == "," else text.replace(",", "."))
        except ValueError:
            return float("nan")

    def problem(self, text: str) -> Problem:
        return self.line, f"line {self.line} ({self.values['image']!r}): {text}"


def read(path: Path, *, known: Collection[str] = COLUMNS) -> tuple[list[Row], list[Problem]]:
    """The rows that name an image, each another one, and what is wrong with others.

    The file is UTF-8, its values separated by commas, semicolons or tabs, or as a first line `sep=|` says. Lines that
    begin with # may come first, then a line that names the columns in any order, upper or lower case. Blank lines are
    skipped. `image` has forward slashes and no ./ before it.

    Args:
      path: the file.
      known: the columns that the caller reads, `image` and `mos` among them; others are logged.

    Raises:
      UserError: the file cannot be read, or has no such line, or no other.
    """
    try:
        lines = list(io.StringIO(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it as CSV UTF-8") from None
    places = [place for place, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    separator = _SEPARATOR.fullmatch(lines[places[0]].strip("\r\n")) if places else None
    if separator:
        del places[0]
    if not places:
        raise UserError(f"{path} is empty; it needs a line image,mos and a line for each image")
    start = places[0]
    delimiters = separator[1] if separator else ",;\t"
    columns, delimiter = _header(path, start + 1, lines[start], delimiters, known)
    reader = csv.reader(lines[start + 1 :], delimiter=delimiter, strict=True)
    rows, problems = [], []
    line_of_name: dict[str, int] = {}
    while True:
        line = start + 2 + reader.line_num
        try:
            values = next(reader, None)
        except csv.Error as error:
            problems.append((line, f"line {line}: {_reason(error)}"))
            continue
        if values is None:
            break
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(columns):
            more = len(values) > len(columns) and delimiter == ","
            hint = "; a decimal comma needs quotes, or another separator than ','" if more else ""
            problems.append((line, f"line {line}: {len(values)} values in {len(columns)} columns{hint}"))
            continue
        row = Row(line, {column: value.strip() for column, value in zip(columns, values, strict=True)}, delimiter)
        name = str(PurePosixPath(row.values["image"].replace("\\", "/"))) if row.values["image"] else ""
        row.values["image"] = name
        if not name:
            problems.append(row.problem("it names no image"))
        elif name in line_of_name:
            problems.append(row.problem(f"the image is listed before, in line {line_of_name[name]}"))
        else:
            rows.append(row)
        line_of_name.setdefault(name, line)
    if not rows and not problems:
        raise UserError(f"{path} names no image; write a line for each image below the line of the columns")
    return rows, problems


def other_scale(scores: Sequence[float], ends: tuple[float, float]) -> tuple[int, int] | None:
    """The first usual scale that holds all scores, if it is at most half as long as the one from `ends`; else None."""
    for low, high in SCALES:
        if low <= min(scores) and max(scores) <= high:
            return (low, high) if 2 * (high - low) <= abs(ends[1] - ends[0]) else None
    return None


def crowded(scores: Sequence[float], ends: tuple[float, float]) -> bool:
    """Whether nine of ten scores fill less than a fifth of the scale from `ends`, most likely because it is another."""
    low, high = np.percentile(scores, (5, 95))
    return 5 * (high - low) < abs(ends[1] - ends[0])


def refuse(what: str, problems: Collection[Problem]) -> None:
    """Raises UserError with all problems, if there are any, after `what`, such as 'labels.csv has'."""
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        shown = listing([text for _, text in sorted(problems)], most=MOST_PROBLEMS, separator="; ")
        raise UserError(f"{what} {count}; correct them: {shown}")


def _header(path: Path, line: int, text: str, delimiters: str, known: Collection[str]) -> tuple[list[str], str]:
    """The columns, in lower case, and what separates them."""
    for delimiter in delimiters:
        try:
            columns = [column.strip().lower() for column in next(csv.reader([text], delimiter=delimiter))]
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: {_reason(error)}") from None
        if {"image", "mos"} <= set(columns):
            twice = sorted({column for column in columns if column in known and columns.count(column) > 1})
            if twice:
                raise UserError(f"{path}, line {line}: column {listing(twice)} occurs twice; name each column once")
            if unknown := [column for column in columns if column not in known]:
                logging.info("%s: columns that are ignored: %s", path, listing(unknown))
            return columns, delimiter
    others = [column for column in known if column not in ("image", "mos")]
    more = f", and may name {', '.join(others)}" if others else ""
    raise UserError(
        f"{path}, line {line}: {text.strip()[:80]!r} must name the columns image and mos{more}, separated by commas, "
        "semicolons or tabs"
    )


def _reason(error: csv.Error) -> str:
    if "field larger" in str(error):
        return f"a value of more than {csv.field_size_limit()} letters; most likely a quotation mark is not closed"
    return str(error)
