"""Back into the ball and into [0, 1], exactly: bounds that hold for the real numbers which the floats stand for.

Plain floating-point arithmetic overshoots: the rounded sum of x and the radius can lie farther from x than the radius,
by half a unit in the last place. The projections round towards x instead; `round_to_8_bit` counts whole grey levels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.attacks.arguments import check_distance, check_images

# The float32 sum of squares behind an l2 norm is off by about 1e-7; staying this far inside makes up for it.
_L2_MARGIN = 2.0**-20

_LEVELS = np.arange(256) / 255
# In grey levels: far above the rounding of 255 * x and 255 * radius in float32, far below any difference that counts.
_LEVEL_TOLERANCE = 1e-4


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


def round_to_8_bit(
    attacked: Float[ArrayLike, "batch height width 3"],
    images: Float[ArrayLike, "batch height width 3"],
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"],
) -> Float[Array, "batch height width 3"]:
    """The nearest 8-bit images inside the l-inf ball: all values are grey levels k / 255 within the radius of `images`.

    An 8-bit file holds such images and no others, so these are the attacked images that can be saved. For 8-bit
    `images`, a radius of 1.9/255 allows a change of one grey level, and one below 1/255 allows none. Changes are
    compared in grey levels, because two levels in float32 may differ by 6e-8 more than they should. Images that are not
    on the grid (resized ones) may have values without a grey level inside the radius: these become the level nearest to
    `images`. Applying the function twice changes nothing more.

    Works under `jit`, `vmap` and the like; constant for differentiation.

    Args:
      attacked: float32 or float64 RGB images in [0, 1], inside the ball or not.
      images: the original images, of the same shape and dtype.
      radius: largest change of any value in [0, 1] pixel units, at most 1: one number or one per image.

    Raises:
      ValueError: an argument of the wrong shape or dtype; unless traced, images or a radius outside [0, 1].
    """
    attacked, images = check_images(attacked), check_images(images)
    if (attacked.shape, attacked.dtype) != (images.shape, images.dtype):
        raise ValueError(
            f"attacked and images must agree, got {attacked.dtype} of shape {attacked.shape} and {images.dtype} of "
            f"shape {images.shape}."
        )
    radius = check_distance("radius", radius, images, highest=1)
    return _round_to_8_bit(*lax.stop_gradient((attacked, images, radius)))


@jax.jit
def _round_to_8_bit(attacked, images, radius):
    levels, reach = 255 * images, (255 * radius).reshape(-1, 1, 1, 1) + _LEVEL_TOLERANCE
    nearest = jnp.round(levels)
    lowest = jnp.minimum(jnp.ceil(levels - reach), nearest)
    highest = jnp.maximum(jnp.floor(levels + reach), nearest)
    return grey_level(jnp.clip(jnp.round(255 * attacked), lowest, highest), attacked.dtype)


def grey_level(number: Float[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape"]:
    """number / 255 for whole numbers, those outside of 0..255 brought inside; NaN for NaN and infinite ones."""
    # From a table: compiled, a division by 255 becomes a product, which is not k / 255 for half of the grey levels.
    level = jnp.asarray(_LEVELS, dtype)[jnp.clip(number, 0, 255).astype(jnp.uint8)]
    return jnp.where(jnp.isfinite(number), level, jnp.nan)


def to_8_bits(images: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The nearest grey levels, halves to even, without regard to any radius."""
    return grey_level(jnp.round(255 * images), images.dtype)


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
