"""From a configuration to what a training needs: network, first variables, length; and its trained variables."""

from collections.abc import Mapping
from pathlib import Path

import flax
import flax.linen as nn
import jax
import ml_collections
from absl import logging

from cprl_jax import models
from cprl_jax.methods import METHODS
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError


def create_model(config: ml_collections.ConfigDict, method: str, *, axis_name: str | None = None) -> nn.Module:
    """The network of a method: config.model, with what the method changes in it."""
    model = config.model.copy_and_resolve_references()
    if not config[method].sort_mask:
        model.sort_mask.rate = 0.0
    return models.create(model, axis_name=axis_name, change=METHODS[method].network(config[method]))


def batch_size(config: ml_collections.ConfigDict, method: str) -> int:
    """Images per step."""
    return config[method].batch_size or config.train.batch_size


def crop_size(config: ml_collections.ConfigDict, method: str) -> int:
    """Height and width of the training crops in pixels."""
    return config[method].crop_size or config.train.crop_size


def total_steps(config: ml_collections.ConfigDict, method: str, *, images: int) -> int:
    """Optimiser steps: config.<method>.steps, as many image gradients as `as_long_as` has, or as config.train says.

    Crops of another size count by their pixels.

    Raises:
      UserError: no training image.
    """
    if images == 0:
        raise UserError("the training part of the split is empty; lower config.dataset.test_fraction")
    settings, train = config[method], config.train
    if not settings.steps and settings.as_long_as:
        other = settings.as_long_as
        pixels = total_steps(config, other, images=images) * _gradients(config, other) * crop_size(config, other) ** 2
        return max(1, round(pixels / (_gradients(config, method) * crop_size(config, method) ** 2)))
    epochs = train.epochs * train.crops_per_epoch * images // batch_size(config, method)
    return settings.steps or train.steps or max(1, epochs)


def _gradients(config: ml_collections.ConfigDict, method: str) -> float:
    """Gradient evaluations of one image in a step."""
    return METHODS[method].gradients(config[method]) * batch_size(config, method)


def describe_budget(config: ml_collections.ConfigDict, method: str, *, images: int, validated: bool = True) -> str:
    """'after plain: 250 steps of 24 crops of 96 pixels, 4 gradients each (24,000 image gradients); last checkpoint'.

    Args:
      images: how many there are to train on.
      validated: whether there are enough to choose a checkpoint by.
    """
    settings = config[method]
    start = "" if settings.start_from == "weights" else f"after {settings.start_from}: "
    if not METHODS[method].trains:
        return f"{start}nothing is trained"
    if models.network_of(config.model).fit is not None:
        return "fitted to the training images without gradients; what had to be chosen, on validation"
    steps, gradients = total_steps(config, method, images=images), METHODS[method].gradients(settings)
    budget = steps * _gradients(config, method)  # without that of the method it starts from
    if config.evaluation.checkpoint == "last":
        rule = "last checkpoint"
    elif not validated:
        rule = "last checkpoint, for want of validation images"
    elif settings.validation_radius:
        rule = f"best checkpoint by clean SRCC and SRCC under PGD at {settings.validation_radius:g}/255 on validation"
    else:
        rule = "best checkpoint by SRCC on validation"
    copies, more = settings.distorted_copies, ""
    if copies:
        what = "a distorted copy" if copies == 1 else f"{copies} distorted copies"
        more = f", of the training images and {what} of each, labelled by {settings.start_from}"
    return (
        f"{start}{steps:,} steps of {batch_size(config, method)} crops of {crop_size(config, method)} pixels{more}, "
        f"{gradients:g} gradient{'s' if gradients != 1 else ''} each "
        f"({budget:,.0f} image gradients); {rule}"
    )


def start_variables(config: ml_collections.ConfigDict, method: str, *, seed: int) -> dict:
    """The variables before training: config.model.weights, what they lack at random; all at random without weights.

    Weights are those of the network without what the method changes in it; what it adds there is random too.

    Raises:
      UserError: weights that cannot be read, or are those of another network.
    """
    variables = _initialize(config, method, seed=seed)
    if not config.model.weights:
        return variables
    unchanged = models.initialize(models.create(config.model), jax.random.key(seed), config.train.crop_size)
    return with_values_of(variables, models.load_weights(unchanged, config.model.weights, config_model=config.model))


