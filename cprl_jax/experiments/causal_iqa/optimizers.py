"""The two optimisers of meta-learning: the inner one moves phi, the meta one moves theta towards phi."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

Tree = Any
"""A pytree of arrays."""


class MetaOptimizer(NamedTuple):
    """How theta follows phi: `state = init(params)` and `params, state = update(params, adapted, state)`."""

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]


def inner_optimizer(
    kind: str = "adam",
    *,
    backbone_learning_rate: float,
    head_learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.9999,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """'adam' or 'sgd', with one learning rate for params['backbone'] and one for everything else.

    Args:
      kind: of both groups.
      backbone_learning_rate, head_learning_rate: alpha of Algorithms 1 and 2.
      b1, b2: of Adam; the defaults are Causal-IQA's.
      weight_decay: added to the gradient, before the moments.
      clip_norm: largest norm of the whole gradient; 0 = any.

    Raises:
      ValueError: unknown `kind`.
    """
    check("kind", kind, ("adam", "sgd"))

    def group(learning_rate: float) -> optax.GradientTransformation:
        decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
        scale = [optax.scale_by_adam(b1, b2)] if kind == "adam" else []
        return optax.chain(*decay, *scale, optax.scale_by_learning_rate(learning_rate))

    def label(path, _):
        return "backbone" if path[0].key == "backbone" else "head"

    groups = {"backbone": group(backbone_learning_rate), "head": group(head_learning_rate)}
    optimizer = optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(label, params))
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


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
        pseudo_gradient = jax.tree.map(lambda theta, phi: theta - phi, params, adapted)
        updates, state = optimizer.update(pseudo_gradient, state, params)
        return optax.apply_updates(params, updates), state

    return MetaOptimizer(optimizer.init, update)


def check(field: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError for a value that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{field} {value!r} is unknown; allowed: {', '.join(allowed)}")
