"""KADID-10k: pixels in wrong places."""

import math

import numpy as np
from jaxtyping import Float

from cprl_jax.data.distortions._arrays import Array, Key, generator, normal, subkeys


def jitter(image: Float[Array, "*batch height width 3"], amount: float, key: Key) -> Array:
    """Five times in a row, every pixel is fetched from a position that is normally distributed around it.

    `amount` is the standard deviation in pixels, of rows and of columns; interpolation between pixels is bicubic.
    """
    xp = image.__array_namespace__()
    height, width = image.shape[-3:-1]
    grid = xp.stack(xp.meshgrid(xp.arange(height), xp.arange(width), indexing="ij"), axis=-1).astype(image.dtype)
    grid = xp.broadcast_to(grid, (*image.shape[:-1], 2))
    for step_key in subkeys(key, 5):
        image = _bicubic(image, grid - amount * normal(step_key, grid.shape, image))
    return image


def _bicubic(
    image: Float[Array, "*batch height width 3"], places: Float[Array, "*batch height width 2"]
) -> Float[Array, "*batch height width 3"]:
    """Values at `places` (row, column) by cubic convolution (Keys, 1981; a = -1/2); edges continue."""
    xp = image.__array_namespace__()
    height, width = image.shape[-3:-1]
    neighbours, weights = [], []
    for axis, side in enumerate((height, width)):
        place = places[..., axis]
        whole = xp.floor(place)
        neighbours.append(xp.stack([xp.clip(whole + step, 0, side - 1) for step in range(-1, 3)], axis=-1))
        weights.append(xp.stack(_keys_weights(place - whole), axis=-1))
    rows, columns = (indices.astype(np.int32) for indices in neighbours)
    flat = image.reshape(-1, 3)
    first = xp.arange(0, flat.shape[0], height * width, dtype=np.int32)  # where each image of the batch begins
    sources = first.reshape(*image.shape[:-3], 1, 1, 1, 1) + width * rows[..., :, None] + columns[..., None, :]
    shares = weights[0][..., :, None] * weights[1][..., None, :]
    return xp.einsum("...ij,...ijc->...c", shares, xp.take(flat, sources, axis=0))


def _keys_weights(t: Array) -> list[Array]:
    """Weights of the neighbours at -1, 0, 1 and 2 of a place `t` in 0..1."""
    return [
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    ]


def non_eccentricity_patch(image: Float[np.ndarray, "height width 3"], patches: float, key: Key) -> np.ndarray:
    """`patches` times, one after the other, 16 x 16 pixels are copied to a place up to 8 pixels away.

    In images under 48 pixels, patches have a third of the shorter side.
    """
    result = image.copy()
    height, width = image.shape[:2]
    side = min(16, min(height, width) // 3)
    lowest, room = side, np.array([height - 3 * side, width - 3 * side])
    for chance in generator(key).random((int(patches), 4)):
        source = np.round(chance[:2] * room).astype(int) + lowest
        target = np.round((chance[2:] - 0.5) * side).astype(int) + source
        result[_square(target, side)] = result[_square(source, side)].copy()
    return result


def color_block(image: Float[np.ndarray, "height width 3"], blocks: float, key: Key) -> np.ndarray:
    """`blocks` squares of 32 x 32 pixels (at most half the shorter side), each of one random colour."""
    result = image.copy()
    side = min(32, min(image.shape[:2]) // 2)
    room = np.array(image.shape[:2]) - side
    for chance in generator(key).random((int(blocks), 5)):
        result[_square((chance[:2] * room).astype(int), side)] = 255 * chance[2:]
    return result


def _square(corner: np.ndarray, side: int) -> tuple[slice, slice]:
    return tuple(slice(start, start + side) for start in corner.tolist())


def pixelate(image: Float[Array, "*batch height width 3"], strength: float, key: Key) -> Array:
    """Nearest pixels of a copy that is 0.95 - `strength`^0.6 times as large, itself of nearest pixels."""
    xp = image.__array_namespace__()
    scale = 0.95 - strength**0.6
    for axis in (-3, -2):
        side = image.shape[axis]
        small = math.ceil(scale * side)
        kept = ((np.arange(small) + 0.5) * side / small).astype(np.int32)
        image = xp.take(image, kept[((np.arange(side) + 0.5) * small / side).astype(np.int32)], axis=axis)
    return image
