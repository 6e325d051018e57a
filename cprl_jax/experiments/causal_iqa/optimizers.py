"""Meta optimisers: how theta follows phi, the parameters that the inner steps reached."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

Tree = Any
"""A pytree of arrays."""


class MetaOptimizer(NamedTuple):
    """`state = init(params)`, then `params, state = update(params, adapted, state)` with `adapted` = phi."""

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]


def interpolation(rate: float) -> MetaOptimizer:
    """theta <- theta + rate (phi - theta), as in Reptile and MetaIQA; with rate 1, theta becomes phi exactly.

    Algorithms 1 and 2 print theta - beta (phi - theta), which climbs the loss.

    Raises:
      ValueError: `rate` outside (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; interpolation takes a rate above 0 and at most 1")

    def update(params, adapted, state):
        if rate == 1:
            return adapted, state
        return jax.tree.map(lambda theta, phi: theta + rate * (phi - theta), params, adapted), state

    return MetaOptimizer(lambda params: (), update)


def pseudo_gradient_adam(rate: float, *, b1: float = 0.9, b2: float = 0.9999) -> MetaOptimizer:
    """Adam on the pseudo-gradient theta - phi: each parameter moves by up to `rate`, however near phi is.

    Causal-IQA states "Adam for both task updating and meta updating" with rate 1e-2, b1 0.9, b2 0.9999.

    Raises:
      ValueError: `rate` that is not positive.
    """
    if not rate > 0:
        raise ValueError(f"rate is {rate}; Adam takes a positive rate")
    optimizer = optax.adam(rate, b1=b1, b2=b2)

    def update(params, adapted, state):
        updates, state = optimizer.update(jax.tree.map(lambda theta, phi: theta - phi, params, adapted), state, params)
        return optax.apply_updates(params, updates), state

    return MetaOptimizer(optimizer.init, update)
