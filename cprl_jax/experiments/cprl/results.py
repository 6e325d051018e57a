"""What a CPRL run comes to, as plain rows, and finding one's way in them."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cprl_jax.report.values import Row, check, distinct, number

KEYS = ("method", "attack", "radius", "against", "srcc", "plcc", "rmse")
SCORE_KEYS = ("method", "attack", "radius", "name", "mos", "clean", "score")
DIFFERENCE_KEYS = ("method", "baseline", "attack", "radius", "difference", "low", "high")
EXAMPLE_KEYS = ("method", "name", "attack", "radius", "mos", "before", "after", "image", "attacked")
CHECK_KEYS = ("name", "verdict", "numbers", "explanation")
AGAINST = ("mos", "prediction")
BASELINES = ("plain_longer", "plain")  # the first of them that ran is what the other methods are compared with
HEADLINE = (("pgd", "fgsm"), 2.0)  # the first of these attacks that ran, at this radius, stands for the rest

Condition = tuple[str, float]  # attack, radius in 1/255
CLEAN: Condition = ("none", 0.0)


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that a report shows. Anything but `rows` may be empty, and any number may be NaN.

    Attributes:
      rows: those of table.csv, one for each (method, attack, radius, against): `method`; `attack` ('none', or a name of
        a table attack: 'pgd', 'universal:other'); `radius` in 1/255, 0 for attacks without one; `against` ('mos': the
        labels; 'prediction': the model's clean scores); `srcc`, `plcc`, `rmse`. Where known, also their intervals
        (`srcc_low`, `srcc_high`, ...); the same numbers after the attacked images were rounded to 8 bits (`srcc_8bit`,
        ...); `direction`, `steps` and `restarts` of the attack; `ssim` (mean over the attacked images), `max_change`
        (1/255), `zero_gradient_fraction`, `score_std` (standard deviation of the scores), `r` and `images`.
      scores: those of scores.csv, one for each (method, attack, radius, image): `name`, `mos`, `clean` and `score`
        (before and after the attack), all 0..100.
      differences: those of differences.csv, from `findings.differences`.
      zero_shot: those of zero_shot.csv, one for each (method, other data set), from `evaluation.zero_shot.evaluate`.
      robustness: one entry per method, with `method` and any of: `checks`, a list of what `robustness.trust.check`
        returns, as dictionaries; `landscape`, with `image` (its name), `scores` [points, points], `along_gradient` and
        `along_random` (1/255), `zero_gradient_fraction`; `integrals`, attack -> integral robustness; and
        `activations`, with `clean` and `attacked` [channels] and `radius` (1/255); and `certificates`, with the rows
        `summary` and `images` of `certificates.certificates`.
      examples: images to show: `method`, `name`, `attack`, `radius`, `mos`, `before`, `after`, `image`
        (uint8 [height, width, 3]) and `attacked` (float in [0, 1], same shape).
      histories: method -> rows with `step`, `loss` and any column with 'srcc' in its name; empty cells are skipped.
      titles: what each method is called, by what ran: {"cprl": "CPRL (loss + SortMask)"}.
      budgets: how each method was trained and chosen, in a line.
      attack_titles, attack_legends: what each attack in `rows` is called, and a sentence that explains it.

    Raises:
      ValueError: an entry lacks a key, or a row has no radius or is compared with something unknown.
    """

    rows: Sequence[Row]
    _: dataclasses.KW_ONLY
    scores: Sequence[Row] = ()
    differences: Sequence[Row] = ()
    zero_shot: Sequence[Row] = ()
    robustness: Sequence[Mapping[str, Any]] = ()
    examples: Sequence[Mapping[str, Any]] = ()
    histories: Mapping[str, Sequence[Row]] = dataclasses.field(default_factory=dict)
    titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    budgets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    attack_titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    attack_legends: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.rows, KEYS, "rows")
        check(self.scores, SCORE_KEYS, "scores")
        check(self.differences, DIFFERENCE_KEYS[:5], "differences")
        check(self.examples, EXAMPLE_KEYS, "examples")
        for entry in self.robustness:
            check(entry.get("checks", ()), CHECK_KEYS, f"checks of {entry['method']}")
        for index, row in enumerate(self.rows):
            if row["against"] not in AGAINST:
                raise ValueError(f"rows[{index}]: against must be one of {', '.join(AGAINST)}, got {row['against']!r}")
            if not math.isfinite(condition(row)[1]):
                raise ValueError(f"rows[{index}]: radius must be a number (units of 1/255), got {row['radius']!r}")

    @property
    def methods(self) -> list[str]:
        """All methods, in order of first appearance."""
        named = distinct([*self.rows, *self.scores, *self.robustness, *self.examples], "method")
        return list(dict.fromkeys([*named, *self.histories]))

    @property
    def landscapes(self) -> dict[str, Mapping[str, Any]]:
        """The score landscapes by method."""
        return {entry["method"]: entry["landscape"] for entry in self.robustness if entry.get("landscape")}

    @property
    def activations(self) -> dict[str, Mapping[str, Any]]:
        """The mean activations of the trunk's channels by method."""
        return {entry["method"]: entry["activations"] for entry in self.robustness if entry.get("activations")}

    def certificates(self, part: str) -> list[Row]:
        """The rows 'summary' or 'images' of all methods' certificates, each with its method."""
        entries = [(entry["method"], entry.get("certificates") or {}) for entry in self.robustness]
        return [{"method": method, **row} for method, found in entries for row in found.get(part, ())]

    @functools.cached_property
    def headline_scores(self) -> list[Row]:
        """The rows of `scores` under the headline attack."""
        headline = self.headline
        return [row for row in self.scores if condition(row) == headline]

    @property
    def checks(self) -> list[Row]:
        """The trust checks of all methods, each with its method."""
        return [{"method": entry["method"], **row} for entry in self.robustness for row in entry.get("checks", ())]

    @property
    def headline(self) -> Condition | None:
        """The condition that stands for the rest: as `HEADLINE` says, or the nearest to it; None without attacks."""
        attacked = [pair for pair in conditions(self.rows) if pair != CLEAN]
        attacks, radius = HEADLINE
        chosen = next((attack for attack in attacks if any(pair[0] == attack for pair in attacked)), None)
        candidates = [pair for pair in attacked if chosen in (None, pair[0])]
        return min(candidates, key=lambda pair: (abs(pair[1] - radius), pair[1]), default=None)

    def rows_of(self, method: str, against: str = "mos") -> list[Row]:
        """The rows of one method and comparison: no attack first, then the attacks, each by growing radius."""
        order = {pair: place for place, pair in enumerate(conditions(self.rows))}
        rows = [row for row in self.rows if (row["method"], row["against"]) == (method, against)]
        return sorted(rows, key=lambda row: order[condition(row)])

    def find(self, method: str, pair: Condition | None, against: str = "mos") -> Row | None:
        """The row of one method, condition and comparison, or None."""
        return next((row for row in self.rows_of(method, against) if condition(row) == pair), None)

    def attack_title(self, attack: str) -> str:
        """'PGD' for 'pgd', 'Universal (other)' for 'universal:other', where these are the titles."""
        name, _, variant = attack.partition(":")
        title = self.attack_titles.get(name, name.replace("_", " "))
        return self.attack_titles.get(attack, f"{title} ({variant})" if variant else title)

    def title(self, pair: Condition | None) -> str:
        """'no attack', 'PGD at 2/255', 'Perceptual (ssim)'; '' for None."""
        if pair is None:
            return ""
        name = self.attack_title(pair[0])
        return "no attack" if pair == CLEAN else f"{name} at {pair[1]:g}/255" if pair[1] else name


def condition(row: Row) -> Condition:
    """(attack, radius) as a key: radii that print alike are alike."""
    attack = str(row["attack"])
    return CLEAN if attack == "none" else (attack, float(f"{number(row['radius']):g}"))


def conditions(rows: Iterable[Row]) -> list[Condition]:
    """All conditions: no attack first, then the attacks as they appear, each by growing radius."""
    present = list(dict.fromkeys(condition(row) for row in rows))
    attacks = list(dict.fromkeys(["none", *(attack for attack, _ in present)]))
    return sorted(present, key=lambda pair: (attacks.index(pair[0]), pair[1]))


def baseline(methods: Sequence[str], chosen: str = "") -> str:
    """The method that the others are compared with: the chosen one, or one of `BASELINES`, or the first that ran."""
    return next((name for name in (chosen, *BASELINES) if name in methods), methods[0])
