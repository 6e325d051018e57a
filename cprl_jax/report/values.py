"""Numbers and names of plain rows, as text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def check(rows: Sequence[Row], keys: Iterable[str], what: str) -> None:
    """Raises ValueError for a row without one of `keys`."""
    for index, row in enumerate(rows):
        if missing := [key for key in keys if key not in row]:
            raise ValueError(f"{what}[{index}] lacks {', '.join(missing)}; it has {', '.join(map(str, row))}")


def number(content: Any) -> float:
    """A float; NaN for None and for text that is no number, such as an empty cell of a CSV."""
    try:
        return float(content)
    except (TypeError, ValueError):
        return math.nan


def value(row: Row | None, key: str) -> float:
    """row[key] as a float, NaN where row or key is absent."""
    return math.nan if row is None else number(row.get(key))


def distinct(rows: Iterable[Row], key: str) -> list[str]:
    """The values of a column, in order of first appearance."""
    return list(dict.fromkeys(str(row[key]) for row in rows))


def grouped(rows: Iterable[Row], keys: Sequence[str]) -> dict[tuple, list[Row]]:
    """Rows by their values of some columns, in order of first appearance."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def decimals(content: float, digits: int, *, signed: bool = False) -> str:
    """Fixed-point text that never says '-0.00'; '–' for NaN, '∞' for infinity; with a '+' above 0 where `signed`."""
    if not math.isfinite(content):
        return "–" if math.isnan(content) else "∞" if content > 0 else "-∞"
    text = f"{content:.{digits}f}"
    if float(text) == 0:
        return text.removeprefix("-")
    return f"+{text}" if signed and content > 0 else text


def bounds(low: float, high: float, digits: int = 2) -> str:
    """'[-0.21, 0.28]', or '' where either is not finite."""
    return f"[{decimals(low, digits)}, {decimals(high, digits)}]" if math.isfinite(low) and math.isfinite(high) else ""


def interval(row: Row | None, key: str, digits: int = 2) -> str:
    """The interval of a number, from `key`_low to `key`_high; '' where it or the number is absent."""
    known = math.isfinite(value(row, key))
    return bounds(value(row, f"{key}_low"), value(row, f"{key}_high"), digits) if known else ""


def side_of_zero(low: float, high: float, digits: int) -> int:
    """1 where an interval as printed lies above 0, -1 below, 0 where it holds 0 or is not known."""
    return int(round(low, digits) > 0) - int(round(high, digits) < 0) if math.isfinite(low + high) else 0


def shorten(name: str, length: int) -> str:
    """A long name without its middle: methods and files differ at their beginnings and ends."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"


def listed(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
