"""What an attack of the tables declares of itself, and what it receives."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from cprl_jax.attacks import AttackResult
from cprl_jax.config.field import Field
from cprl_jax.methods.method import ScoreFn
from cprl_jax.runtime.files import file_name

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Crops of test images on one device.

    Attributes:
      images: RGB in [0, 1].
      mos: the label of each crop's image, 0..100.
      radius: one per crop, in [0, 1] pixel units; 0 for an attack without radius.
      keys: a random key for each crop; it depends on the seed, and on the numbers of the image and of the crop.
      mid: the score that divides good images from bad ones (config.evaluation.mid).
    """

    images: Float[Array, "batch height width 3"]
    mos: Float[Array, " batch"]
    radius: Float[Array, " batch"]
    keys: Key[Array, " batch"]
    mid: float


@dataclasses.dataclass(frozen=True)
class Context:
    """What an attack may prepare from, once for a model and a condition.

    Attributes:
      score_fn: the attacked model.
      others: the other models of the run, by method, in the order of training.
      training_crops: `(count) -> crops` of the training part, each of another image.
      adaptive: the attacked model as an attacker who knows its method differentiates it; None where there is nothing to
        go around (`methods.adaptive_score_fn`).
    """

    score_fn: ScoreFn
    others: Mapping[str, ScoreFn]
    training_crops: Callable[[int], UInt8[np.ndarray, "count size size 3"]]
    adaptive: ScoreFn | None = None


@dataclasses.dataclass(frozen=True)
class TableAttack:
    """An attack of the tables; no other file names it.

    Attributes:
      name: in config.evaluation.attacks and table.csv.
      title: what reports call it.
      legend: what it is, in one sentence.
      run: `(score_fn, batch, condition, prepared) -> AttackResult`, each crop for itself; a pure function. A named
        tuple with more fields, [batch, ...], will do: `summary` receives their means over an image's crops.
      source: paper.
      settings: the fields of config.evaluation.<name>.
      reads: fields of config.evaluation that it reads, by the name that its settings have for them.
      direction: what it pushes towards: 'reflect' (the side of the label), which no attack without labels knows;
        'target_free' (the side of the clean score), 'mirror' (the score's mirror image), 'up', 'away' (either way), ''
        (nowhere).
      steps: `(settings, variant)`: gradient steps, or queries of a black box.
      restarts: `(settings, variant)`: starts.
      gradients: `(settings, variant)`: how many gradients of a crop its work is worth, a query being a third of one;
        None: steps times starts. For estimates of time.
      has_radius: attacks at config.evaluation.radii. Otherwise its settings say how far it goes.
      variants: `(settings)`: the variants to run, each with separate rows; '' is the attack itself.
      prepare: `(context, condition) -> prepared`, a pytree that is the same for all images.
      depends_on: `(context, condition)`: what `prepare` reads, for the stamp of the result.
      check: `(settings, methods)`; raises UserError for what the fields' bounds do not cover.
      used: `(settings, variant)`: what of the settings the variant depends on, for the stamp of the result.
      images: `(settings, variant)`: how many test images to attack, evenly over the ranks of their MOS; 0 is all.
      summary: `(arrays over images) -> columns` that the attack adds to its rows of table.csv.
    """

    name: str
    title: str
    legend: str
    run: Callable[[ScoreFn, Batch, "Condition", Any], AttackResult]
    _: dataclasses.KW_ONLY
    source: str = ""
    settings: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    reads: Mapping[str, str] = dataclasses.field(default_factory=dict)
    direction: str = "reflect"
    steps: Callable[[Settings, str], int] = lambda settings, variant: settings["steps"]
    restarts: Callable[[Settings, str], int] = lambda settings, variant: 1
    gradients: Callable[[Settings, str], float | None] = lambda settings, variant: None
    has_radius: bool = True
    variants: Callable[[Settings], Sequence[str]] = lambda settings: ("",)
    prepare: Callable[[Context, "Condition"], Any] = lambda context, condition: ()
    depends_on: Callable[[Context, "Condition"], Any] = lambda context, condition: ()
    check: Callable[[Settings, Sequence[str]], None] = lambda settings, methods: None
    used: Callable[[Settings, str], Any] = lambda settings, variant: settings
    images: Callable[[Settings, str], int] = lambda settings, variant: 0
    summary: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]] = lambda arrays: {}

    def at(self, radius: float, *, variant: str = "", **settings: Any) -> "Condition":
        """The attack at a radius (1/255), with the defaults of its fields but for these settings."""
        defaults = {name: field.default for name, field in self.settings.items()}
        return Condition(self, variant, float(radius), defaults | settings)

    def read(self, evaluation: Any) -> dict[str, Any]:
        """The settings, from config.evaluation; defaults where it lacks them (runs of earlier versions)."""
        block = evaluation.get(self.name, {})
        settings = {name: block.get(name, field.default) for name, field in self.settings.items()}
        return settings | {name: evaluation[field] for name, field in self.reads.items()}


@dataclasses.dataclass(frozen=True)
class Condition:
    """An attack as it is run: one block of rows of the table.

    Attributes:
      attack: its declaration.
      variant: one of those that its settings ask for, or ''.
      radius: in units of 1/255; 0 for an attack without radius.
      settings: from `TableAttack.read`.
    """

    attack: TableAttack
    variant: str
    radius: float
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The column `attack` of table.csv: 'pgd', or with its variant 'perceptual:ssim'."""
        return f"{self.attack.name}:{self.variant}" if self.variant else self.attack.name

    @property
    def file(self) -> str:
        """The name of the file, in a method's folder `evaluation`, that keeps the result."""
        return f"{file_name(f'{self.label}-{self.radius:g}')}.npz"

    @property
    def title(self) -> str:
        """'PGD', or with its variant 'Perceptual (ssim)'."""
        return f"{self.attack.title} ({self.variant})" if self.variant else self.attack.title

    @property
    def images(self) -> int:
        """How many test images it is for; 0 is all."""
        return self.attack.images(self.settings, self.variant)

    @property
    def gradients(self) -> float:
        """How many gradients of a crop the attack's work is worth, at least 1."""
        gradients = self.attack.gradients(self.settings, self.variant)
        return max(1, self.columns["steps"] * self.columns["restarts"] if gradients is None else gradients)

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of table.csv that say how the attack was run."""
        return {
            "direction": self.attack.direction,
            "steps": self.attack.steps(self.settings, self.variant),
            "restarts": self.attack.restarts(self.settings, self.variant),
        }
