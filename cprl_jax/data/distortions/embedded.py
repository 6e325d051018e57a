"""The six distortions of the embedded dataset.

Their parameters are ours, chosen so that level k of each costs about the same quality under the rule of
`cprl_jax/data/labels.py` on 112-pixel pictures.
"""

import numpy as np
from jaxtyping import Float

from cprl_jax.data.distortions._arrays import Array, Key, correlate_separably, gaussian_weights, normal
from cprl_jax.data.distortions._color import luma, rgb_of_chroma
from cprl_jax.data.distortions._distortion import Distortion
from cprl_jax.data.distortions.compression import jpeg


def gaussian_blur(image: Float[Array, "*batch height width 3"], sigma: float, key: Key) -> Array:
    """Convolution with a Gaussian of standard deviation `sigma` pixels, edges mirrored."""
    weights = gaussian_weights(sigma, radius=int(3 * sigma + 0.5))
    return correlate_separably(image, weights, border="mirror")


def white_noise(image: Float[Array, "*batch height width 3"], sigma: float, key: Key) -> Array:
    """Independent Gaussian noise of standard deviation `sigma` (of 255) in every pixel and channel."""
    return image + sigma * normal(key, image.shape, image)


def color_noise(image: Float[Array, "*batch height width 3"], sigma: float, key: Key) -> Array:
    """Gaussian noise of standard deviation `sigma` (of 255) in Cb and Cr of BT.601, before clipping."""
    noise = sigma * normal(key, (*image.shape[:-1], 2), image)
    return image + rgb_of_chroma(noise[..., 0], noise[..., 1])


def pixelation(image: Float[np.ndarray, "height width 3"], block: float, key: Key) -> np.ndarray:
    """Means over blocks of `block` x `block` pixels on average; where `block` is no whole number, sides alternate."""
    height, width = image.shape[:2]
    rows, columns = (np.arange(0, side, block).astype(np.int64) for side in (height, width))
    totals = np.add.reduceat(np.add.reduceat(image, rows, axis=0), columns, axis=1)
    heights, widths = np.diff(np.append(rows, height)), np.diff(np.append(columns, width))
    return np.repeat(np.repeat(totals / (heights[:, None] * widths)[..., None], heights, axis=0), widths, axis=1)


def contrast(image: Float[Array, "*batch height width 3"], factor: float, key: Key) -> Array:
    """Distance of every value from the image's mean luma, times `factor` (0..1)."""
    centre = luma(image).mean(axis=(-2, -1), keepdims=True).round()[..., None]
    return centre + factor * (image - centre)


DISTORTIONS: dict[str, Distortion] = {
    "gaussian-blur": Distortion(
        gaussian_blur, (0.7, 0.95, 1.2, 1.65, 3.2), "standard deviation in pixels", differentiable=True
    ),
    "white-noise": Distortion(white_noise, (13, 19, 25, 34, 58), "standard deviation, of 255", differentiable=True),
    "jpeg": Distortion(jpeg, (40, 19, 12, 7, 3), "libjpeg quality"),
    "pixelation": Distortion(pixelation, (1.5, 2, 2.5, 3.3, 5.5), "block side in pixels"),
    "contrast": Distortion(contrast, (0.68, 0.57, 0.5, 0.4, 0.24), "remaining share of contrast", differentiable=True),
    "color-noise": Distortion(
        color_noise, (18, 28, 40, 60, 110), "standard deviation in Cb and Cr, of 255", differentiable=True
    ),
}
