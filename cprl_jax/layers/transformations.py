"""Transformations of images that take small changes away: bit depth, resizing and blur; `jpeg.py` has compression.

Where one is not differentiable, its derivative is that of a smooth one beside it ("straight through"), so that no model
behind it only seems to be robust for want of a gradient.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cprl_jax.layers.depthwise import depthwise


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def straight_through(function: Callable[[Array], Array], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """function(x), differentiated as if it were x (Bengio et al., arXiv:1308.3432)."""
    return function(x)


@straight_through.defjvp
def _straight_through_jvp(function, primals, tangents):
    return straight_through(function, *primals), tangents[0]


def bit_depth(images: Float[Array, "batch height width 3"], *, bits: int) -> Float[Array, "batch height width 3"]:
    """The images with 2^bits levels of each colour, evenly from 0 to 1, straight through.

    "Feature squeezing" by colour depth: Xu, Evans & Qi, NDSS 2018, Sec. II-B.

    Args:
      images: RGB in [0, 1].
      bits: 1 to 8.

    Raises:
      ValueError: other bits.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, got {bits}.")
    steps = 2**bits - 1
    return straight_through(jnp.round, images * steps) / steps


def resize(images: Float[Array, "batch height width 3"], *, scale: float) -> Float[Array, "batch height width 3"]:
    """The images made smaller, with antialiasing, and brought back to their size; both bilinear.

    Args:
      images: any range.
      scale: of the small images' sides, above 0 and at most 1; a side is at least one pixel.

    Raises:
      ValueError: another scale.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be above 0 and at most 1, got {scale}.")
    batch, height, width, channels = images.shape
    small = (batch, max(1, round(scale * height)), max(1, round(scale * width)), channels)
    return jax.image.resize(jax.image.resize(images, small, "linear", antialias=True), images.shape, "linear")


def blur(images: Float[Array, "batch height width 3"], *, sigma: float) -> Float[Array, "batch height width 3"]:
    """The images behind a Gaussian filter that ends at 3 sigma; pixels of the border are repeated beyond it.

    Args:
      images: any range.
      sigma: standard deviation in pixels, above 0.

    Raises:
      ValueError: another sigma.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}.")
    radius = int(3.0 * sigma + 0.5)
    weights = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    weights = jnp.asarray(weights / weights.sum(), images.dtype)
    padded = jnp.pad(images, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="edge")
    with jax.default_matmul_precision("highest"):  # or a GPU would round small changes of the image away
        for shape in ((-1, 1, 1, 1), (1, -1, 1, 1)):
            padded = depthwise(padded, jnp.repeat(weights.reshape(shape), images.shape[-1], axis=3))
    return padded
