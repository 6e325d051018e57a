"""What a training carries from one step to the next."""

from collections.abc import Mapping

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from cprl_jax.runtime.parallel import Tree


@flax.struct.dataclass
class TrainState:
    """Everything that a run needs to go on from a step (random draws are functions of the seed and the step).

    Attributes:
      step: how many steps were made.
      params, batch_stats: the variables that are trained.
      optimizer_state: the state of the optimiser, or of several.
      averaged: exponential moving averages of `params` and `batch_stats`; None where they are not averaged.
    """

    step: Int[Array, ""]
    params: Tree
    batch_stats: Tree
    optimizer_state: Tree
    averaged: Mapping[str, Tree] | None = None


def create_state(variables: Mapping, optimizer_state: Tree, *, averaged: bool = False) -> TrainState:
    """The state before the first step."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        optimizer_state=optimizer_state,
        averaged={"params": params, "batch_stats": batch_stats} if averaged else None,
    )


def evaluation_variables(state: TrainState) -> dict[str, Tree]:
    """The variables that are validated, saved for scoring and attacked: the averages where there are any."""
    return dict(state.averaged or {"params": state.params, "batch_stats": state.batch_stats})


def moving_average(averaged: Tree, new: Tree, *, decay: float) -> Tree:
    """decay * averaged + (1 - decay) * new, in a form that leaves what never changes as it is, bit for bit."""
    return jax.tree.map(lambda old, value: old + (1.0 - decay) * (value - old), averaged, new)
