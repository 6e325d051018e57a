"""MeanSparse: in a trained network, values close to a channel's mean become that mean, in front of every activation.

Amini et al., "MeanSparse: Post-Training Robustness Enhancement Through Mean-Centered Feature Sparsification", 2024.
What the attacker's small changes of such a value would have done, the network no longer sees; nor has the attacker its
gradient, so that an attack must go through the gate (`METHOD.adaptive`) before the method is believed.
"""

import dataclasses
from collections.abc import Callable, Mapping

import flax
import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from absl import logging
from jax import lax
from jaxtyping import Array, Float

from cprl_jax import models
from cprl_jax.config.field import Field
from cprl_jax.methods import plain
from cprl_jax.methods.method import UNTRAINED, ScoreFn
from cprl_jax.models.change import NetworkChange
from cprl_jax.models.common import moments, union_of_moments


class Sparsified(nn.Module):
    """x, but the mean of its channel where |x - mean| < threshold * standard deviation.

    Variables in 'batch_stats': `mean` and `variance` [channels], over all places of all images that were seen while
    these could change; `count`, how many batches that were; `threshold`, 0 until one is set: x as it is.

    Attributes:
      straight_through: differentiated as if x were left as it is.
      axis_name: the mapped axis over which a batch is spread, if any.
    """

    straight_through: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        variance = self.variable("batch_stats", "variance", jnp.zeros, (channels,), jnp.float32)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.float32)
        threshold = self.variable("batch_stats", "threshold", jnp.zeros, (), jnp.float32)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            seen = moments(x.reshape(-1, channels).astype(jnp.float32), self.axis_name)
            count.value = count.value + 1.0
            mean.value, variance.value = union_of_moments(mean.value, variance.value, *seen, share=1.0 / count.value)
        centre, size = (
            values.astype(x.dtype).reshape(1, 1, 1, -1) for values in (mean.value, jnp.sqrt(variance.value))
        )
        sparse = jnp.where(jnp.abs(x - centre) < threshold.value.astype(x.dtype) * size, centre, x)
        return x + lax.stop_gradient(sparse - x) if self.straight_through else sparse


@dataclasses.dataclass(frozen=True)
class MeanSparse(NetworkChange):
    """`Sparsified` in front of every activation of the trunk."""

    straight_through: bool = False

    def activation(self, module, x, default, place):
        gate = Sparsified(self.straight_through, place.axis_name, name=f"{place.name}_meansparse")
        return default(gate(x))


def with_threshold(variables: Mapping, threshold: float) -> dict:
    """The variables with this threshold in every gate."""
    flat = flax.traverse_util.flatten_dict(dict(variables))
    for path in flat:
        if path[-1] == "threshold" and path[-2].endswith("_meansparse"):
            flat[path] = jnp.full((), threshold, jnp.float32)
    return flax.traverse_util.unflatten_dict(flat)


def sweep(variables: Mapping, srcc: Callable[[Mapping], float], settings: ml_collections.ConfigDict):
    """The variables with the largest threshold up to which every one keeps the clean SRCC; 0 where none does.

    Args:
      variables: with the statistics.
      srcc: `(variables) -> SRCC` of clean validation images.
      settings: `thresholds`, in any order, and by how much SRCC may fall below that of threshold 0, `tolerance`.

    Returns:
      the variables; their `threshold`, and `srcc_without` the gates.
    """
    chosen, before = 0.0, srcc(with_threshold(variables, 0.0))
    for threshold in sorted(settings.thresholds):
        now = srcc(with_threshold(variables, threshold))
        logging.info("meansparse: SRCC of the validation images %.4f at a threshold of %g", now, threshold)
        if not now >= before - settings.tolerance:
            break
        chosen = threshold
    return with_threshold(variables, chosen), {"threshold": chosen, "srcc_without": before}


def through_the_gates(module: nn.Module, variables: Mapping) -> ScoreFn:
    """The network with its gates, differentiated as if they left everything as it is (BPDA)."""
    change = dataclasses.replace(module.change, straight_through=True)
    return models.score_fn(module.clone(change=change), variables)


METHOD = dataclasses.replace(
    plain.METHOD,
    name="meansparse",
    title="MeanSparse",
    source="Amini et al., 2024",
    trains=False,
    settings={
        **UNTRAINED,
        "steps": dataclasses.replace(UNTRAINED["steps"], default=50, help="batches whose statistics are collected"),
        "thresholds": Field(
            tuple(round(0.05 * step, 2) for step in range(1, 21)),
            "tried in turn, from the smallest; the last before the clean SRCC of the validation images falls is taken",
            "standard deviations of a channel",
            above=0,
        ),
        "tolerance": Field(0.01, "by how much that SRCC may fall", at_least=0),
    },
    network=lambda settings: MeanSparse(),
    calibrate=sweep,
    adaptive=through_the_gates,
    parts=lambda settings: [f"at most {settings.tolerance:g} of clean SRCC", f"after {settings.start_from}"],
)
