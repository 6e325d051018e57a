"""What an attack returns."""

import sys
import warnings
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cprl_jax.attacks.arguments import all_finite

Result = TypeVar("Result")


class AttackResult(NamedTuple):
    """Attacked images and what the attack did to their scores; a pytree, constant for differentiation.

    Attributes:
      images: the attacked images, in [0, 1].
      before: scores of the original images.
      after: scores of the attacked images, exactly those in `images`.
      max_change: largest change of any pixel value in each image, max |x' - x|, in [0, 1] pixel units.
      zero_gradient_fraction: share of each image's values (pixels times channels) at which the first gradient gave the
        attack nothing to follow: it was exactly 0, or not a number. 1 means that the attack never had a direction, so
        an unchanged score says nothing about robustness. With a random start it is measured at that start. None where
        an attack asks for no gradient.

    Of an image that holds NaN or an infinite value, everything here is NaN. (Called with values, attacks refuse it.)
    """

    images: Float[Array, "batch height width 3"]
    before: Float[Array, " batch"]
    after: Float[Array, " batch"]
    max_change: Float[Array, " batch"]
    zero_gradient_fraction: Float[Array, " batch"] | None


def finish(result: Result, images: Float[Array, "batch height width 3"]) -> Result:
    """The result as a constant for differentiation, with its NaN, after a warning about images without a gradient.

    Args:
      result: an `AttackResult`, or any other named tuple with a `zero_gradient_fraction`.
      images: the original images.
    """
    result = lax.stop_gradient(mark_not_finite(result, images))
    if result.zero_gradient_fraction is not None:
        warn_if_gradient_is_zero(result.zero_gradient_fraction)
    return result


def mark_not_finite(result: Result, images: Float[Array, "batch height width 3"]) -> Result:
    """NaN, or False, in all that belongs to an image with values that are not finite: clipping could hide them.

    Args:
      result: arrays [..., batch], or [..., batch, height, width, 3].
      images: the original images. Where they are no tracers, `check_images` has refused such values.
    """
    if not isinstance(images, jax.core.Tracer):
        return result
    finite = all_finite(images)

    def mark(leaf):
        mask = finite.reshape(-1, 1, 1, 1) if leaf.ndim >= 4 else finite
        mark = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else False
        return jnp.where(jnp.broadcast_to(mask, leaf.shape), leaf, mark)

    return jax.tree.map(mark, result)


def warn_if_gradient_is_zero(zero_gradient_fraction: Float[Array, "..."]) -> None:
    """A UserWarning saying how many images had no gradient at all; nothing while the values are being traced.

    It waits for the values.
    """
    if isinstance(zero_gradient_fraction, jax.core.Tracer):
        return
    with jax.ensure_compile_time_eval():
        count = int(_count_ones(zero_gradient_fraction))
    if count:
        warnings.warn(
            f"the score of {count} of {zero_gradient_fraction.size} images has no gradient that the attack could "
            "follow (zero_gradient_fraction is 1): where their scores hold, that is no sign of robustness. Look for "
            "rounding, stop_gradient or saturation in the score function; attacks.square needs no gradient.",
            stacklevel=_levels_to_caller(),
        )


@jax.jit
def _count_ones(fraction):
    return jnp.sum(fraction == 1)


def largest_change(
    attacked: Float[Array, "batch height width 3"], images: Float[Array, "batch height width 3"]
) -> Float[Array, " batch"]:
    """max |x' - x| of each image."""
    return jnp.max(jnp.abs(attacked - images), axis=(1, 2, 3))


def _levels_to_caller() -> int:
    """How far up the stack, seen from the function that warns, the first code outside of this package is."""
    package, frame, levels = str(Path(__file__).parent), sys._getframe(1), 1
    while frame.f_back and frame.f_code.co_filename.startswith(package):
        frame, levels = frame.f_back, levels + 1
    return levels
