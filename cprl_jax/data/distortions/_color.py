"""Colour spaces, for NumPy and JAX arrays alike: RGB in 0..255."""

import numpy as np
from jaxtyping import Float

from cprl_jax.data.distortions._arrays import Array

# Linear sRGB to XYZ, relative to the white point D65 (IEC 61966-2-1; the usual six digits).
_RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_RGB_TO_XYZ /= np.array([[0.95047], [1.0], [1.08883]])
_XYZ_TO_RGB = np.linalg.inv(_RGB_TO_XYZ)


def luma(image: Float[Array, "*batch height width 3"]) -> Float[Array, "*batch height width"]:
    """The Y of Rec. ITU-R BT.601 (full range): 0.299 R + 0.587 G + 0.114 B."""
    # Written out: a matrix product would be summed in an order that depends on the machine's BLAS.
    return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]


def rgb_of_chroma(
    blue: Float[Array, "*batch height width"], red: Float[Array, "*batch height width"]
) -> Float[Array, "*batch height width 3"]:
    """What the colour differences Cb and Cr of BT.601 (full range) add to R, G and B; the luma stays as it is."""
    xp = blue.__array_namespace__()
    return xp.stack([1.402 * red, -0.344136 * blue - 0.714136 * red, 1.772 * blue], axis=-1)


def rgb_to_lab(image: Float[Array, "*batch height width 3"]) -> Float[Array, "*batch height width 3"]:
    """CIE L*a*b* of sRGB, white point D65: L* in 0..100, a* and b* about -110..110."""
    xp = image.__array_namespace__()
    coded = image / 255
    # Both branches of `where` are differentiated: neither may leave its domain.
    linear = xp.where(coded > 0.04045, ((xp.maximum(coded, 0.04045) + 0.055) / 1.055) ** 2.4, coded / 12.92)
    xyz = _mixed(linear, _RGB_TO_XYZ)
    root = xp.where(xyz > 0.008856, xp.cbrt(xp.maximum(xyz, 0.008856)), 7.787 * xyz + 16 / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return xp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab_to_rgb(lab: Float[Array, "*batch height width 3"]) -> Float[Array, "*batch height width 3"]:
    """The inverse of `rgb_to_lab`; colours that sRGB lacks come out beyond 0..255."""
    xp = lab.__array_namespace__()
    y = (lab[..., 0] + 16) / 116
    root = xp.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = xp.where(root > 0.2068966, root**3, (root - 16 / 116) / 7.787)
    linear = _mixed(xyz, _XYZ_TO_RGB)
    coded = xp.where(linear > 0.0031308, 1.055 * xp.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return 255 * coded


def _mixed(image: Array, matrix: np.ndarray) -> Array:
    channels = image[..., 0], image[..., 1], image[..., 2]
    rows = [sum(share * channel for share, channel in zip(row, channels, strict=True)) for row in matrix.tolist()]
    return image.__array_namespace__().stack(rows, axis=-1)
