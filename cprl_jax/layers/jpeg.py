"""JPEG compression as a function of images: what a baseline file of that quality holds, with a useful gradient.

It follows libjpeg with chroma at half resolution (4:2:0), but for the rounding of its integer arithmetic. Entropy
coding loses nothing and is left out. Every rounding and clipping is differentiated as if it were none (straight
through).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cprl_jax.layers.transformations import straight_through

# ITU-T T.81, Annex K: luminance and chrominance, in reading order of the frequencies.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)
_BLOCK, _UNIT = 8, 16  # pixels a side of a block, and of what four blocks of luminance and one of each chroma cover
# JFIF: luminance and the two chroma of RGB in 0..255; 128 is added to the chroma.
_FROM_RGB = np.array(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], np.float32
)
_TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136286, -0.714136286], [1.0, 1.772, 0.0]], np.float32)
# The cosine transform of eight values, orthonormal: a row for each frequency.
_COSINES = np.sqrt(2 / _BLOCK) * np.cos(np.pi / _BLOCK * np.outer(np.arange(_BLOCK), np.arange(_BLOCK) + 0.5))
_COSINES[0] /= np.sqrt(2)
_COSINES = _COSINES.astype(np.float32)


def jpeg(images: Float[Array, "batch height width 3"], *, quality: int) -> Float[Array, "batch height width 3"]:
    """The images after compression and decompression.

    Args:
      images: RGB in [0, 1], of any size; they are rounded to 8 bits first.
      quality: libjpeg's, 1 (worst) to 100.

    Returns:
      RGB in [0, 1], in steps of 1/255.

    Raises:
      ValueError: another quality.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be from 1 to 100, got {quality}.")
    height, width = images.shape[1:3]
    pixels = _rounded(255.0 * images)
    pixels = jnp.pad(pixels, ((0, 0), (0, -height % _UNIT), (0, -width % _UNIT), (0, 0)), mode="edge")
    planes = _rounded(_per_pixel(_FROM_RGB, pixels))
    luminance = 128.0 + _coded(planes[..., :1] - 128.0, quantization_table(_LUMINANCE, quality))
    batch, rows, columns, _ = planes.shape
    quarters = planes[..., 1:].reshape(batch, rows // 2, 2, columns // 2, 2, 2)
    chroma = _coded(_rounded(jnp.mean(quarters, axis=(2, 4))), quantization_table(_CHROMINANCE, quality))
    # What the border was padded with is cut off before the chroma is interpolated.
    chroma = chroma[:, : -(-height // 2), : -(-width // 2)]
    chroma = _rounded(jax.image.resize(chroma, (batch, 2 * chroma.shape[1], 2 * chroma.shape[2], 2), "linear"))
    both = [plane[:, :height, :width] for plane in (luminance, chroma)]
    decoded = _per_pixel(_TO_RGB, jnp.concatenate(both, axis=-1))
    return straight_through(_to_8_bits, decoded) / 255.0


def quantization_table(base: tuple, quality: int) -> Float[np.ndarray, "8 8"]:
    """The steps by which the coefficients are divided: libjpeg's scaling of the tables of the standard."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.array(base) * scale + 50) // 100, 1, 255).astype(np.float32)


def _coded(
    planes: Float[Array, "batch height width planes"], table: Float[np.ndarray, "8 8"]
) -> Float[Array, "batch height width planes"]:
    """Planes of values in -128..127 after their blocks' coefficients were rounded to multiples of the table's."""
    batch, height, width, count = planes.shape
    blocks = planes.reshape(batch, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, count)
    steps = table[None, None, :, None, :, None]
    coefficients = jnp.einsum("xi,yj,bhiwjp->bhxwyp", _COSINES, _COSINES, blocks, precision="highest")
    kept = steps * _rounded(coefficients / steps)
    blocks = jnp.einsum("xi,yj,bhxwyp->bhiwjp", _COSINES, _COSINES, kept, precision="highest")
    return straight_through(_to_signed_8_bits, blocks.reshape(planes.shape))


def _rounded(x: Array) -> Array:
    return straight_through(jnp.round, x)


def _to_8_bits(x: Array) -> Array:
    return jnp.clip(jnp.round(x), 0.0, 255.0)


def _to_signed_8_bits(x: Array) -> Array:
    return jnp.clip(jnp.round(x), -128.0, 127.0)


def _per_pixel(matrix: np.ndarray, images: Array) -> Array:
    return jnp.einsum("bhwc,dc->bhwd", images, matrix, precision="highest")
