"""Gradient magnitude similarity deviation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.fidelity._fidelity import Fidelity
from cprl_jax.fidelity._images import average_squares, check_pair, luma, not_finite_is_nan, safe_sqrt

_CONSTANT = 170 / 255**2  # T of the paper's Eq. 4, which is for values in [0, 255]
SMALLEST_SIDE = 6  # pixels


def gmsd(
    images: Float[ArrayLike, "batch height width channels"], references: Float[ArrayLike, "batch height width channels"]
) -> Float[Array, " batch"]:
    """Gradient magnitude similarity deviation of each image: 0 for equal images, larger for worse ones, symmetric.

    Xue et al., "Gradient Magnitude Similarity Deviation: A Highly Efficient Perceptual Image Quality Index", IEEE TIP
    2014, Eqs. 1-6: the standard deviation over the image of the similarity of Prewitt gradient magnitudes, on the luma
    averaged over squares of 2x2 pixels. A change that is equally strong everywhere has distance 0.

    The values are those of `piq.gmsd`: if a side is odd, a row and a column of black pixels are added at the bottom and
    right; gradients see black outside of the image; the deviation is the biased one.

    Args:
      images: floats in [0, 1], RGB (reduced to its luma 0.299 R + 0.587 G + 0.114 B) or one channel. Half precision is
        computed as float32.
      references: the same shape.

    Raises:
      ValueError: different shapes, another rank, dtype or range, neither 3 channels nor 1, or a side below 6 pixels:
        no gradient of smaller images is free of the black outside, so that black and white can look the same.
    """
    images, references = check_pair(images, references, channels=(3, 1))
    if min(images.shape[1:3]) < SMALLEST_SIDE:
        raise ValueError(
            f"GMSD's 3x3 gradients at half size need at least {SMALLEST_SIDE} pixels on each side, got "
            f"{images.shape[1]}x{images.shape[2]}."
        )
    return _gmsd(images, references)


@jax.jit
def _gmsd(images, references):
    first, second = _squared_gradient(images), _squared_gradient(references)
    # 1 - GMS has the same deviation, and in this form is exactly 0 where the magnitudes are equal.
    dissimilarity = jnp.square(safe_sqrt(first) - safe_sqrt(second)) / (first + second + _CONSTANT)
    deviation = dissimilarity - jnp.mean(dissimilarity, axis=(1, 2), keepdims=True)
    return not_finite_is_nan(safe_sqrt(jnp.mean(jnp.square(deviation), axis=(1, 2))), images, references)


def _squared_gradient(images):
    """Squared magnitude of the gradient of the luma at half size, [batch, height, width]."""
    gray = luma(images) if images.shape[-1] == 3 else images
    odd = max(gray.shape[1] % 2, gray.shape[2] % 2)
    gray = average_squares(jnp.pad(gray, ((0, 0), (0, odd), (0, odd), (0, 0))), 2)[..., 0]
    padded = jnp.pad(gray, ((0, 0), (1, 1), (1, 1)))
    down = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    across = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    horizontal = (down[:, :, 2:] - down[:, :, :-2]) / 3
    vertical = (across[:, 2:] - across[:, :-2]) / 3
    return jnp.square(horizontal) + jnp.square(vertical)


FIDELITIES = {"gmsd": Fidelity(gmsd)}
