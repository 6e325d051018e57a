"""Gradients of one value per image, and the steepest way along them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from cprl_jax.attacks.arguments import check_per_image
from cprl_jax.attacks.loop import as_pytree, evaluate
from cprl_jax.attacks.projection import l2_norm


def as_constant(function: Callable) -> Partial:
    """The function as a pytree (see `as_pytree`), whose arrays are constants for differentiation."""
    return jax.tree.map(lax.stop_gradient, as_pytree(function))


def evaluate_per_image(what: str, function: Partial, images: jax.Array, *arguments: Any) -> Float[Array, " batch"]:
    """`function(images, *arguments)`, after a check, before anything is computed, that it is one float per image."""
    check_per_image(what, evaluate.eval_shape(function, images, *arguments), images.shape[0])
    return evaluate(function, images, *arguments)


def value_and_gradient(
    function: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[Array, "batch height width 3"],
) -> tuple[Float[Array, " batch"], Float[Array, "batch height width 3"]]:
    """Each image's value, and its gradient in that image; 0 in place of what is not a number. Both are constants."""

    def total(images):  # the gradient of the sum, because each value depends on its image alone
        values = function(images)
        return jnp.sum(values), values

    gradient, values = jax.grad(total, has_aux=True)(images)
    return lax.stop_gradient((values, jnp.nan_to_num(gradient)))


def slope(
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]],
    scores: Float[Array, " batch"],
    clean_scores: Float[Array, " batch"],
) -> Float[Array, " batch"]:
    """How fast the direction's objective grows with each score.

    By the chain rule, this times the gradient of the score is the gradient of the objective, so that the score, its
    gradient and its objective come from one evaluation of the network.
    """

    def total(scores):
        values = direction(scores, clean_scores)
        check_per_image("direction", values, scores.shape[0])
        return jnp.sum(values)

    return jax.grad(total)(scores)


def of_largest_one(direction: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
    """Each direction scaled so that no norm of it overflows or vanishes; 0 stays 0."""
    largest = jnp.max(jnp.abs(direction), axis=(1, 2, 3), keepdims=True)
    return direction / jnp.where(largest > 0, largest, 1)


def of_mean_one(gradient: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
    """Divided by the mean absolute value of each image: Dong et al.'s l1 norm up to a constant factor."""
    gradient = of_largest_one(gradient)
    mean = jnp.mean(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
    return gradient / jnp.where(mean > 0, mean, 1)


def unit(direction: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
    """Each direction scaled to Euclidean length 1; 0 where it is 0."""
    direction = of_largest_one(direction)
    norm = l2_norm(direction)
    return direction / jnp.where(norm > 0, norm, 1)


# The direction of length 1 in a norm along which a function with this gradient grows fastest.
_STEEPEST = {"linf": jnp.sign, "l2": unit}


def steepest(norm: str) -> Partial:
    """`direction = steepest(norm)(gradient)` of length 1 in the norm.

    Raises:
      ValueError: an unknown norm.
    """
    if norm not in _STEEPEST:
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}.")
    return Partial(_STEEPEST[norm])


def dot(first: Float[Array, "batch ..."], second: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """The scalar product of each image's values."""
    return jnp.sum(first * second, axis=tuple(range(1, first.ndim)))


def per_image(values: Float[Array, " batch"]) -> Float[Array, "batch 1 1 1"]:
    """One number per image, in the form that multiplies images."""
    return values.reshape(-1, 1, 1, 1)
