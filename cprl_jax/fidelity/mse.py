"""Mean squared error, and the peak signal-to-noise ratio made of it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.fidelity._fidelity import Fidelity
from cprl_jax.fidelity._images import check_pair, not_finite_is_nan, safe_sqrt


def mse(
    images: Float[ArrayLike, "batch height width channels"], references: Float[ArrayLike, "batch height width channels"]
) -> Float[Array, " batch"]:
    """Mean of (image - reference)^2 over the pixels and channels of each image: 0 for equal images, at most 1.

    Args:
      images: floats in [0, 1]. Half precision is computed as float32.
      references: the same shape.

    Raises:
      ValueError: different shapes, another rank, dtype or range.
    """
    return _mse(*check_pair(images, references))


def psnr(
    images: Float[ArrayLike, "batch height width channels"], references: Float[ArrayLike, "batch height width channels"]
) -> Float[Array, " batch"]:
    """Peak signal-to-noise ratio of each image in decibels, 10 log10(1 / MSE): +inf for equal images, else at least 0.

    The peak is 1, the range of the images, and the error is averaged over the channels before the logarithm, as in
    `skimage.metrics.peak_signal_noise_ratio(data_range=1)`. Towards the reference the gradient grows without bound; at
    the reference itself it is 0.

    Args:
      images: floats in [0, 1]. Half precision is computed as float32.
      references: the same shape.

    Raises:
      ValueError: different shapes, another rank, dtype or range.
    """
    return _psnr(*check_pair(images, references))


def rmse(
    images: Float[ArrayLike, "batch height width channels"], references: Float[ArrayLike, "batch height width channels"]
) -> Float[Array, " batch"]:
    """The root of `mse`, which is 10^(-PSNR / 20): PSNR as a distance. Its gradient at the reference is 0."""
    return _rmse(*check_pair(images, references))


@jax.jit
def _mse(images, references):
    return not_finite_is_nan(jnp.mean(jnp.square(images - references), axis=(1, 2, 3)), images, references)


@jax.jit
def _psnr(images, references):
    error = _mse(images, references)
    differs = ~(error <= 0)  # also where it is NaN
    return jnp.where(differs, -10 * jnp.log10(jnp.where(differs, error, 1)), jnp.inf)


@jax.jit
def _rmse(images, references):
    return safe_sqrt(_mse(images, references))


FIDELITIES = {"mse": Fidelity(mse), "psnr": Fidelity(psnr, distance=rmse)}
