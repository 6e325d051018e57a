"""What one inner step of Causal-IQA's updates needs: a network, its loss (Eq. 6), the gradient, batch normalisation.

Batch normalisation: a batch of one subset has the mean and variance of its distortion, which tell much of what the
network should find out, and which it will not have when it scores single images. So the inner steps normalise by
running averages (`batch_norm='running'`), which all updates do, to be compared: at the start of a meta step, theta sees
the images of all its groups as one batch, without a gradient, and the running averages make a step towards the
statistics of that. With 'batch', an inner step normalises by its own batch, as in the published code, and the running
averages of theta make one step of their own momentum in every meta step, towards the mean of the statistics of all
inner batches. Each subset counts alike either way, in whichever order they come.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cprl_jax.experiments.causal_iqa.optimizers import MetaOptimizer, check
from cprl_jax.models.common import BATCH_NORM_MOMENTUM

Tree = Any
"""A pytree of arrays."""

LOSSES = ("l1", "l2")
INNER_STATES = ("kept", "reset")
BATCH_NORMS = ("running", "batch")
_NO_INNER_STEP = 2**31 - 1  # gives the pass for the running averages random numbers of its own


@dataclasses.dataclass(frozen=True)
class Learner:
    """What all updates have in common.

    Attributes:
      module: takes (images, train) and gives scores in MOS points.
      inner: moves phi, see `optimizers.inner_optimizer`.
      meta: moves theta, `optimizers.interpolation` or `pseudo_gradient_adam`. ERM does not use it.
      loss: of one image, 'l1' or 'l2'.
      seed: of dropout and random masks.
      inner_state: 'kept': the moments of the inner optimiser live on when phi starts from theta again. 'reset': they
        begin anew with phi. One step of an Adam that begins anew moves every parameter by the learning rate, whatever
        the gradient's size: all that CIP would ever see of a gradient is its sign. Hence 'kept' is the default.
      batch_norm: 'running': inner steps normalise by running averages; the module's are `models.common.batch_norm`, or
        others with the same momentum that take `use_running_average` in their call. 'batch': by their own batch.
      schedule: factor on the inner learning rates, a function of the meta step. It is not part of `inner`, whose count
        of steps begins anew when it is reset.
      axis_name: the mapped axis over which each group's batch is spread, if any; the same as the module's.

    Raises:
      ValueError: an unknown `loss`, `inner_state` or `batch_norm`.
    """

    module: nn.Module
    inner: optax.GradientTransformation
    meta: MetaOptimizer
    loss: str = "l1"
    seed: int = 0
    inner_state: str = "kept"
    batch_norm: str = "running"
    schedule: Callable[[Int[Array, ""]], Float[Array, ""]] | None = None
    axis_name: str | None = None

    def __post_init__(self):
        check("loss", self.loss, LOSSES)
        check("inner_state", self.inner_state, INNER_STATES)
        check("batch_norm", self.batch_norm, BATCH_NORMS)


def image_loss(
    scores: Float[Array, " batch"], mos: Float[Array, " batch"], *, kind: str = "l1"
) -> Float[Array, " batch"]:
    """The loss of each image. 'l1', which is also the earth mover's distance of two certain scores, or 'l2' (MetaIQA).

    Raises:
      ValueError: unknown `kind`.
    """
    check("kind", kind, LOSSES)
    return jnp.abs(scores - mos) if kind == "l1" else (scores - mos) ** 2


def subset_weights(
    weight: Float[Array, "groups batch"], *, axis_name: str | None = None
) -> Float[Array, "groups batch"]:
    """w_rj / sum over r of w_rj (Eq. 6): each group's weights, summing to 1 over the group's images of all devices."""
    return weight / _over_devices(jnp.sum(weight, axis=1, keepdims=True), axis_name)


def weighted_gradients(
    learner: Learner, params: Tree, batch_stats: Tree, batch: Mapping, *, step: Int[Array, ""], index: Int[Array, ""]
) -> tuple[Float[Array, ""], Tree, Tree]:
    """The mean over groups of Eq. 6 at `params`, the running averages after it, and its gradient; over all devices.

    Args:
      learner, params, batch_stats: of the network.
      batch: of groups, see `updates`.
      step, index: of the meta step, and of the inner step in it; dropout depends on them.
    """
    groups = batch["weight"].shape[0]
    weights = in_line(subset_weights(batch["weight"], axis_name=learner.axis_name) / groups)
    images, mos = _images(batch), in_line(batch["mos"])

    def own_loss(params):
        scores, updated = _apply(learner, params, batch_stats, images, step, index)
        return jnp.sum(weights * image_loss(scores, mos, kind=learner.loss)), updated

    with nn.intercept_methods(_by_running_averages) if learner.batch_norm == "running" else contextlib.nullcontext():
        (loss, updated), gradients = jax.value_and_grad(own_loss, has_aux=True)(params)
    # Sums, not means: the weights sum to 1 over all devices.
    loss, gradients = _over_devices((loss, gradients), learner.axis_name)
    return loss, updated, gradients


def running_averages(
    learner: Learner, params: Tree, batch_stats: Tree, batch: Mapping, *, step: Int[Array, ""]
) -> Tree:
    """Those by which the inner steps of 'running' normalise: after a step towards the statistics of all groups.

    In the first ten meta steps they are the mean of all of them so far: those of random weights say nothing, and those
    that weights came with are of other images.
    """
    if learner.batch_norm == "batch":
        return batch_stats
    arguments = learner, params, batch_stats, _images(batch), step, _NO_INNER_STEP
    if not _has_batch_norm(*arguments):
        return batch_stats
    _, updated = _apply(*arguments)
    longer = jnp.maximum(1.0, 1 / ((1 - BATCH_NORM_MOMENTUM) * (step + 1)))
    # What never changes (the constants of an input normalisation) stays as it is, bit for bit.
    return jax.tree.map(lambda old, new: old + longer.astype(old.dtype) * (new - old), batch_stats, updated)


def _apply(learner: Learner, params: Tree, batch_stats: Tree, images: Array, step, index) -> tuple[Array, Tree]:
    """Scores of a network in training, and the running averages after it."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(learner.seed), step), index)
    streams = {name: jax.random.fold_in(key, number) for number, name in enumerate(("mask", "dropout"))}
    variables = {"params": params, "batch_stats": batch_stats}
    scores, updated = learner.module.apply(variables, images, train=True, rngs=streams, mutable=["batch_stats"])
    return scores, updated.get("batch_stats", batch_stats)


def _by_running_averages(next_function, arguments, keywords, context):
    """Interceptor of module calls, under which batch normalisation does as in a test, and all else as in training."""
    if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
        keywords = {**keywords, "use_running_average": True}
    return next_function(*arguments, **keywords)


def _has_batch_norm(*arguments) -> bool:
    found = False

    def look(next_function, arguments, keywords, context):
        nonlocal found
        found |= isinstance(context.module, nn.BatchNorm)
        return next_function(*arguments, **keywords)

    with nn.intercept_methods(look):
        jax.eval_shape(lambda: _apply(*arguments))
    return found


def in_line(values: Array) -> Array:
    """[groups, batch, ...] -> [batch * groups, ...]: the groups' first images, then their second ones, and so on.

    An image then has the same place in the batch of all devices, and with it the same dropout, on however many devices.
    """
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])


def _images(batch: Mapping) -> Float[Array, "images height width 3"]:
    images = in_line(batch["image"])
    return images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images


def _over_devices(tree: Tree, axis_name: str | None) -> Tree:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
