"""What observers said of a run's candidates, and which of them are below the just-noticeable difference. On the host.

Zhang et al., Section 3.2: a perturbed image is below the JND if observers fail to tell it from the original 75 % of the
time, so if fewer than a quarter of the answers say "different".
"""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cprl_jax.runtime.errors import UserError

FILE = "study/analysis/counted.csv"  # in a run's folder: where `cprl_jax.study analyse` leaves it
COLUMNS = ("observer", "trial", "model", "fidelity", "image", "candidate", "seen")
# Share of answers that saw a difference from which on it is noticeable. Of two alternatives one is right without seeing
# anything in half of the trials: 0.625 is a quarter, corrected for that.
LIMITS = {"yesno": 0.25, "flicker": 0.25, "2afc": 0.625}
_NORMAL = 1.959964  # 97.5 % of the normal distribution


class Observations(NamedTuple):
    """Answers that count.

    Attributes:
      limit: of `LIMITS`.
      observers: their names.
      cells: (model, fidelity, image) -> an array [answers, 3] of whole numbers: place in `observers`, candidate, seen.
    """

    limit: float
    observers: tuple[str, ...]
    cells: Mapping[tuple[str, str, str], np.ndarray]

    def of(self, cell: tuple[str, str, str], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of answers that saw a difference, and of all answers, both [observers, count], of the candidates."""
        seen, asked = np.zeros((2, len(self.observers), count))
        for observer, candidate, value in self.cells.get(cell, ()):
            if candidate < count:
                asked[observer, candidate] += 1
                seen[observer, candidate] += value
        return seen, asked


class Verdicts(NamedTuple):
    """Share of answers that saw a difference (NaN without answers), its interval, and whether it is below the JND."""

    share: Float[np.ndarray, "*shape"]
    low: Float[np.ndarray, "*shape"]
    high: Float[np.ndarray, "*shape"]
    below: Bool[np.ndarray, "*shape"]


def judge(seen: Float[np.ndarray, "*shape"], asked: Float[np.ndarray, "*shape"], limit: float) -> Verdicts:
    """The verdicts on candidates that were `seen` so many times of those `asked`, with Wilson's 95 % intervals.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927: unlike the plain
    interval it has its coverage with 15 answers, also where none or all say the same.
    """
    seen, asked = np.asarray(seen, np.float64), np.asarray(asked, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share, z2 = seen / asked, _NORMAL**2
        centre = (seen + z2 / 2) / (asked + z2)
        half = _NORMAL * np.sqrt(seen * (1 - share) + z2 / 4) / (asked + z2)
        # Rounding must not put a bound beyond the share where nobody, or everybody, saw a difference.
        return Verdicts(share, np.minimum(centre - half, share), np.maximum(centre + half, share), share < limit)


def collect(rows: Iterable[Mapping[str, Any]]) -> Observations:
    """Observations from rows with `COLUMNS`, all of one trial.

    Raises:
      ValueError: none, or of several trials.
    """
    rows = list(rows)
    trials = {row["trial"] for row in rows}
    if len(trials) != 1 or not trials <= set(LIMITS):
        raise ValueError(
            f"answers must be of one trial of {', '.join(LIMITS)}, got {', '.join(sorted(trials)) or 'none'}"
        )
    places: dict[str, int] = {}
    cells: dict[tuple[str, str, str], list[tuple[int, int, int]]] = {}
    for row in rows:
        observer = places.setdefault(row["observer"], len(places))
        answer = (observer, int(row["candidate"]), int(row["seen"]))
        cells.setdefault((row["model"], row["fidelity"], row["image"]), []).append(answer)
    return Observations(
        LIMITS[trials.pop()], tuple(places), {cell: np.array(answers) for cell, answers in cells.items()}
    )


def read(path: Path) -> Observations:
    """Observations from the file that `cprl_jax.study analyse` writes.

    Raises:
      UserError: there is none, or it is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return collect(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(
            f"config.perceptual.selection is 'observers', but there is no {path}: ask observers with `python -m "
            "cprl_jax.study serve` and give `python -m cprl_jax.study analyse`, or select by 'threshold'"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); make it anew by `python -m cprl_jax.study analyse`"
        ) from None
