"""Normalised, whitened patches of grey images, and codebooks of them: what CORNIA and HOSA are made of."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from cprl_jax.models.fitted import each_batch
from cprl_jax.runtime.errors import UserError

SIDE = 7  # of a patch, in pixels
AREA = SIDE * SIDE
CONTRAST = 10.0  # added to the variance of a patch, of grey levels in 0..255
GREY = (0.2989, 0.587, 0.114)
REGULARIZER = 0.1  # added to the eigenvalues of the patches' covariance
SAMPLED = 200  # patches of each image that a codebook is learnt from
SAMPLES = 200_000  # at most
_STEPS = (0.7548776662466927, 0.5698402909980532)  # Roberts' R2 sequence, 1 / g and 1 / g^2 with g^3 = g + 1


class Whitening(NamedTuple):
    """A patch p becomes (p - mean) @ matrix (zero-phase component analysis)."""

    mean: Float[Array, "49"]
    matrix: Float[Array, "49 49"]


def patches(images: Float[Array, "batch height width 3"], count: int) -> Float[Array, "batch places 49"]:
    """Grey 7x7 patches, row by row, each less its mean and divided by sqrt(variance + 10), for grey levels in 0..255.

    The variance is the unbiased one. The places are the same for all images of a size: all that there are if these are
    no more than `count`, else `count` of them, evenly over the image (an R2 sequence).

    Args:
      images: RGB in [0, 1], at least 7x7 pixels.
      count: the most patches of an image.
    """
    rows, columns = _places(images.shape[1], images.shape[2], count)
    grey = 255.0 * jnp.einsum("bhwc,c->bhw", images, jnp.asarray(GREY, images.dtype), precision=lax.Precision.HIGHEST)
    inside = np.arange(SIDE)
    found = grey[:, rows[:, None, None] + inside[None, :, None], columns[:, None, None] + inside[None, None, :]]
    found = found.reshape(len(images), len(rows), AREA)
    found = found - jnp.mean(found, axis=-1, keepdims=True)
    variance = jnp.sum(found * found, axis=-1, keepdims=True) / (AREA - 1)
    return found / jnp.sqrt(variance + CONTRAST)


@functools.cache
def _places(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    down, across = height - SIDE + 1, width - SIDE + 1
    if min(down, across) < 1:
        raise ValueError(f"patches of {SIDE}x{SIDE} pixels need an image at least as large, got {height}x{width}")
    if down * across <= count:
        return np.divmod(np.arange(down * across), across)
    uniform = (0.5 + np.arange(count)[:, None] * _STEPS) % 1.0
    return np.floor(uniform[:, 0] * down).astype(int), np.floor(uniform[:, 1] * across).astype(int)


def whiten(found: Float[Array, "*batch 49"], whitening: Whitening) -> Float[Array, "*batch 49"]:
    """See `Whitening`."""
    return (found - whitening.mean.reshape((1,) * (found.ndim - 1) + (AREA,))) @ whitening.matrix


def fit_whitening(samples: Float[np.ndarray, "patches 49"]) -> Whitening:
    """Of the samples' mean and covariance: matrix = V (D + 0.1)^(-1/2) V^T."""
    samples = samples.astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(samples, rowvar=False))
    matrix = (vectors / np.sqrt(np.maximum(values, 0.0) + REGULARIZER)) @ vectors.T
    return Whitening(samples.mean(axis=0).astype(np.float32), matrix.astype(np.float32))


def sample(found: Float[np.ndarray, "images places 49"], count: int, seed: int) -> Float[np.ndarray, "patches 49"]:
    """At most `count` of all patches, at random."""
    flat = found.reshape(-1, found.shape[-1])
    return flat[np.random.default_rng(seed).permutation(len(flat))[:count]]


def fit_codebook(samples: Float[np.ndarray, "patches 49"], words: int, seed: int, network: str):
    """The fitted `sklearn.cluster.MiniBatchKMeans` of whitened patches: `cluster_centers_`, `labels_`.

    Raises:
      UserError: fewer patches than words.
    """
    from sklearn.cluster import MiniBatchKMeans  # here: slow to import, and rarely needed

    if len(samples) < words:
        raise UserError(
            f"config.model.{network}.words is {words}, but the training images give {len(samples)} patches; lower it, "
            "or give more images"
        )
    means = MiniBatchKMeans(words, random_state=seed, n_init=1, batch_size=max(4096, 2 * words), max_iter=20)
    return means.fit(samples)


def learn(
    images: Sequence, words: int, seed: int, network: str
) -> tuple[Whitening, Float[np.ndarray, "patches 49"], Any]:
    """What a codebook needs: the whitening of the images' patches, a sample of them, whitened, and its `fit_codebook`.

    Args:
      images: uint8, as `fitted.Images` has them.
      words: in the codebook.
      seed: of the sample and of k-means.
      network: its name, for messages.

    Raises:
      UserError: fewer patches than words.
    """
    found = each_batch(lambda batch: patches(batch, SAMPLED), images, what=f"patches for {network}")
    samples = sample(found, SAMPLES, seed)
    whitening = fit_whitening(samples)
    samples = whiten(samples, whitening)
    return whitening, samples, fit_codebook(samples, words, seed, network)
