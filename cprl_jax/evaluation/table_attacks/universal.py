"""One pattern for all images: made on the attacked model, on another one, or published."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cprl_jax import attacks
from cprl_jax.attacks.universal import PNG_OFFSETS
from cprl_jax.config.field import Field
from cprl_jax.evaluation.table_attacks.table_attack import Condition, Context, Settings, TableAttack
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path

_BATCH = 16  # training crops to one step of the pattern
_SELF, _OTHER = "self", "other"


def _run(score_fn, batch, condition, prepared):
    return prepared.attack(score_fn, batch.images, radius=batch.radius)


def _variants(settings: Settings) -> list[str]:
    """'' for the attacked model's pattern, 'other' for that of another model, the name of a file without its ending."""
    return ["" if source == _SELF else Path(source).stem for source in settings["sources"]]


def _depends_on(context: Context, condition: Condition) -> attacks.UniversalPerturbation | tuple:
    """A published pattern, or the model and the images that one is made on."""
    settings = condition.settings
    source = settings["sources"][_variants(settings).index(condition.variant)]
    if source not in (_SELF, _OTHER):
        return _load(source, settings["encoding"])
    score_fn = context.score_fn if source == _SELF else next(iter(context.others.values()))
    return score_fn, context.training_crops(settings["images"])


def _prepare(context: Context, condition: Condition) -> attacks.UniversalPerturbation:
    match _depends_on(context, condition):
        case attacks.UniversalPerturbation() as pattern:
            return pattern
        case score_fn, images:
            images = images / np.float32(255)
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    epochs = condition.settings["epochs"]
    return attacks.universal(score_fn, batches, radius=condition.radius / 255.0, epochs=epochs)


def _load(path: str, encoding: str) -> attacks.UniversalPerturbation:
    path = user_path(path, field="config.evaluation.universal.sources")
    try:
        if path.suffix.lower() == ".png":
            return attacks.UniversalPerturbation.from_png(path, encoding=encoding)
        return attacks.UniversalPerturbation.load(path)
    except OSError as error:
        raise UserError(f"config.evaluation.universal.sources: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"config.evaluation.universal.sources: {error}") from None


def _check(settings: Settings, methods: Sequence[str]) -> None:
    variants = _variants(settings)
    if not variants or len(set(variants)) < len(variants):
        raise UserError(
            f"config.evaluation.universal.sources is {settings['sources']}; name at least one, and each once"
        )
    for source in settings["sources"]:
        if source == _OTHER and len(methods) < 2:
            raise UserError(
                f"config.evaluation.universal.sources names 'other', but the only model of the run is {methods[0]}"
            )
        if source not in (_SELF, _OTHER):
            _load(source, settings["encoding"])


def _steps(settings: Settings, variant: str) -> int:
    """The steps in which each training image takes part; 0 for a pattern from a file."""
    return settings["epochs"] if variant in ("", _OTHER) else 0


ATTACK = TableAttack(
    "universal",
    "Universal",
    "One pattern that raises the scores of all images, made on training images of the attacked model; where the name "
    "has brackets, the pattern comes from another model, and the attack is a black box by transfer.",
    _run,
    source="Shumitskaya et al., BMVC 2022; CPRL, Table 4",
    settings={
        "sources": Field(
            (_SELF,),
            "whose pattern: that of the attacked model ('self'), of the first 'other' model of the run, or of a "
            "published file (.png, .npz)",
        ),
        "images": Field(256, "training images that a pattern is made on", at_least=1),
        "epochs": Field(5, "passes over these images, 16 to a step", at_least=1),
        "encoding": Field("published", "how a .png holds a pattern: value / 255 - offset", choices=tuple(PNG_OFFSETS)),
    },
    direction="up",
    steps=_steps,
    variants=_variants,
    prepare=_prepare,
    depends_on=_depends_on,
    check=_check,
)
