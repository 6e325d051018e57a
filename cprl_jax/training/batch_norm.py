"""Batch normalisation in training by the statistics that the deployed model has.

Statistics of the batch hide what training is to see: they take out the common shift that a perturbation makes (behind
batch normalisation and a linear layer, the gradient of the summed scores is exactly zero), and a batch of one
distortion gives away which one it is. Under `running_statistics`, a network in training mode normalises by its running
averages; `step_of_averages` makes these follow the training.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from cprl_jax.models.common import BATCH_NORM_MOMENTUM


def running_statistics() -> AbstractContextManager:
    """A context in which batch normalisation behaves as in evaluation mode; other layers are not affected.

    `use_running_average` must come with the call of `nn.BatchNorm`, not with its constructor.
    """

    def intercept(next_function, arguments, keywords, context):
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            arguments, keywords = arguments[:1], {**keywords, "use_running_average": True}
        return next_function(*arguments, **keywords)

    return nn.intercept_methods(intercept)


def uses_batch_norm(apply: Callable[[], Any]) -> bool:
    """Whether a call of a network, without arguments, meets batch normalisation."""
    met = []

    def look(next_function, arguments, keywords, context):
        met.append(isinstance(context.module, nn.BatchNorm))
        return next_function(*arguments, **keywords)

    with nn.intercept_methods(look):
        jax.eval_shape(apply)
    return any(met)


def step_of_averages(old: Mapping, updated: Mapping, *, step: Int[Array, ""]) -> dict[str, Any]:
    """The collection 'batch_stats' after a step of the running averages towards the statistics of a batch.

    In the first ten steps they are the mean of all batches so far: the averages of random weights say nothing, and
    those that weights came with are of other images. Variables of other layers are what the pass made of them.

    Args:
      old: the collection before the step.
      updated: the collection after a pass in training mode, with the momentum of `models.common.batch_norm`.
      step: the number of earlier steps.
    """
    if {*old} == {"mean", "var"}:
        longer = jnp.maximum(1.0, 1 / ((1 - BATCH_NORM_MOMENTUM) * (step + 1).astype(jnp.float32)))
        return {name: old[name] + longer.astype(old[name].dtype) * (updated[name] - old[name]) for name in old}
    return {
        name: step_of_averages(old[name], updated[name], step=step) if isinstance(old[name], Mapping) else updated[name]
        for name in updated
    }
