"""Saliency maps: how strongly a score depends on each pixel (Causal-IQA, Appendix G.4 and Fig. 9)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.attacks.arguments import check_images, check_per_image
from cprl_jax.attacks.gradients import evaluate, value_and_gradient
from cprl_jax.attacks.loop import as_pytree


def saliency(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
) -> Float[Array, "batch height width"]:
    """The largest magnitude over a pixel's three channels of the gradient of the score in the image.

    This is the map that Simonyan et al. (arXiv:1312.6034, Sec. 3) define for the score of a class; the code that
    Causal-IQA names for its "MOS specific saliency maps" draws it, and Causal-IQA says no more. It has no sign: a large
    value says that the score would change with the pixel, not which way. Works under `jit` and `vmap`; constant for
    differentiation.

    Args:
      score_fn: images in [0, 1] to scores, each of its image only (a network in evaluation mode).
      images: float32 or float64 RGB in [0, 1].

    Returns:
      Score points per unit of a channel's value (its whole range is 1), at least 0 and finite: 0 where the gradient is
      not a number.

    Raises:
      ValueError: a wrong shape or dtype; a score function that does not give one float per image; unless traced, images
        outside of [0, 1].
    """
    images = check_images(images)
    score_fn = as_pytree(score_fn)
    check_per_image("score_fn", evaluate.eval_shape(score_fn, images), images.shape[0])
    return lax.stop_gradient(jnp.max(jnp.abs(_gradient(score_fn, images)), axis=-1))


@jax.jit
def _gradient(score_fn, images):
    return value_and_gradient(score_fn, images)[1]
