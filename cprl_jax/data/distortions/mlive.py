"""The multiply distorted pairs of the LIVE Multiply Distorted database: blur, then JPEG or noise.

Jayaraman, Mittal, Moorthy and Bovik, "Objective quality assessment of multiply distorted images", Asilomar Conference
on Signals, Systems and Computers, 2012. The release has three levels of each and all nine pairs (and each alone);
its images are 1280 x 720 pixels, and the blur keeps its size in pixels here whatever the size of the image.
"""

import numpy as np
from jaxtyping import Float, UInt8

from cprl_jax.data.distortions import compression
from cprl_jax.data.distortions._arrays import Array, Key, correlate_separably, gaussian_weights, normal
from cprl_jax.data.distortions._distortion import Distortion

BLUR = (3.2, 3.9, 4.6)  # standard deviation in pixels
JPEG = (27, 18, 12)  # quality
NOISE = (0.002, 0.008, 0.032)  # variance of values in 0..1

PATH = ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3))
"""Levels of blur and of JPEG or noise at levels 1 to 5 of a pair: the blur leads, and neither ever falls."""


def pair(
    image: UInt8[np.ndarray, "height width 3"], *, blur: int = 0, jpeg: int = 0, noise: int = 0, key: Key = 0
) -> UInt8[np.ndarray, "height width 3"]:
    """Any one image of the database: blur, and after it JPEG or noise.

    Args:
      image: RGB, uint8.
      blur: 0 (none) to 3 (standard deviation 3.2, 3.9, 4.6 pixels).
      jpeg: 0 (none) to 3 (quality 27, 18, 12).
      noise: 0 (none) to 3 (variance 0.002, 0.008, 0.032 of values in 0..1).
      key: seed of the noise, as for `distortions.distort`.

    Raises:
      ValueError: another level, both JPEG and noise, or an image that is not uint8 [height, width, 3].
    """
    for name, level in (("blur", blur), ("jpeg", jpeg), ("noise", noise)):
        if level not in (0, 1, 2, 3):
            raise ValueError(f"{name}={level!r} is not allowed: 0 (none) to 3")
    if jpeg and noise:
        raise ValueError(f"jpeg={jpeg} together with noise={noise}: the database has one of them only, set one to 0")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}: allowed is uint8 [height, width, 3] (RGB)")
    result = image.astype(np.float64)
    if blur:
        result = gaussian_blur(result, BLUR[blur - 1])
    if jpeg:
        result = compression.jpeg(result, JPEG[jpeg - 1], key)
    if noise:
        result = _noisy(result, NOISE[noise - 1], key)
    return np.clip(np.round(result), 0, 255).astype(np.uint8)


def gaussian_blur(image: Float[Array, "*batch height width 3"], sigma: float) -> Array:
    """Gaussian of standard deviation `sigma` in a window 3 sigma wide (9, 11 and 13 pixels), edges mirrored."""
    return correlate_separably(image, gaussian_weights(sigma, radius=int(1.5 * sigma)), border="reflect")


def blur_jpeg(image: Float[np.ndarray, "height width 3"], step: float, key: Key) -> UInt8[np.ndarray, "height width 3"]:
    """Blur, rounded to 8 bits, then JPEG (4:2:0) with the levels at `step` (1..5) of `PATH`."""
    blur, jpeg = PATH[int(step) - 1]
    return compression.jpeg(gaussian_blur(image, BLUR[blur - 1]), JPEG[jpeg - 1], key)


def blur_noise(image: Float[Array, "*batch height width 3"], step: float, key: Key) -> Array:
    """Blur, then white Gaussian noise with the levels at `step` (1..5) of `PATH`."""
    blur, noise = PATH[int(step) - 1]
    return _noisy(gaussian_blur(image, BLUR[blur - 1]), NOISE[noise - 1], key)


def _noisy(image: Array, variance: float, key: Key) -> Array:
    return image + 255.0 * variance**0.5 * normal(key, image.shape, image)


def _entry(apply, second: str, *, differentiable: bool) -> Distortion:
    return Distortion(
        apply,
        (1, 2, 3, 4, 5),
        f"step on the path of (blur, {second}) levels {', '.join(map(str, PATH))}",
        source="LIVE Multiply Distorted; ours: the path of five",
        family="mlive",
        differentiable=differentiable,
    )


DISTORTIONS: dict[str, Distortion] = {
    "mlive/blur-jpeg": _entry(blur_jpeg, "JPEG", differentiable=False),
    "mlive/blur-noise": _entry(blur_noise, "noise", differentiable=True),
}
