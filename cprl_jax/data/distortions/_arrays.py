"""Random numbers and filters for NumPy and JAX arrays alike.

A function written with these and with `image.__array_namespace__()` runs on NumPy arrays without compiling anything,
and on JAX arrays under jit, vmap and grad.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import ndimage

Array = np.ndarray | jax.Array
Key = int | Sequence[int] | jax.Array
"""A seed or seeds, as for `numpy.random.default_rng`, or a JAX key."""

Border = Literal["mirror", "nearest", "reflect"]
"""What stands beyond the edge, in SciPy's words: d c b | a b c d, a a a | a b c d or c b a | a b c d."""

_JAX_BORDERS = {"mirror": "reflect", "nearest": "edge", "reflect": "symmetric"}


def generator(key: Key) -> np.random.Generator:
    """NumPy's generator for a key; equal keys give generators in equal states.

    Raises:
      ValueError: `key` is neither a seed, nor seeds, nor a JAX key.
    """
    if isinstance(key, jax.Array):
        data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
        return np.random.default_rng(np.asarray(data).tolist())
    try:
        if key is None or isinstance(key, np.random.Generator):  # would differ from call to call
            raise TypeError
        return np.random.default_rng(key)
    except (TypeError, ValueError):
        raise ValueError(
            f"key={key!r} is not allowed: give whole numbers from 0 (one or a sequence) or a JAX key"
        ) from None


def normal(key: Key, shape: tuple[int, ...], like: Array) -> Array:
    """Independent standard normal numbers, of the kind and type of the array `like`.

    Seeds draw with NumPy, whatever the kind of `like`: NumPy and JAX arrays get the same noise. Under vmap or jit a
    seed stands for one constant pattern; a JAX key can be traced and mapped over.
    """
    drawn = jax.random.normal(key, shape) if isinstance(key, jax.Array) else generator(key).standard_normal(shape)
    return _like(drawn, like)


def uniform(key: Key, shape: tuple[int, ...], like: Array) -> Array:
    """Independent numbers, uniform in [0, 1); otherwise as `normal`."""
    drawn = jax.random.uniform(key, shape) if isinstance(key, jax.Array) else generator(key).random(shape)
    return _like(drawn, like)


def subkeys(key: Key, count: int) -> list[Key]:
    """`count` keys made from one, for several independent draws."""
    if isinstance(key, jax.Array):
        return list(jax.random.split(key, count))
    numbers = [key] if isinstance(key, int | np.integer) else list(key)
    return [[*numbers, index] for index in range(1, count + 1)]  # from 1: a 0 at the end changes no seed


def _like(drawn: Array, like: Array) -> Array:
    kind = jnp if isinstance(like, jax.Array) else np
    return kind.asarray(drawn, dtype=like.dtype)


def gaussian_weights(sigma: float, *, radius: int) -> np.ndarray:
    """Weights of a Gaussian filter (standard deviation `sigma` pixels) at -radius..radius; their sum is 1."""
    weights = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    return weights / weights.sum()


def correlate_separably(
    image: Float[Array, "*batch height width channels"], weights: np.ndarray, *, border: Border
) -> Float[Array, "*batch height width channels"]:
    """Correlation of rows and of columns with the same one-dimensional filter, centred (odd length)."""
    if not isinstance(image, jax.Array):
        for axis in (-3, -2):
            image = ndimage.correlate1d(image, weights, axis, mode=border)
        return image
    # As matrices: SciPy's borders to the letter, and two matrix products whatever the length of the filter.
    down, across = (
        jnp.asarray(ndimage.correlate1d(np.eye(side), weights, 0, mode=border), image.dtype)
        for side in image.shape[-3:-1]
    )
    return jnp.einsum("ij,...jlc,kl->...ikc", down, image, across, precision=jax.lax.Precision.HIGHEST)


def correlate(
    image: Float[Array, "*batch height width channels"], kernel: np.ndarray, *, border: Border
) -> Float[Array, "*batch height width channels"]:
    """Correlation of every channel with one two-dimensional kernel, centred (odd sides)."""
    if not isinstance(image, jax.Array):
        kernel = kernel.reshape((1,) * (image.ndim - 3) + (*kernel.shape, 1))
        return ndimage.correlate(image, kernel, mode=border)
    rows, columns = (side // 2 for side in kernel.shape)
    planes = jnp.moveaxis(image, -1, -3).reshape(-1, 1, *image.shape[-3:-1])
    padded = jnp.pad(planes, ((0, 0), (0, 0), (rows, rows), (columns, columns)), mode=_JAX_BORDERS[border])
    filtered = jax.lax.conv(
        padded, jnp.asarray(kernel, image.dtype)[None, None], (1, 1), "VALID", precision=jax.lax.Precision.HIGHEST
    )
    channels_first = (*image.shape[:-3], image.shape[-1], *image.shape[-3:-1])
    return jnp.moveaxis(filtered.reshape(channels_first), -3, -1)
