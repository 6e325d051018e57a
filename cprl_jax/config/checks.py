"""The checks that a configuration passes before anything runs: one line for each mistake, with what is allowed.

What a single field allows stands at its declaration (`Field`); here is what depends on several fields.
"""

from collections.abc import Sequence
from pathlib import Path

import ml_collections
from flax.traverse_util import flatten_dict

from cprl_jax import methods, models
from cprl_jax.config.field import listed, near
from cprl_jax.config.fields import ALL, SCORE_MODELS
from cprl_jax.data import DATASETS, RELEASES
from cprl_jax.evaluation.table_attacks import ATTACKS
from cprl_jax.robustness.certify import fewest_samples
from cprl_jax.runtime.errors import UserError


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every field that can be checked without reading data.

    Raises:
      UserError: naming the field, its value and what is allowed.
    """
    methods.check_names(config.methods)
    for name in flatten_dict(config.to_dict(), sep="."):
        if name not in ALL:
            raise UserError(f"config.{name} is no field of a configuration{near(name, ALL)}; --helpfull lists all")
    for name, field in ALL.items():
        field.check(f"config.{name}", lookup(config, name))
    _validate_dataset(config)
    _validate_sizes(config)
    _validate_methods(config)
    _validate_evaluation(config)
    _validate_perceptual(config)
    _validate_causal_iqa(config)


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
    if dataset.fold >= dataset.folds:
        raise UserError(
            f"config.dataset.fold is {dataset.fold} of {dataset.folds} folds; they are numbered from 0 (-1 = each in "
            "turn)"
        )
    if dataset.split == "leave_one_distortion_out" and not dataset.held_out:
        raise UserError("config.dataset.held_out is empty; name the distortion that is left out of training")
    if dataset.repeats > 1 and (dataset.split != "random" or dataset.split_file):
        raise UserError(
            f"config.dataset.repeats is {dataset.repeats}, which draws random splits; use it with "
            "config.dataset.split=random and without config.dataset.split_file"
        )
    if dataset.split_files and (dataset.repeats > 1 or dataset.split_file or dataset.fold < 0):
        raise UserError(
            "config.dataset.split_files runs each of its splits in turn; use it without config.dataset.split_file, "
            "repeats and fold=-1"
        )
    stems = [Path(file).stem for file in dataset.split_files]
    if len(set(stems)) < len(stems):
        raise UserError(f"config.dataset.split_files is {dataset.split_files}; give each file a name of its own")
    _check_names(config, "evaluation.datasets", RELEASES, prefix="own:", prefixed="own:FOLDER")


def _validate_sizes(config: ml_collections.ConfigDict) -> None:
    module = models.create(config.model)  # checks its variant, settings and SortMask
    # Of `ScoreNetwork`; other modules are networks too.
    smallest, largest = getattr(module, "smallest_image", 1), getattr(module, "largest_image", None)
    _check_once(config, "train.scales", needed=True)
    for block in ("train", "evaluation", *config.methods):
        if 0 < config[block].crop_size < smallest:
            raise UserError(
                f"config.{block}.crop_size is {config[block].crop_size}; {config.model.name} needs at least {smallest}"
            )
        if largest and config[block].crop_size > largest:
            raise UserError(
                f"config.{block}.crop_size is {config[block].crop_size}; {config.model.name} takes at most {largest}"
            )


def _validate_methods(config: ml_collections.ConfigDict) -> None:
    if config.job in ("train_and_evaluate", "train", "paper_table", "causal_iqa", "leave_one_out"):
        _validate_fitted(config)
    for place, name in enumerate(config.methods):
        settings, before = config[name], config.methods[:place]
        if settings.start_from != "weights" and settings.start_from not in before:
            raise UserError(
                f"config.{name}.start_from is {settings.start_from!r}; it is 'weights' or a method named before {name} "
                f"in config.methods, which are {'+'.join(config.methods)}: add it there, or set "
                f"--config.{name}.start_from=weights"
            )
        if settings.distorted_copies and settings.start_from == "weights":
            raise UserError(
                f"config.{name}.distorted_copies is {settings.distorted_copies}, and there is no model to label them; "
                f"name one that is trained before {name}, such as --config.{name}.start_from=plain, or set it to 0"
            )
        other = settings.as_long_as
        trained = [each for each, declared in methods.METHODS.items() if declared.trains]
        if other and (other not in trained or other == name or config[other].as_long_as):
            hint = "" if other in methods.METHODS else near(other, trained)
            raise UserError(
                f"config.{name}.as_long_as is {other!r}{hint}; it is another method that trains, whose length does not "
                f"follow a third one: {listed(trained)}"
            )


def _validate_fitted(config: ml_collections.ConfigDict) -> None:
    network = models.network_of(config.model)
    if network.fit is None:
        return
    if config.job not in ("train_and_evaluate", "train"):
        raise UserError(
            f"config.model.name is {network.name!r}, which is fitted and not trained by gradients: the job "
            f"{config.job!r} has no use for it"
        )
    gradients = [name for name in config.methods if name != "plain" and methods.METHODS[name].trains]
    if gradients:
        raise UserError(
            f"config.methods names {listed(gradients)}, which train by gradients; {network.name} is fitted without: "
            "leave plain, and methods that train nothing"
        )


def _validate_evaluation(config: ml_collections.ConfigDict) -> None:
    evaluation = config.evaluation
    _check_once(config, "evaluation.attacks", needed=False)
    if evaluation.baseline and evaluation.baseline not in config.methods:
        raise UserError(
            f"config.evaluation.baseline is {evaluation.baseline!r}; it is one of config.methods, which are "
            f"{'+'.join(config.methods)}"
        )
    printed = [f"{radius:g}" for radius in evaluation.radii]
    if len(set(printed)) < len(printed):
        raise UserError(f"config.evaluation.radii is {evaluation.radii}; name each radius once")
    attacked = evaluation.attacks if config.job in ("train_and_evaluate", "evaluate", "paper_table") else ()
    if not printed and (needy := [name for name in attacked if ATTACKS[name].has_radius]):
        raise UserError(
            f"config.evaluation.radii is (), but config.evaluation.attacks names {listed(needy)}; name a radius, or "
            "attacks=() for none"
        )
    points = evaluation.landscape_points
    if points == 1 or (points and points % 2 == 0):
        raise UserError(f"config.evaluation.landscape_points is {points}; it must be odd and at least 3, or 0 for none")
    certify = evaluation.certify
    if 0 < certify.samples < (fewest := fewest_samples(certify.confidence)):
        raise UserError(
            f"config.evaluation.certify.samples is {certify.samples}; a confidence of {certify.confidence} needs at "
            f"least {fewest}, or 0 for no certificates"
        )
    if len({f"{radius:g}" for radius in certify.radii}) < len(certify.radii) or (certify.samples and not certify.radii):
        raise UserError(f"config.evaluation.certify.radii is {certify.radii}; name at least one, and each once")


def _validate_causal_iqa(config: ml_collections.ConfigDict) -> None:
    causal_iqa = config.causal_iqa
    _check_once(config, "causal_iqa.updates", needed=True)
    if causal_iqa.meta_update == "interpolation" and causal_iqa.meta_rate > 1:
        raise UserError(f"config.causal_iqa.meta_rate is {causal_iqa.meta_rate}; for interpolation it is at most 1")
    if config.job not in ("causal_iqa", "leave_one_out"):
        return
    if config.dataset.repeats > 1 or config.dataset.fold < 0 or config.dataset.split_files:
        raise UserError(
            f"config.dataset.repeats, split_files and fold=-1 are not for the job {config.job!r}: give "
            "config.causal_iqa.seeds"
        )
    if config.train.frozen or tuple(config.train.scales) != (1.0,):
        raise UserError(
            f"config.train.frozen and config.train.scales have no effect on the job {config.job!r}; leave them out"
        )


def _validate_perceptual(config: ml_collections.ConfigDict) -> None:
    perceptual = config.perceptual
    _check_names(config, "perceptual.models", SCORE_MODELS, prefix="run:", prefixed="run:FOLDER:METHOD")
    for field in ("perceptual.models", "perceptual.fidelities"):
        _check_once(config, field, needed=config.job == "perceptual_attack")
    if (perceptual.height > 0) != (perceptual.width > 0):
        raise UserError(
            f"config.perceptual.height is {perceptual.height} and .width is {perceptual.width}; give both, or 0 for "
            "both to leave images as they are"
        )
    if perceptual.brisque_conventions == "mittal2012" and perceptual.logistic == "published":
        raise UserError(
            "config.perceptual.brisque_conventions is 'mittal2012', and no logistic map is published for it; set "
            "config.perceptual.logistic=fitted"
        )
    if perceptual.labels and not perceptual.images:
        raise UserError("config.perceptual.labels is for a folder of images: give config.perceptual.images too")


def _check_names(
    config: ml_collections.ConfigDict, field: str, allowed: Sequence[str], *, prefix: str, prefixed: str
) -> None:
    """Each name of a field is allowed, or begins with `prefix`, which messages spell `prefixed`."""
    for name in lookup(config, field):
        if name not in allowed and not name.startswith(prefix):
            choices = [*allowed, prefixed]
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
