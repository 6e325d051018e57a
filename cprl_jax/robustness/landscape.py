"""Scores on a plane through an image: the attack's direction one way, a random direction the other."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from cprl_jax import attacks
from cprl_jax.attacks.arguments import check_images, check_per_image
from cprl_jax.attacks.gradients import per_image, slope, value_and_gradient
from cprl_jax.attacks.loop import as_pytree, iterate


class Landscape(NamedTuple):
    """Scores on a plane; a pytree, constant for differentiation.

    Attributes:
      scores: `scores[i, j]` is that of the image moved `along_gradient[i]` and `along_random[j]`; the image itself is
        in the middle.
      along_gradient, along_random: how far, in [0, 1] pixel units, from -extent to extent.
      zero_gradient_fraction: share of the image's values that have no gradient (0 or not a number) and therefore do not
        move along the first axis; at 1 there is no such axis, and being flat along it says nothing.
    """

    scores: Float[Array, "points points"]
    along_gradient: Float[Array, " points"]
    along_random: Float[Array, " points"]
    zero_gradient_fraction: Float[Array, ""]


def landscape(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    image: Float[ArrayLike, "height width 3"],
    *,
    extent: Float[ArrayLike, ""],
    points: int = 21,
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]] | None = None,
    key: Key[Array, ""],
) -> Landscape:
    """The scores of clip(image + a * g + b * s, 0, 1) over a grid of a and b in [-extent, extent].

    g is the FGSM direction, the sign of the gradient at the image, and s has a random sign for every value: both move
    every value by the same amount, so the two axes compare. CPRL, Fig. 5 (there with an extent of 1/255). Values that
    would leave [0, 1] are clipped, so that only images are scored. Near black and white the plane is therefore bent; a
    corner lies up to 2 * extent away from the image.

    Works under `jit` and `vmap`. Costs one gradient and points**2 evaluations, `points` at a time.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch].
      image: float32 or float64 RGB in [0, 1].
      extent: half the side of the plane in [0, 1] pixel units.
      points: along each axis; odd, at least 3, so that the image itself is among them.
      direction: whose gradient is followed, as for an attack; default `attacks.up()`: towards higher scores.
      key: determines the random direction: the same key and image size give the same one for every model.

    Raises:
      ValueError: a wrong shape, dtype or number of points; unless traced, an image outside of [0, 1] or an extent that
        is not in (0, 1].
    """
    image = image if isinstance(image, jax.Array) else np.asarray(image)
    if image.ndim != 3:
        raise ValueError(f"image must be [height, width, 3] (one RGB image), got shape {image.shape}.")
    image = check_images(image[None])
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points must be odd and at least 3, so that the image is in the middle, got {points}.")
    if not isinstance(extent, jax.core.Tracer) and not 0 < float(extent) <= 1:
        raise ValueError(f"extent must be in (0, 1] (in pixel units: 1/255 is one grey level), got {extent}.")
    score_fn, direction = as_pytree(score_fn), as_pytree(attacks.up() if direction is None else direction)

    scores = jax.eval_shape(score_fn, image)
    check_per_image("score_fn", scores, 1)
    gradient_sign, zero_fraction = _gradient_sign(score_fn, direction, image)
    random_sign = jax.random.rademacher(key, image.shape, image.dtype)
    offsets = jnp.asarray(extent, image.dtype) * jnp.linspace(-1, 1, points, dtype=image.dtype)
    step = Partial(_score_row, score_fn, image, gradient_sign, random_sign, offsets)
    scores = iterate(step, jnp.zeros((points, points), scores.dtype), steps=points)
    return lax.stop_gradient(Landscape(scores, offsets, offsets, zero_fraction))


@jax.jit
def _gradient_sign(score_fn, direction, image):
    """Sign of the objective's gradient, 0 where there is none, and the share of such values."""
    score, gradient = value_and_gradient(score_fn, image)
    sign = jnp.sign(per_image(slope(direction, score, score)) * gradient)
    return sign, jnp.mean(sign == 0, dtype=image.dtype)


def _score_row(score_fn, image, gradient_sign, random_sign, offsets, row, scores):
    """The scores of one row of the grid."""
    moved = image + offsets[row] * gradient_sign + offsets.reshape(-1, 1, 1, 1) * random_sign
    return scores.at[row].set(score_fn(jnp.clip(moved, 0, 1)))