def weights_file(config: ml_collections.ConfigDict) -> Path | None:
    """The file that config.model.weights means; None without weights. Raises UserError if there is none."""
    return models.weights_file(config.model.weights, config_model=config.model) if config.model.weights else None


def variables_after(config: ml_collections.ConfigDict, method: str, folder: Path, *, start: str) -> dict:
    """The variables before a training that goes on from another method's, `start`, in its `folder`.

    What only this method's network has is random.

    Raises:
      UserError: `start` has no checkpoint.
    """
    return with_values_of(_initialize(config, method, seed=config.seed), trained_variables(config, start, folder))


def with_values_of(variables: Mapping, others: Mapping) -> dict:
    """The variables with the values of those others that have the same names."""
    ours, theirs = (flax.traverse_util.flatten_dict(dict(tree)) for tree in (variables, others))
    return flax.traverse_util.unflatten_dict({name: theirs.get(name, value) for name, value in ours.items()})


def warn_of_random_weights(config: ml_collections.ConfigDict, name: str) -> None:
    if not config.model.weights:
        logging.warning(
            "%s starts from random weights: no config.model.weights given. Expect a clearly lower accuracy, and many "
            "more steps to reach it, than from weights trained on ImageNet.",
            name,
        )


def trained_variables(config: ml_collections.ConfigDict, method: str, folder: Path) -> dict:
    """The variables to evaluate, from the best or last checkpoint as config.evaluation says.

    Raises:
      UserError: no checkpoint; no weights.npz of a network that is fitted.
    """
    if models.network_of(config.model).fit is not None:
        if not (folder / "weights.npz").is_file():
            raise UserError(f"there are no weights of {method} in {folder}; fit it first, or give another folder")
        unfitted = _initialize(config, method, seed=config.seed)
        return models.load_weights(unfitted, folder / "weights.npz", config_model=config.model, field="the run")
    from cprl_jax.training.checkpoints import Checkpoints  # here: Orbax takes seconds, and exported models do without

    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        if config.evaluation.checkpoint == "best":
            step = checkpoints.best_step() or step  # without validation images no checkpoint is better than another
        if step is None:
            raise UserError(f"no checkpoint of {method} in {folder}; run with --config.job=train_and_evaluate first")
        template = described_variables(config, method)
        template = {"params": template["params"], "batch_stats": template.get("batch_stats", {})}
        if config.train.ema_decay:
            return checkpoints.restore(step, {"averaged": template}, partial=True)["averaged"]
        return checkpoints.restore(step, template, partial=True)


def trained_model(config: ml_collections.ConfigDict, method: str, run: Path) -> tuple[nn.Module, dict]:
    """The network and the variables of a model of a run; of Causal-IQA's, 'UPDATE/seed-K'. Raises as the one above."""
    network = network_method(config, method)
    if config.job == "causal_iqa":  # which never averages it
        config = config.copy_and_resolve_references()
        config.train.ema_decay = 0.0
    variables = trained_variables(config, network, run / method)
    if parallel.local_device_count() == 1:  # on several, what is mapped over them wants a copy on each
        variables = parallel.uncommitted(variables)
    return create_model(config, network), variables


def network_method(config: ml_collections.ConfigDict, method: str) -> str:
    """The method whose network a model of a run has: its own; all updates of Causal-IQA train the plain one."""
    return "plain" if config.job == "causal_iqa" else method


def described_variables(config: ml_collections.ConfigDict, method: str) -> dict:
    """Names, shapes and dtypes of a method's variables; nothing is computed."""
    return jax.eval_shape(lambda: _initialize(config, method, seed=config.seed))


def _initialize(config: ml_collections.ConfigDict, method: str, *, seed: int) -> dict:
    return models.initialize(create_model(config, method), jax.random.key(seed), config.train.crop_size)
