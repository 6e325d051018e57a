"""What one inner step of Causal-IQA's updates needs: a network, its loss (Eq. 6), the gradient, batch normalisation.

The mean and variance of a batch of one subset reveal much of what the network should find out, and are not there when
it scores single images. So inner steps normalise by running averages (`batch_norm='running'`): at the start of a meta
step, the images of all its groups pass through theta as one batch, without a gradient, and the running averages make a
step towards the statistics of that batch. With 'batch', as in the published code, an inner step normalises by its
batch, and in every meta step the running averages make one step of their usual momentum towards the mean of the
statistics of all inner batches. Either way each subset counts alike, whatever their order.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cprl_jax.runtime.parallel import Tree
from cprl_jax.training.batch_norm import running_statistics, step_of_averages, uses_batch_norm

_NO_INNER_STEP = 2**31 - 1  # its place in the random numbers is that of the pass for the running averages


@dataclasses.dataclass(frozen=True)
class Learner:
    """What all updates have in common.

    Attributes:
      module: takes (images, train) and gives scores in MOS points.
      inner: moves phi along a gradient, see `training.optimizers.two_rates`.
      meta: moves theta along the pseudo-gradient theta - phi. `optax.sgd(rate)` is the interpolation theta <- theta +
        rate (phi - theta) of Reptile and MetaIQA (Algorithms 1 and 2 print theta - beta (phi - theta), which climbs the
        loss); None is interpolation at rate 1: theta becomes phi exactly. Causal-IQA states "Adam for both task
        updating and meta updating" with rate 1e-2, b1 0.9, b2 0.9999, which moves each parameter by up to its rate,
        however near phi is.
      loss: 'l1' or 'l2', see `image_loss`.
      seed: determines dropout and random masks.
      inner_state: 'kept': the moments of the inner optimiser outlive a meta step. 'reset': they start from zero
        whenever phi starts from theta. The first step of an Adam moves every parameter by the learning rate, whatever
        the size of the gradient: with 'reset', all that CIP ever sees of a gradient is its sign.
      batch_norm: 'running' or 'batch', see above.
      schedule: meta step -> factor on the inner learning rates. It is not part of `inner`, whose count of steps starts
        from zero when it is reset.
      axis_name: the mapped axis over which each group's batch is divided, if any; the same as the module's.

    Raises:
      ValueError: an unknown `loss`, `inner_state` or `batch_norm`.
    """

    module: nn.Module
    inner: optax.GradientTransformation
    meta: optax.GradientTransformation | None
    loss: str = "l1"
    seed: int = 0
    inner_state: str = "kept"
    batch_norm: str = "running"
    schedule: Callable[[Int[Array, ""]], Float[Array, ""]] | None = None
    axis_name: str | None = None

    def __post_init__(self):
        check_choice("loss", self.loss, ("l1", "l2"))
        check_choice("inner_state", self.inner_state, ("kept", "reset"))
        check_choice("batch_norm", self.batch_norm, ("running", "batch"))


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError for a value that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def image_loss(
    scores: Float[Array, " batch"], mos: Float[Array, " batch"], *, kind: str = "l1"
) -> Float[Array, " batch"]:
    """The loss of each image: 'l1', which is also the earth mover's distance of two certain scores, or 'l2'."""
    return jnp.abs(scores - mos) if kind == "l1" else (scores - mos) ** 2


def subset_weights(
    weight: Float[Array, "groups batch"], *, axis_name: str | None = None
) -> Float[Array, "groups batch"]:
    """w_rj / sum over r of w_rj (Eq. 6): each group's weights, summing to 1 over the group's images of all devices."""
    return weight / _over_devices(jnp.sum(weight, axis=1, keepdims=True), axis_name)


def weighted_gradients(
    learner: Learner, params: Tree, batch_stats: Tree, batch: Mapping, *, step: Int[Array, ""], index: Int[Array, ""]
) -> tuple[Float[Array, ""], Tree, Tree]:
    """The mean of Eq. 6 over the groups of a batch (see `updates`) and all devices, and its gradient in `params`.

    Dropout depends on the meta step `step` and the inner step `index`.

    Returns:
      the loss; 'batch_stats' after it (as they were by running averages: `running_averages` has made their step); the
      gradient.
    """
    groups = batch["weight"].shape[0]
    weights = _one_batch(subset_weights(batch["weight"], axis_name=learner.axis_name) / groups)
    images, mos = _pixels(batch), _one_batch(batch["mos"])

    def loss_of(params):
        scores, updated = _apply(learner, params, batch_stats, images, step, index)
        return jnp.sum(weights * image_loss(scores, mos, kind=learner.loss)), updated

    by_averages = learner.batch_norm == "running" and uses_batch_norm(lambda: loss_of(params))
    with running_statistics() if by_averages else contextlib.nullcontext():
        (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    # Sums, not means: the weights sum to 1 over all devices.
    loss, gradients = _over_devices((loss, gradients), learner.axis_name)
    return loss, batch_stats if by_averages else updated, gradients


def running_averages(
    learner: Learner, params: Tree, batch_stats: Tree, batch: Mapping, *, step: Int[Array, ""]
) -> Tree:
    """'batch_stats' after a step towards the statistics of all groups; unchanged with batch_norm='batch'."""

    def apply():
        return _apply(learner, params, batch_stats, _pixels(batch), step, _NO_INNER_STEP)

    if learner.batch_norm == "batch" or not uses_batch_norm(apply):
        return batch_stats
    return step_of_averages(batch_stats, apply()[1], step=step)


def _apply(learner: Learner, params: Tree, batch_stats: Tree, images: Array, step, index) -> tuple[Array, Tree]:
    """Scores of a network in training mode, and 'batch_stats' after the pass."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(learner.seed), step), index)
    streams = {name: jax.random.fold_in(key, number) for number, name in enumerate(("mask", "dropout"))}
    variables = {"params": params, "batch_stats": batch_stats}
    scores, updated = learner.module.apply(variables, images, train=True, rngs=streams, mutable=["batch_stats"])
    return scores, updated.get("batch_stats", batch_stats)


def _one_batch(values: Array) -> Array:
    """[groups, batch, ...] -> [batch * groups, ...]: the groups' first images, then their second ones, and so on.

    An image then has the same place in the batch of all devices, and with it the same dropout, on however many devices.
    """
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])


def _pixels(batch: Mapping) -> Float[Array, "images height width 3"]:
    images = _one_batch(batch["image"])
    return images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images


def _over_devices(tree: Tree, axis_name: str | None) -> Tree:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
