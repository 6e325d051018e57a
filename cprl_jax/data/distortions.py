"""Graded distortions of photographs: pure functions of an image, a level and a generator of random numbers.

Every entry of `DISTORTIONS` has levels 1 (just visible) to 5 (severe). The entries here are those of the embedded
dataset; their parameters are ours, chosen so that level k of each costs about the same quality under the rule of
`cprl_jax/data/labels.py` on 112-pixel pictures. Published families (KADID-10k, TID2013, MLIVE) are to be added as
further entries of the registry, with their `source` naming the generator that their parameters come from.

Results are rounded to 8 bits. They are the same on every machine up to the JPEG codec that Pillow was built with.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

LEVELS = (1, 2, 3, 4, 5)


@dataclasses.dataclass(frozen=True)
class Distortion:
    """One kind of distortion.

    Attributes:
      apply: `(image Float[H, W, 3] in 0..255, parameter, rng) -> Float or UInt8 [H, W, 3]`; the result is rounded and
        clipped to 8 bits by `distort`.
      parameters: what `apply` gets at levels 1 to 5, in the unit that `unit` names.
      unit: meaning of the parameter.
      source: where function and parameters come from.
    """

    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    parameters: tuple[float, float, float, float, float]
    unit: str
    source: str = "ours"


def distort(
    image: UInt8[np.ndarray, "height width 3"], name: str, *, level: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """One distorted image.

    Args:
      image: RGB, uint8.
      name: a key of `DISTORTIONS`.
      level: 1 (just visible) to 5 (severe).
      rng: random numbers, for the distortions that use any. Generators in equal states give the same pattern at every
        level, only stronger: a ladder without chance in it.

    Raises:
      ValueError: an unknown name, a level outside 1..5, or an image that is not uint8 [H, W, 3].
    """
    if name not in DISTORTIONS:
        raise ValueError(f"unknown distortion {name!r}: allowed are {', '.join(DISTORTIONS)}")
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is not allowed: levels are {LEVELS[0]} to {LEVELS[-1]}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}: allowed is uint8 [height, width, 3] (RGB)")
    distortion = DISTORTIONS[name]
    distorted = distortion.apply(image.astype(np.float64), distortion.parameters[level - 1], rng)
    return np.clip(np.round(distorted), 0, 255).astype(np.uint8)


def luma(image: Float[np.ndarray, "*batch height width 3"]) -> Float[np.ndarray, "*batch height width"]:
    """The Y of Rec. ITU-R BT.601 (full range): 0.299 R + 0.587 G + 0.114 B."""
    # Written out: a matrix product would be summed in an order that depends on the machine's BLAS.
    return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]


def gaussian_blur(image: Float[np.ndarray, "height width 3"], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Convolution with a Gaussian of deviation `sigma` pixels, edges mirrored."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="mirror", truncate=3.0)


def white_noise(image: Float[np.ndarray, "height width 3"], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Independent Gaussian noise of deviation `sigma` (of 255) in every pixel and channel."""
    return image + sigma * rng.standard_normal(image.shape)


def color_noise(image: Float[np.ndarray, "height width 3"], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of deviation `sigma` (of 255) in Cb and Cr of BT.601, none in the luma (before clipping)."""
    blue, red = sigma * np.moveaxis(rng.standard_normal((*image.shape[:2], 2)), -1, 0)
    return image + np.stack([1.402 * red, -0.344136 * blue - 0.714136 * red, 1.772 * blue], axis=-1)


def jpeg(image: Float[np.ndarray, "height width 3"], quality: float, rng: np.random.Generator) -> np.ndarray:
    """Baseline JPEG of this libjpeg `quality` (1..95) with chroma at half resolution (4:2:0)."""
    file = io.BytesIO()
    Image.fromarray(np.round(image).astype(np.uint8)).save(file, "JPEG", quality=int(quality), subsampling="4:2:0")
    with Image.open(file) as decoded:
        return np.asarray(decoded)


def pixelation(image: Float[np.ndarray, "height width 3"], block: float, rng: np.random.Generator) -> np.ndarray:
    """Means over blocks of `block` x `block` pixels on average; where `block` is no whole number, sides alternate."""
    height, width = image.shape[:2]
    rows, columns = (np.arange(0, side, block).astype(np.int64) for side in (height, width))
    totals = np.add.reduceat(np.add.reduceat(image, rows, axis=0), columns, axis=1)
    heights, widths = np.diff(np.append(rows, height)), np.diff(np.append(columns, width))
    return np.repeat(np.repeat(totals / (heights[:, None] * widths)[..., None], heights, axis=0), widths, axis=1)


def contrast(image: Float[np.ndarray, "height width 3"], factor: float, rng: np.random.Generator) -> np.ndarray:
    """Distance of every value from the image's mean luma, times `factor` (0..1)."""
    centre = np.round(luma(image).mean())
    return centre + factor * (image - centre)


DISTORTIONS: dict[str, Distortion] = {
    "gaussian-blur": Distortion(gaussian_blur, (0.7, 0.95, 1.2, 1.65, 3.2), "standard deviation in pixels"),
    "white-noise": Distortion(white_noise, (13, 19, 25, 34, 58), "standard deviation, of 255"),
    "jpeg": Distortion(jpeg, (40, 19, 12, 7, 3), "libjpeg quality"),
    "pixelation": Distortion(pixelation, (1.5, 2, 2.5, 3.3, 5.5), "block side in pixels"),
    "contrast": Distortion(contrast, (0.68, 0.57, 0.5, 0.4, 0.24), "remaining share of contrast"),
    "color-noise": Distortion(color_noise, (18, 28, 40, 60, 110), "standard deviation in Cb and Cr, of 255"),
}
