"""KADID-10k: colours and tones."""

import math

import numpy as np
from jaxtyping import Float
from PIL import Image

from cprl_jax.data.distortions._arrays import Array, Key, correlate_separably, gaussian_weights, uniform
from cprl_jax.data.distortions._color import lab_to_rgb, luma, rgb_to_lab


def color_diffusion(image: Float[Array, "*batch height width 3"], amount: float, key: Key) -> Array:
    """a* and b* blurred with a Gaussian of standard deviation 1.5 `amount` + 2 pixels, then multiplied by `amount`."""
    xp = image.__array_namespace__()
    sigma = 1.5 * amount + 2
    weights = gaussian_weights(sigma, radius=math.ceil(2 * sigma))
    lab = rgb_to_lab(image)
    diffuse = correlate_separably(lab[..., 1:], weights, border="nearest")
    return lab_to_rgb(xp.concatenate([lab[..., :1], amount * diffuse], axis=-1))


def color_shift(image: Float[Array, "*batch height width 3"], amount: float, key: Key) -> Array:
    """Green displaced by `amount` pixels, in a random direction from rightwards to downwards, where there are edges.

    The displaced channel is blended in by the luma's gradient magnitude, blurred and stretched to 0..1. One call, one
    direction, also for a batch.
    """
    xp = image.__array_namespace__()
    down, across = xp.gradient(luma(image) / 255, axis=(-2, -1))
    magnitude = xp.sqrt(down**2 + across**2 + 1e-12)  # a root without slope at 0 would spoil gradients
    blurred = correlate_separably(magnitude[..., None], gaussian_weights(4, radius=8), border="nearest")[..., 0]
    share = _stretched(xp.clip(_stretched(blurred), 0.1, 1))
    low, high = xp.percentile(share, xp.asarray([1.0, 99.0]), axis=(-2, -1), keepdims=True)
    share = _stretched(xp.clip(share, low, high))

    direction = uniform(key, (2,), image)
    shift = xp.round(amount * direction / xp.sqrt((direction**2).sum())).astype(np.int32)
    height, width = share.shape[-2:]
    rows = xp.clip(xp.arange(height) - shift[0], 0, height - 1)
    columns = xp.clip(xp.arange(width) - shift[1], 0, width - 1)
    green = image[..., 1]
    displaced = xp.take(xp.take(green, rows, axis=-2), columns, axis=-1)
    return xp.stack([image[..., 0], share * displaced + (1 - share) * green, image[..., 2]], axis=-1)


def _stretched(plane: Float[Array, "*batch height width"]) -> Array:
    """Smallest value to 0, largest to 1; a constant plane stays as it is."""
    xp = plane.__array_namespace__()
    low, high = (extreme(plane, axis=(-2, -1), keepdims=True) for extreme in (xp.min, xp.max))
    return xp.where(high > low, (plane - low) / xp.where(high > low, high - low, 1), plane)


def color_quantization(image: Float[np.ndarray, "height width 3"], colors: float, key: Key) -> np.ndarray:
    """At most `colors` different colours (median cut), with Floyd-Steinberg dithering."""
    picture = Image.fromarray(np.round(image).astype(np.uint8))
    palette = picture.quantize(int(colors), method=Image.Quantize.MEDIANCUT)
    return np.asarray(picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB"))


def color_saturation_1(image: Float[Array, "*batch height width 3"], factor: float, key: Key) -> Array:
    """Saturation of HSV times `factor`; below 0, colours turn into their opposites."""
    # With hue and value kept, every channel's distance from the largest one is proportional to the saturation.
    value = image.max(axis=-1, keepdims=True)
    return value + factor * (image - value)


def color_saturation_2(image: Float[Array, "*batch height width 3"], factor: float, key: Key) -> Array:
    """a* and b* of CIE L*a*b* times `factor`; 1 changes nothing."""
    xp = image.__array_namespace__()
    lab = rgb_to_lab(image)
    return lab_to_rgb(xp.concatenate([lab[..., :1], factor * lab[..., 1:]], axis=-1))


def brighten(image: Float[Array, "*batch height width 3"], amount: float, key: Key) -> Array:
    """A parabola through black, white and (0.5, 0.5 + `amount` / 2): two parts on R, G and B, one part on L*."""
    xp = image.__array_namespace__()
    lab = rgb_to_lab(image)
    lighter = lab_to_rgb(xp.concatenate([100 * _parabola(lab[..., :1] / 100, amount), lab[..., 1:]], axis=-1))
    return (2 * 255 * _parabola(image / 255, amount) + xp.clip(lighter, 0, 255)) / 3


def darken(image: Float[Array, "*batch height width 3"], amount: float, key: Key) -> Array:
    """A parabola through black, white and (0.5, 0.5 - `amount` / 2) on R, G and B."""
    return 255 * _parabola(image / 255, -amount)


def _parabola(values: Array, amount: float) -> Array:
    curve = values + 2 * amount * values * (1 - values)
    return values.__array_namespace__().clip(curve, 0, 1)


def mean_shift(image: Float[Array, "*batch height width 3"], amount: float, key: Key) -> Array:
    """`amount` (of the range, either sign) added to every value."""
    return image + 255 * amount


def contrast_change(image: Float[Array, "*batch height width 3"], amount: float, key: Key) -> Array:
    """A cubic through black, grey, white and (0.3, 0.25 - `amount` / 4): an S above -0.2, flatter below."""
    # The generator's spline has five knots with point symmetry about the centre: not-a-knot makes it a single cubic.
    centred = image / 255 - 0.5
    slope = 1 + (0.05 + amount / 4) / 0.168
    return 255 * (0.5 + slope * centred + 4 * (1 - slope) * centred**3)


def quantization(image: Float[np.ndarray, "height width 3"], thresholds: float, key: Key) -> np.ndarray:
    """All three channels cut at the same `thresholds`, which leave the least variance within classes (Otsu's rule).

    A value becomes the upper end of its class, in the first class 0 and in the last 255. An image with no more values
    than classes stays as it is.
    """
    levels, counts = np.unique(np.round(image).astype(np.int64), return_counts=True)
    classes = int(thresholds) + 1
    if len(levels) <= classes:
        return image
    ends = levels[_last_of_classes(levels.astype(np.float64), counts, classes)]
    values = np.concatenate([[0], ends[1:-1], [255]])
    return values[np.searchsorted(ends[:-1], np.round(image))].astype(np.float64)


def _last_of_classes(levels: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """Indices of the last level of each class, for the classes with the least variance within them (exact)."""
    number, first, second = (np.concatenate([[0.0], np.cumsum(counts * levels**power)]) for power in (0, 1, 2))
    start, stop = np.meshgrid(np.arange(len(levels)), np.arange(1, len(levels) + 1), indexing="ij")
    held = np.maximum(number[stop] - number[start], 1)
    within = second[stop] - second[start] - (first[stop] - first[start]) ** 2 / held
    within[start >= stop] = np.inf
    least = within[0]  # for the levels up to and including each, in one class
    starts = []
    for _ in range(classes - 1):
        totals = np.concatenate([[np.inf], least[:-1]])[:, None] + within
        starts.append(totals.argmin(axis=0))
        least = totals.min(axis=0)
    ends = [len(levels) - 1]
    for begin in reversed(starts):
        ends.append(begin[ends[-1]] - 1)
    return np.array(ends[::-1])
