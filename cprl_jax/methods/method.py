"""What a training method declares of itself, and what its loss receives."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int, Key

from cprl_jax.config.field import Field
from cprl_jax.models.change import NetworkChange

ScoreFn = Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]


@dataclasses.dataclass(frozen=True)
class Batch:
    """The training images of one device.

    Attributes:
      images: RGB in [0, 1].
      mos: their labels, 0..100.
      keys: a random key for each image; it depends on the seed, the step and the image's place in the global batch.
      step: the number of optimiser steps before this one.
      mid: the score that divides good images from bad ones (config.evaluation.mid).
    """

    images: Float[Array, "batch height width 3"]
    mos: Float[Array, " batch"]
    keys: Key[Array, " batch"]
    step: Int[Array, ""]
    mid: float


@dataclasses.dataclass(frozen=True)
class Forward:
    """The network at the current parameters, as a loss may use it.

    Attributes:
      scores: scores in training mode (dropout, random masks). Gradients reach the parameters. The first call must be on
        the clean images of the batch.
      constant: the same, with the parameters held constant: for directions and attacks.
      deployed: scores in evaluation mode, with the parameters held constant: what an attacker of the finished model
        meets.
      is_deployed: `scores` and `deployed` are one function: no batch statistics, dropout or random masks.
      gather: `(values [..., batch]) -> values [..., all]`, those of all devices.
      label_loss: `(gathered scores) -> loss` on MOS, as config.train describes.
      params: the parameters, for a penalty on them; the same on every device.
    """

    scores: ScoreFn
    constant: ScoreFn
    deployed: ScoreFn
    is_deployed: bool
    gather: Callable[[Array], Array]
    label_loss: Callable[[Float[Array, " all"]], Float[Array, ""]]
    params: Mapping[str, Any]


Loss = Callable[[Batch, Forward, ml_collections.ConfigDict], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
Calibrate = Callable[[Mapping, Callable[[Mapping], float], ml_collections.ConfigDict], tuple[Mapping, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of training; no other file names it.

    Attributes:
      name: in config.methods, table.csv and the run's folder.
      title: what reports call it, by what it does.
      loss: `(batch, forward, settings) -> (loss, metrics)`, both the same on every device: a pure function, in which
        `settings` is config.<name>.
      source: paper and equation.
      settings: the fields of config.<name> beside those that all methods have (`COMMON`), or with other defaults.
      metrics: the names of what `loss` returns beside the loss.
      gradients: gradient evaluations for each training image and step, from the settings: the unit of its budget.
      parts: what a title adds about the settings that ran, such as 'directions of 2 steps'.
      network: `(settings)`: what the method changes in any network.
      adaptive: `(module, variables) -> score_fn` through which an attacker who knows the method gets a useful gradient.
      trains: False leaves the parameters, and batch normalisation, as the method that it starts from had them: a step
        then shows the images of a batch to the network in evaluation mode, where what `network` adds may collect
        statistics while 'batch_stats' is mutable. Its `settings` begin with those of `UNTRAINED`.
      calibrate: `(variables, srcc, settings) -> (variables, numbers)`, after the last step of a method that does not
        train: variables with other 'batch_stats', chosen by `srcc(variables)` of the clean validation images, and what
        metrics.csv keeps of the choice.
    """

    name: str
    title: str
    loss: Loss
    _: dataclasses.KW_ONLY
    source: str = ""
    settings: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    gradients: Callable[[Any], float] = lambda settings: 1
    parts: Callable[[Any], Sequence[str]] = lambda settings: ()
    network: Callable[[Any], NetworkChange] = lambda settings: NetworkChange()
    adaptive: Callable[[nn.Module, Mapping], ScoreFn] | None = None
    trains: bool = True
    calibrate: Calibrate | None = None

    @property
    def fields(self) -> dict[str, Field]:
        """All fields of config.<name>."""
        return {**COMMON, **self.settings}


START = Field(
    "weights", "where training starts: 'weights' (config.model.weights, or random), or a method named before it"
)
BATCH_NORM = Field(
    "batch",
    "statistics of batch normalisation in training: those of the 'batch', or those that the 'deployed' model has. The "
    "batch's take out the common shift that a perturbation makes, so that the loss hardly sees it",
    choices=("batch", "deployed"),
)
COMMON: dict[str, Field] = {
    "start_from": START,
    "steps": Field(0, "optimiser steps", at_least=0, zero="as `as_long_as` or config.train says"),
    "as_long_as": Field("", "the method whose number of image gradients this one's training has, '' for none"),
    "batch_size": Field(0, "images per step", at_least=0, zero="as config.train says"),
    "crop_size": Field(0, "", "pixels", at_least=0, zero="as config.train says"),
    "distorted_copies": Field(
        0,
        "of each training image, which are trained on as well, labelled by the model that the method starts from",
        at_least=0,
        zero="none",
    ),
    "sort_mask": Field(False, "the network has SortMask (config.model.sort_mask)"),
    "batch_norm": BATCH_NORM,
    "validation_radius": Field(
        0.0,
        "the best checkpoint is chosen by the mean of clean SRCC and SRCC under PGD at this radius",
        "1/255",
        at_least=0,
        at_most=255,
    ),
}

DEPLOYED = dataclasses.replace(BATCH_NORM, default="deployed")
UNTRAINED: dict[str, Field] = {
    "start_from": dataclasses.replace(START, help="whose variables they are", default="plain"),
    "steps": Field(1, "batches that the network sees; nothing is trained", at_least=1),
}


def direction_agreement(
    forward: Forward,
    batch: Batch,
    delta: Float[Array, "batch height width 3"],
    direction_of: Callable[[ScoreFn, Batch], Float[Array, "part height width 3"]],
) -> Float[Array, ""]:
    """The share of pixel values at which the perturbation used in training has the sign of the deployed model's.

    0.5 is chance. It is 1 by construction where both are the same function; elsewhere it is measured on every fourth
    image.

    Args:
      delta: the perturbation that was used, `direction_of(forward.constant, batch)`.
      direction_of: `(score_fn, batch) -> perturbation`.
    """
    if forward.is_deployed:
        return jnp.ones(())
    part = dataclasses.replace(batch, images=batch.images[::4], mos=batch.mos[::4], keys=batch.keys[::4])
    same = jnp.sign(direction_of(forward.deployed, part)) == jnp.sign(delta[::4])
    return jnp.mean(forward.gather(jnp.mean(same, axis=(1, 2, 3))))
