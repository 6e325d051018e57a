"""Finding one's way in the rows of a result: which methods, which attacks, which number. Nothing is computed here."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Condition = tuple[str, float]  # attack, radius in units of 1/255

ROW_KEYS = ("method", "attack", "radius", "against", "srcc", "plcc", "rmse")
SCORE_KEYS = ("method", "attack", "radius", "name", "mos", "clean", "score")
AGAINST = ("mos", "prediction")
CLEAN = ("none", 0.0)
HEADLINE_RADIUS = 2.0
_ATTACK_ORDER = ("none", "fgsm", "pgd")


def check(entries: Sequence[Row], keys: Iterable[str], what: str) -> None:
    """Raises ValueError for an entry without one of `keys`, with no radius, or compared with something unheard of."""
    for index, entry in enumerate(entries):
        missing = [key for key in keys if key not in entry]
        if missing:
            raise ValueError(f"{what}[{index}] lacks {', '.join(missing)}; it has {', '.join(map(str, entry))}")
        if "against" in keys and entry["against"] not in AGAINST:
            raise ValueError(f"{what}[{index}]: against must be one of {', '.join(AGAINST)}, got {entry['against']!r}")
        if not math.isfinite(condition(entry)[1]):
            raise ValueError(f"{what}[{index}]: radius must be a number (units of 1/255), got {entry['radius']!r}")


def number(value: Any) -> float:
    """A float; NaN for what is absent (None, '' or text that is no number, as in an unfilled cell of a CSV)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def value(row: Row | None, key: str) -> float:
    """row[key] as a float, NaN where row or key is absent."""
    return math.nan if row is None else number(row.get(key))


def methods(entries: Iterable[Row]) -> list[str]:
    """Methods in order of first appearance."""
    return list(dict.fromkeys(str(entry["method"]) for entry in entries))


def condition(entry: Row) -> Condition:
    """(attack, radius) as a key: radii that print alike are alike, and no attack has radius 0."""
    attack = str(entry["attack"])
    return CLEAN if attack == "none" else (attack, float(f"{number(entry['radius']):g}"))


def conditions(entries: Iterable[Row]) -> list[Condition]:
    """All (attack, radius): no attack first, then FGSM, PGD and others as they appear, each by growing radius."""
    found = list(dict.fromkeys(condition(entry) for entry in entries))
    attacks = list(dict.fromkeys([*_ATTACK_ORDER, *(attack for attack, _ in found)]))
    return sorted(found, key=lambda pair: (attacks.index(pair[0]), pair[1]))


def headline(found: Iterable[Condition]) -> Condition | None:
    """The condition that stands for the rest: PGD (else FGSM, else any attack) at 2/255 or the nearest radius to it."""
    attacked = [pair for pair in found if pair[0] != "none"]
    for attack in ("pgd", "fgsm"):
        if any(pair[0] == attack for pair in attacked):
            attacked = [pair for pair in attacked if pair[0] == attack]
            break
    return min(attacked, key=lambda pair: (abs(pair[1] - HEADLINE_RADIUS), pair[1]), default=None)


def find(rows: Iterable[Row], method: str, pair: Condition, against: str) -> Row | None:
    """The row of one method, condition and comparison, or None."""
    for row in rows:
        if row["method"] == method and condition(row) == pair and row["against"] == against:
            return row
    return None


def attack_name(attack: str) -> str:
    """'PGD' for 'pgd', 'target free' for 'target_free'."""
    return attack.upper() if len(attack) <= 4 else attack.replace("_", " ")


def condition_name(pair: Condition) -> str:
    """'no attack', 'PGD at 2/255'."""
    attack, radius = pair
    return "no attack" if attack == "none" else f"{attack_name(attack)} at {radius:g}/255"


def decimals(number_: float, digits: int, absent: str = "–") -> str:
    """Fixed-point text that never says '-0.00'; `absent` for NaN."""
    if not math.isfinite(number_):
        return absent
    text = f"{number_:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def shorten(name: str, length: int) -> str:
    """A long name with its middle left out: beginnings and ends are what tells methods and files apart."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"
