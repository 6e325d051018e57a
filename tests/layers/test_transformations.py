"""Bit depth, resizing and blur against NumPy, Pillow and SciPy, with the gradients that attacks need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cprl_jax.layers import transformations

IMAGES = np.random.default_rng(0).random((2, 21, 30, 3), np.float32)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_keeps_the_nearest_level_and_the_gradient(bits):
    values, change = jax.jvp(lambda x: transformations.bit_depth(x, bits=bits), (IMAGES,), (np.ones_like(IMAGES),))
    levels = np.linspace(0, 1, 2**bits)
    nearest = levels[np.abs(IMAGES[..., None] - levels).argmin(-1)]
    np.testing.assert_allclose(values, nearest, atol=1e-6)
    np.testing.assert_allclose(change, 1.0, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 0.3, 1.0])
def test_resizing_is_that_of_pillow_twice(scale):
    found = transformations.resize(jnp.asarray(IMAGES), scale=scale)
    small = max(1, round(scale * 30)), max(1, round(scale * 21))
    for image, resized in zip(IMAGES, found, strict=True):
        for channel in range(3):
            plane = Image.fromarray(image[..., channel]).resize(small, Image.Resampling.BILINEAR)
            expected = np.asarray(plane.resize((30, 21), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(resized[..., channel], expected, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 9.0])
def test_blur_is_that_of_scipy(sigma):
    found = transformations.blur(jnp.asarray(IMAGES), sigma=sigma)
    expected = ndimage.gaussian_filter(IMAGES, (0, sigma, sigma, 0), truncate=3.0, mode="nearest")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_straight_through_is_the_function_with_the_identitys_derivative():
    x = jnp.array([0.2, 1.7, -3.4])
    values, pull = jax.vjp(lambda x: transformations.straight_through(jnp.floor, x), x)
    np.testing.assert_array_equal(values, [0.0, 1.0, -4.0])
    np.testing.assert_array_equal(pull(x)[0], x)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [("bit_depth", "bits", 0), ("bit_depth", "bits", 9), ("resize", "scale", 0.0), ("resize", "scale", 1.5)]
    + [("blur", "sigma", 0.0), ("blur", "sigma", float("nan"))],
)
def test_other_settings_are_refused(name, setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be .*got {value}"):
        getattr(transformations, name)(jnp.zeros((1, 4, 4, 3)), **{setting: value})
