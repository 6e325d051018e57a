"""KADID-10k: blurs and sharpening. Edges are continued with their last pixel, as in the published generator."""

import math

import numpy as np
from jaxtyping import Float

from cprl_jax.data.distortions._arrays import Array, Key, correlate, correlate_separably, gaussian_weights, uniform
from cprl_jax.data.distortions._color import lab_to_rgb, rgb_to_lab


def gaussian_blur(image: Float[Array, "*batch height width 3"], sigma: float, key: Key) -> Array:
    """Gaussian of standard deviation `sigma` pixels, cut off after twice that (rounded up)."""
    weights = gaussian_weights(sigma, radius=math.ceil(2 * sigma))
    return correlate_separably(image, weights, border="nearest")


def lens_blur(image: Float[Array, "*batch height width 3"], radius: float, key: Key) -> Array:
    """Mean over a disk of `radius` pixels; pixels on its rim count by the area of theirs that is inside."""
    return correlate(image, disk(radius), border="nearest")


def disk(radius: float) -> Float[np.ndarray, "side side"]:
    """Share of a disk's area that lies in each pixel; the disk is centred on the middle pixel."""
    reach = math.ceil(radius - 0.5)
    edges = np.clip(np.arange(-reach, reach + 2) - 0.5, -radius, radius)
    across, down = np.abs(edges)[None, :], np.abs(edges)[:, None]

    def under_the_arc(x: np.ndarray) -> np.ndarray:  # the integral of sqrt(radius^2 - t^2) over t in 0..x
        return (x * np.sqrt(radius**2 - x**2) + radius**2 * np.arcsin(x / radius)) / 2

    # Area of the disk between its centre and the corner (across, down): a rectangle, until the arc cuts it off.
    crossing = np.minimum(across, np.sqrt(radius**2 - down**2))
    area = down * crossing + under_the_arc(across) - under_the_arc(crossing)
    area = area * np.sign(edges)[None, :] * np.sign(edges)[:, None]
    return np.diff(np.diff(area, axis=0), axis=1) / (np.pi * radius**2)


def motion_blur(image: Float[Array, "*batch height width 3"], length: float, key: Key) -> Array:
    """Mean along a line of `length` pixels, at a random angle of 0 to 180 whole degrees; 1 pixel changes nothing.

    A pixel's weight is 1 - its distance from the line, or from the line's end where the pixel's distance from the
    centre is half the length or more (MATLAB's `fspecial("motion")`). One call, one angle, also for a batch.
    """
    xp = image.__array_namespace__()
    angle = math.pi / 180 * xp.floor(181 * uniform(key, (), image))
    half = (length - 1) / 2
    offsets = xp.arange(-math.ceil(half), math.ceil(half) + 1, dtype=image.dtype)
    x, y = offsets[None, :], -offsets[:, None]  # angles count anticlockwise, rows downwards
    along = x * xp.cos(angle) + y * xp.sin(angle)
    across = y * xp.cos(angle) - x * xp.sin(angle)
    from_the_end = xp.hypot(across, half - xp.abs(along))
    distance = xp.where(xp.hypot(x, y) >= half, from_the_end, xp.abs(across))
    kernel = xp.maximum(1 - distance, 0)
    return correlate(image, kernel / kernel.sum(), border="nearest")


def high_sharpen(image: Float[Array, "*batch height width 3"], amount: float, key: Key) -> Array:
    """Unsharp masking of L*: its difference from a Gaussian blur (sigma 3 pixels) is added `amount` times."""
    xp = image.__array_namespace__()
    lab = rgb_to_lab(image)
    lightness = lab[..., :1]
    blurred = correlate_separably(lightness, gaussian_weights(3, radius=6), border="nearest")
    return lab_to_rgb(xp.concatenate([lightness + amount * (lightness - blurred), lab[..., 1:]], axis=-1))
