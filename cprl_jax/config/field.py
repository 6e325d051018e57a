"""One setting: its default, its bounds, its unit and its meaning, declared once and read by everything else."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from cprl_jax.runtime.errors import UserError

_TYPES = ((bool, "truth value"), (str, "text"), (numbers.Integral, "whole number"), (numbers.Real, "number"))
LARGEST = 2**31 - 1  # of a whole number: devices count in int32


@dataclasses.dataclass(frozen=True)
class Field:
    """A setting of a configuration.

    Attributes:
      default: its type is the setting's type; the bounds of a tuple hold for each of its elements.
      help: what it does, in a few words.
      unit: of a number, such as '1/255' or 'MOS points'.
      at_least, above, at_most, below: bounds of a number.
      choices: the allowed values; () for any.
      zero: what 0 stands for where it is allowed beside the bounds ('off', 'as config.train says'); '' if it is not.
    """

    default: Any
    help: str = ""
    unit: str = ""
    _: dataclasses.KW_ONLY
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple = ()
    zero: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises UserError, naming the setting as `name`, for a value that is not allowed."""
        self.check_type(name, value)
        for item in value if isinstance(self.default, tuple) else (value,):
            self._check_one(name, value, item)

    def check_type(self, name: str, value: Any) -> None:
        """Raises UserError for a value of another type than the default's; a list counts as a tuple."""
        example, several = self.default, isinstance(self.default, tuple)
        if several:  # what an empty one may hold, its bounds tell
            has_bounds = any(bound is not None for bound in (self.at_least, self.above, self.at_most, self.below))
            example = self.default[0] if self.default else 0.0 if has_bounds else ""
        kind, word = next((kind, word) for kind, word in _TYPES if isinstance(example, kind))
        items = value if several and isinstance(value, list | tuple) else (value,)
        wrong = [item for item in items if not isinstance(item, kind) or (isinstance(item, bool) and kind is not bool)]
        if wrong or (several and items is not value):
            named = f"it may hold {word}s, as in {(example,)!r}" if several else f"it must be a {word}"
            raise UserError(f"{name} is {value!r}; {named}")

    def _check_one(self, name: str, value: Any, item: Any) -> None:
        if self.choices:
            if item not in self.choices:
                verb = "names" if isinstance(self.default, tuple) else "is"
                raise UserError(f"{name} {verb} {item!r}{near(item, self.choices)}; allowed: {listed(self.choices)}")
            return
        if isinstance(item, bool | str) or (self.zero and item == 0):
            return
        if isinstance(item, numbers.Integral) and abs(item) > LARGEST:
            raise UserError(f"{name} is {value}; it must be at most {LARGEST:,}")
        if not math.isfinite(item):
            raise UserError(f"{name} is {value}; it must be a finite number")
        bounds = (
            (self.at_least, float(item).__ge__, "at least"),
            (self.above, float(item).__gt__, "above"),
            (self.at_most, float(item).__le__, "at most"),
            (self.below, float(item).__lt__, "below"),
        )
        if not all(holds(float(bound)) for bound, holds, _ in bounds if bound is not None):
            raise UserError(f"{name} is {value}; it must be {self.described_bounds()}")

    def described_bounds(self) -> str:
        """'at least 0 and below 1', 'above 0 (1/255), or 0: off'; '' without bounds."""
        words = (("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below))
        text = " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)
        text += f" ({self.unit})" if text and self.unit else ""
        return text + (f", or 0: {self.zero}" if text and self.zero else "")


def listed(names: Iterable) -> str:
    """Names, for an error message."""
    return ", ".join(str(name) for name in names)


def near(word: Any, names: Iterable) -> str:
    """' (did you mean ...?)' where one of the names is like the word, else ''."""
    match = difflib.get_close_matches(str(word), [str(name) for name in names], n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Field]:
    """Nested blocks of fields as {'train.batch_size': Field(...)}."""
    flat: dict[str, Field] = {}
    for name, entry in fields.items():
        flat |= {prefix + name: entry} if isinstance(entry, Field) else flatten(entry, f"{prefix}{name}.")
    return flat
