"""KADID-10k: noise. Variances are those of values in 0..1."""

import math

import numpy as np
from jaxtyping import Float
from skimage import restoration

from cprl_jax.data.distortions._arrays import Array, Key, normal, uniform
from cprl_jax.data.distortions._color import rgb_of_chroma


def white_noise(image: Float[Array, "*batch height width 3"], variance: float, key: Key) -> Array:
    """Independent Gaussian noise in every pixel and channel of RGB."""
    return image + 255 * math.sqrt(variance) * normal(key, image.shape, image)


def white_noise_color_component(image: Float[Array, "*batch height width 3"], variance: float, key: Key) -> Array:
    """Independent Gaussian noise in Y, Cb and Cr of BT.601, in its narrow range (Y of 219 steps, Cb and Cr of 224)."""
    noise = 255 * math.sqrt(variance) * normal(key, image.shape, image)
    chroma = 255 / 224 * noise[..., 1:]
    return image + 255 / 219 * noise[..., :1] + rgb_of_chroma(chroma[..., 0], chroma[..., 1])


def impulse_noise(image: Float[Array, "*batch height width 3"], density: float, key: Key) -> Array:
    """This share of the values, drawn channel by channel, becomes 0 or 255 with even chances."""
    xp = image.__array_namespace__()
    chance = uniform(key, image.shape, image)
    return xp.where(chance < density / 2, 0.0, xp.where(chance >= 1 - density / 2, 255.0, image))


def multiplicative_noise(image: Float[Array, "*batch height width 3"], variance: float, key: Key) -> Array:
    """Every value times 1 + uniform noise of this variance (MATLAB's "speckle")."""
    return image * (1 + math.sqrt(12 * variance) * (uniform(key, image.shape, image) - 0.5))


def denoise(image: Float[np.ndarray, "height width 3"], variance: float, key: Key) -> np.ndarray:
    """Gaussian noise of this variance, then non-local means that know it: what is left of both."""
    noisy = np.clip(white_noise(image, variance, key) / 255, 0, 1)
    sigma = math.sqrt(variance)
    options = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "channel_axis": -1}
    return 255 * restoration.denoise_nl_means(noisy, h=0.8 * sigma, sigma=sigma, **options)
