"""Back into the ball and into [0, 1], exactly: bounds that hold for the real numbers which the floats stand for.

Plain floating-point arithmetic overshoots: the rounded sum of x and the radius can lie farther from x than the radius,
by half a unit in the last place. Everything here rounds towards x instead.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

# The float32 sum of squares behind an l2 norm is off by about 1e-7; staying this far inside makes up for it.
_L2_MARGIN = 2.0**-20


def project_linf(
    perturbed: Float[Array, "batch height width channels"],
    images: Float[Array, "batch height width channels"],
    radius: Float[Array, "batch 1 1 1"],
) -> Float[Array, "batch height width channels"]:
    """The image nearest to `perturbed` with |x' - images| <= radius at every value and within [0, 1]."""
    lower = jnp.maximum(_add_towards_first(images, -radius), 0)
    upper = jnp.minimum(_add_towards_first(images, radius), 1)
    return _keep_unchanged(jnp.clip(perturbed, lower, upper), images)


def project_l2(
    perturbed: Float[Array, "batch height width channels"],
    images: Float[Array, "batch height width channels"],
    radius: Float[Array, "batch 1 1 1"],
) -> Float[Array, "batch height width channels"]:
    """Scales the change of each image down to ||x' - images||_2 <= radius, then clips to [0, 1].

    Clipping only shortens the change, because `images` are in [0, 1]; so both hold. (Where it clips, the result is a
    point of the intersection, not its nearest one.)
    """
    change = perturbed - images
    norm = l2_norm(change)
    limit = radius * (1 - _L2_MARGIN)
    scale = jnp.where(norm > limit, limit / jnp.where(norm > limit, norm, 1), 1)
    return _keep_unchanged(jnp.clip(_add_towards_first(images, change * scale), 0, 1), images)


def l2_norm(values: Float[Array, "batch height width channels"]) -> Float[Array, "batch 1 1 1"]:
    """Euclidean norm over all values of each image, safe where their squares leave the range of the floats."""
    largest = jnp.max(jnp.abs(values), axis=(1, 2, 3), keepdims=True)
    unit = jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.sum(jnp.square(values / unit), axis=(1, 2, 3), keepdims=True))


def _add_towards_first(first, second):
    """first + second, rounded towards `first`: never farther from it than `second` is long, in exact arithmetic."""
    total = first + second
    # Knuth's two-sum: `error` is what rounding took away, exactly, so total + error is the true sum.
    second_part = total - first
    error = (first - (total - second_part)) + (second - second_part)
    too_far = jnp.where(second > 0, error < 0, error > 0)
    return jnp.where(too_far, jnp.nextafter(total, first), total)


def _keep_unchanged(perturbed, images):
    """The original bits wherever the value is the same (-0.0 and 0.0, or numbers that the device flushes to 0)."""
    return jnp.where(perturbed == images, images, perturbed)
