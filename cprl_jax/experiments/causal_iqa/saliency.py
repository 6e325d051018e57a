"""Saliency maps: how strongly a score depends on each pixel (Causal-IQA, Appendix G.4 and Fig. 9)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from cprl_jax.attacks.arguments import check_images, check_number, check_per_image
from cprl_jax.attacks.gradients import evaluate, value_and_gradient
from cprl_jax.attacks.loop import as_pytree, iterate


def saliency(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    copies: int = 0,
    noise: float = 0.15,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "batch height width"]:
    """The largest magnitude over a pixel's three channels of the gradient of the score in the image.

    This is the map that Simonyan et al. (arXiv:1312.6034, Sec. 3) define for the score of a class; the code that
    Causal-IQA names for its "MOS specific saliency maps" draws it, and Causal-IQA says no more. It has no sign: a large
    value says that the score would change with the pixel, not which way.

    Maps of one gradient are grainy. With `copies`, the gradient is averaged over that many copies of the image with
    Gaussian noise before its magnitude is taken (SmoothGrad, Smilkov et al., arXiv:1706.03825: 50 copies, noise 0.1 to
    0.2); the noise is not clipped. Causal-IQA does not speak of it, so there is none by default.

    Each image's map depends on that image alone: all images of a batch get the same noise, in proportion to their own
    range. Works under `jit` and `vmap`; constant for differentiation.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each of its own image only (a network in
        evaluation mode).
      images: float32 or float64 RGB in [0, 1].
      copies: with noise; 0 = one gradient at the image itself.
      noise: standard deviation, as a share of the image's range (its largest value minus its smallest).
      key: of the noise; needed where there are copies.

    Returns:
      Score points per unit of a channel's value (its whole range is 1), at least 0 and finite: 0 where the gradient is
      not a number.

    Raises:
      ValueError: a wrong shape, dtype, number of copies or noise; copies without a key; a score function that does not
        give one float per image; unless traced, images outside of [0, 1].
    """
    images = check_images(images)
    noise = check_number("noise", noise)
    if not isinstance(copies, int) or copies < 0:
        raise ValueError(f"copies must be a whole number of at least 0 (0 = without noise), got {copies!r}.")
    if copies and key is None:
        raise ValueError(f"key is missing: {copies} copies with noise need one, such as jax.random.key(0).")
    score_fn = as_pytree(score_fn)
    check_per_image("score_fn", evaluate.eval_shape(score_fn, images), images.shape[0])
    if copies:
        step = Partial(_add_gradient_with_noise, score_fn, images, jnp.asarray(noise, images.dtype), key)
        gradient = iterate(step, jnp.zeros_like(images), steps=copies) / copies
    else:
        gradient = _gradient(score_fn, images)
    return lax.stop_gradient(jnp.max(jnp.abs(gradient), axis=-1))


@jax.jit
def _gradient(score_fn, images):
    return value_and_gradient(score_fn, images)[1]


def _add_gradient_with_noise(score_fn, images, noise, key, index, total):
    """The sum so far and the gradient at one noisy copy of each image."""
    highest, lowest = (extreme(images, axis=(1, 2, 3), keepdims=True) for extreme in (jnp.max, jnp.min))
    pattern = jax.random.normal(jax.random.fold_in(key, index), images.shape[1:], images.dtype)
    return total + value_and_gradient(score_fn, images + noise * (highest - lowest) * pattern[None])[1]
