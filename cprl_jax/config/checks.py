"""The checks that a configuration passes before anything runs: one line for each mistake, with what is allowed."""

import difflib
from collections.abc import Sequence

import ml_collections

from cprl_jax.config.defaults import ATTACKS, FIDELITIES, JOBS, METHODS, SCORE_MODELS, SPLITS, UPDATES
from cprl_jax.data import DATASETS, RELEASES
from cprl_jax.runtime.errors import UserError


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """Returns the methods as a tuple, or raises UserError for an unknown, repeated or missing one."""
    for method in methods:
        if method not in METHODS:
            raise UserError(f"unknown method {method!r}{near(method, METHODS)}; allowed: {listed(METHODS)}")
    if not methods or len(set(methods)) != len(methods):
        raise UserError(f"methods {'+'.join(methods)!r}: name each method once; allowed: {listed(METHODS)}")
    return tuple(methods)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every field that can be checked without reading data.

    Raises:
      UserError: naming the field, its value and what is allowed.
    """
    check_methods(config.methods)
    choices = {
        "job": JOBS,
        "dataset.koniq_scores": ("zscore", "mos"),
        "dataset.cache": ("memory", "disk"),
        "dataset.split": SPLITS,
        "train.crop_on": ("auto", "host", "device"),
        "model.name": ("hyperiqa", "metaiqa", "resnet", "squeezenet", "compact", "ma19"),
        "model.backbone": ("resnet18", "resnet34", "resnet50"),
        "model.dtype": ("float32", "bfloat16"),
        "model.sort_mask.selection": ("fast", "top_k"),
        "train.mos_loss": ("l1", "l2", "huber"),
        "train.schedule": ("constant", "cosine"),
        "plain.start_from": ("weights",),
        "cprl.start_from": ("weights", "plain"),
        "at.start_from": ("weights", "plain"),
        "cprl.alpha_law": ("uniform", "edge"),
        "cprl.norm": ("absolute", "squared"),
        "evaluation.checkpoint": ("best", "last"),
        "causal_iqa.features_of": ("references", "images"),
        "causal_iqa.reduction": ("pca", "tsne", "none"),
        "causal_iqa.loss": ("l1", "l2"),
        "causal_iqa.inner_optimizer": ("adam", "sgd"),
        "causal_iqa.inner_state": ("kept", "reset"),
        "causal_iqa.batch_norm": ("running", "batch"),
        "causal_iqa.meta_update": ("interpolation", "adam"),
        "perceptual.norm": ("linf", "l2"),
        "perceptual.selection": ("threshold",),
        "perceptual.logarithm": ("e", "2", "10"),
    }
    for field, allowed in choices.items():
        value = lookup(config, field)
        if value not in allowed:
            raise UserError(f"config.{field} is {value!r}{near(value, allowed)}; allowed: {listed(allowed)}")
    at_least = {
        1: (
            "dataset.levels",
            "dataset.repeats",
            "train.batch_size",
            "train.crop_size",
            "train.epochs",
            "train.crops_per_epoch",
            "train.validation_crops",
            "cprl.alphas",
            "cprl.direction_steps",
            "evaluation.crop_size",
            "evaluation.crops",
            "evaluation.batch_size",
            "evaluation.pgd_steps",
            "evaluation.resamples",
            "perceptual.multipliers",
            "causal_iqa.seeds",
            "causal_iqa.clusters",
            "causal_iqa.dimensions",
            "causal_iqa.smallest_subset",
            "causal_iqa.batch_size",
            "causal_iqa.epochs",
            "causal_iqa.decay_epochs",
            "perceptual.steps",
        ),
        0: (
            "causal_iqa.meta_steps",
            "causal_iqa.evaluate_every",
            "causal_iqa.saliency",
            "causal_iqa.beta2",
            "causal_iqa.backbone_learning_rate",
            "causal_iqa.head_learning_rate",
            "causal_iqa.meta_beta2",
            "seed",
            "dataset.cache_gib",
            "dataset.resize",
            "train.workers",
            "model.dropout",
            "model.score_std",
            "model.sort_mask.rate",
            "train.steps",
            "train.warmup_steps",
            "train.weight_decay",
            "train.clip_norm",
            "train.ema_decay",
            "train.evaluate_every",
            "plain.steps",
            "plain.batch_size",
            "plain.crop_size",
            "cprl.steps",
            "cprl.batch_size",
            "cprl.crop_size",
            "at.steps",
            "at.batch_size",
            "at.crop_size",
            "cprl.weight",
            "cprl.warmup_steps",
            "cprl.epsilon",
            "at.epsilon",
            "at.weight",
            "evaluation.examples",
            "evaluation.trust_images",
            "evaluation.trust_queries",
            "evaluation.landscape_points",
            "perceptual.count",
            "perceptual.height",
            "perceptual.width",
            "perceptual.step_size",
            "perceptual.chebyshev_radius",
            "perceptual.at_once",
            "perceptual.examples",
            *(f"perceptual.thresholds.{name}" for name in FIDELITIES),
        ),
    }
    for bound, fields in at_least.items():
        for field in fields:
            if not lookup(config, field) >= bound:
                raise UserError(f"config.{field} is {lookup(config, field)}; it must be at least {bound}")
    for field in (
        "model.dropout",
        "model.sort_mask.rate",
        "train.ema_decay",
        "dataset.test_fraction",
        "dataset.validation_fraction",
        "causal_iqa.beta2",
        "causal_iqa.meta_beta2",
    ):
        if not lookup(config, field) < 1:
            raise UserError(f"config.{field} is {lookup(config, field)}; it must be below 1")
    for attack in config.evaluation.attacks:
        if attack not in ATTACKS[1:]:
            raise UserError(f"config.evaluation.attacks names {attack!r}; allowed: {listed(ATTACKS[1:])}")
    if any(radius <= 0 or radius > 255 for radius in config.evaluation.radii):
        raise UserError(
            f"config.evaluation.radii is {tuple(config.evaluation.radii)}; each is in (0, 255], units of 1/255"
        )
    for field in ("evaluation.trust_radius", "evaluation.landscape_extent"):
        if not 0 < lookup(config, field) <= 255:
            raise UserError(f"config.{field} is {lookup(config, field)}; it must be in (0, 255], units of 1/255")
    points = config.evaluation.landscape_points
    if points == 1 or (points and points % 2 == 0):
        raise UserError(f"config.evaluation.landscape_points is {points}; it must be odd and at least 3, or 0 for none")
    if config.evaluation.crops > config.evaluation.crops_drawn:
        raise UserError(
            f"config.evaluation.crops is {config.evaluation.crops}, more than the {config.evaluation.crops_drawn} that "
            "are drawn (config.evaluation.crops_drawn)"
        )
    _validate_dataset(config)
    _validate_perceptual(config)
    _validate_causal_iqa(config)
    for method in config.methods:
        if config[method].start_from == "plain" and "plain" not in config.methods:
            raise UserError(
                f"config.{method}.start_from is 'plain', but the methods are {'+'.join(config.methods)}: add plain, or "
                f"set --config.{method}.start_from=weights"
            )


def _validate_dataset(config: ml_collections.ConfigDict) -> None:
    dataset = config.dataset
    names = dataset.name.split("+")
    for name in names:
        if name not in DATASETS:
            raise UserError(f"config.dataset.name is {name!r}{near(name, DATASETS)}; allowed: {listed(DATASETS)}")
    if len(set(names)) < len(names):
        raise UserError(f"config.dataset.name is {dataset.name!r}; name each set once")
    if dataset.mos_worst == dataset.mos_best:
        raise UserError(
            f"config.dataset.mos_worst and mos_best are both {dataset.mos_best}; they are the two ends of the scale"
        )
    if dataset.folds < 2 or not -1 <= dataset.fold < dataset.folds:
        raise UserError(
            f"config.dataset.fold is {dataset.fold} of {dataset.folds} folds; there are at least 2, numbered from 0 "
            "(-1 = each in turn)"
        )
    if dataset.split == "leave_one_distortion_out" and not dataset.held_out:
        raise UserError("config.dataset.held_out is empty; name the distortion that is left out of training")
    if dataset.repeats > 1 and (dataset.split != "random" or dataset.split_file):
        raise UserError(
            f"config.dataset.repeats is {dataset.repeats}, which draws random splits; use it with "
            "config.dataset.split=random and without config.dataset.split_file"
        )
    _check_names(config, "evaluation.datasets", RELEASES, prefix="own:", prefixed="own:FOLDER")


def _validate_causal_iqa(config: ml_collections.ConfigDict) -> None:
    causal_iqa = config.causal_iqa
    _check_names(config, "causal_iqa.updates", UPDATES)
    _check_once(config, "causal_iqa.updates", needed=True)
    highest_rate = 1 if causal_iqa.meta_update == "interpolation" else float("inf")
    if not 0 < causal_iqa.meta_rate <= highest_rate:
        raise UserError(
            f"config.causal_iqa.meta_rate is {causal_iqa.meta_rate}; it must be positive, for interpolation at most 1"
        )
    if not 0 < causal_iqa.decay <= 1:
        raise UserError(f"config.causal_iqa.decay is {causal_iqa.decay}; it must be in (0, 1]")
    if config.job in ("causal_iqa", "leave_one_out") and (config.dataset.repeats > 1 or config.dataset.fold < 0):
        raise UserError(
            f"config.dataset.repeats and fold=-1 are not for the job {config.job!r}: give config.causal_iqa.seeds"
        )


def _validate_perceptual(config: ml_collections.ConfigDict) -> None:
    perceptual = config.perceptual
    _check_names(config, "perceptual.fidelities", FIDELITIES)
    _check_names(config, "perceptual.models", SCORE_MODELS, prefix="run:", prefixed="run:FOLDER:METHOD")
    for field in ("perceptual.models", "perceptual.fidelities"):
        _check_once(config, field, needed=config.job == "perceptual_attack")
    if (perceptual.height > 0) != (perceptual.width > 0):
        raise UserError(
            f"config.perceptual.height is {perceptual.height} and .width is {perceptual.width}; give both, or 0 for "
            "both to leave images as they are"
        )
    if perceptual.labels and not perceptual.images:
        raise UserError("config.perceptual.labels is for a folder of images: give config.perceptual.images too")


def _check_names(
    config: ml_collections.ConfigDict, field: str, allowed: Sequence[str], *, prefix: str = "", prefixed: str = ""
) -> None:
    """Each name of a field is allowed, or begins with `prefix`, which messages spell `prefixed`."""
    for name in lookup(config, field):
        if name not in allowed and not (prefix and name.startswith(prefix)):
            choices = [*allowed, *([prefixed] if prefix else [])]
            raise UserError(f"config.{field} names {name!r}{near(name, allowed)}; allowed: {listed(choices)}")


def _check_once(config: ml_collections.ConfigDict, field: str, *, needed: bool) -> None:
    names = tuple(lookup(config, field))
    if len(set(names)) != len(names) or (needed and not names):
        raise UserError(f"config.{field} is {names}; name at least one, and each once")


def lookup(config: ml_collections.ConfigDict, field: str):
    """The value of a dotted field name."""
    for part in field.split("."):
        config = config[part]
    return config


def listed(names) -> str:
    """Names, for an error message."""
    return ", ".join(str(name) for name in names)


def near(word, names) -> str:
    """' (did you mean ...?)' where one of the names is like the word, else ''."""
    match = difflib.get_close_matches(str(word), [str(name) for name in names], n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
