"""JPEG against libjpeg, which Pillow calls: tables, decoded photographs, and gradients that are there."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data

from cprl_jax.layers import jpeg as jpeg_lib

SIZES = {"astronaut": (64, 96), "chelsea": (61, 75), "coffee": (17, 130)}


def photograph(name):
    height, width = SIZES[name]
    return getattr(data, name)()[60 : 60 + height, 80 : 80 + width]


def libjpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(file)


@functools.cache
def compiled(quality):
    return jax.jit(functools.partial(jpeg_lib.jpeg, quality=quality))


@pytest.mark.parametrize("quality", [1, 30, 75, 100])
def test_tables_are_those_of_a_file(quality):
    kept = libjpeg(photograph("astronaut"), quality).quantization
    for number, base in enumerate((jpeg_lib._LUMINANCE, jpeg_lib._CHROMINANCE)):
        table = jpeg_lib.quantization_table(base, quality)
        np.testing.assert_array_equal(table, np.reshape(kept[number], (8, 8)))


@pytest.mark.sampled
@pytest.mark.parametrize("quality", [10, 75, 95])
@pytest.mark.parametrize("name", SIZES)
def test_photographs_come_out_as_from_a_file(name, quality):
    image = photograph(name)
    expected = np.asarray(libjpeg(image, quality), np.float64)
    found = 255 * np.asarray(compiled(quality)(image[None] / np.float32(255)))[0]
    np.testing.assert_allclose(found, np.round(found), atol=1e-3)
    difference, loss = np.mean((found - expected) ** 2), np.mean((image - expected) ** 2)
    assert 10 * np.log10(255**2 / difference) > (42 if quality > 10 else 36)  # dB; 47 to 52 in larger images
    assert difference < 0.3 * loss


def test_gradients_pass_as_if_nothing_were_rounded():
    """A shift of all pixels shifts what comes out, in flat and saturated images too; every value has a gradient."""
    flat, white = np.full((2, 20, 36, 3), 0.4, np.float32), np.ones((1, 20, 36, 3), np.float32)
    images = np.concatenate([flat, white])
    _, change = jax.jvp(compiled(75), (images,), (jnp.ones_like(images),))
    np.testing.assert_allclose(change, 1.0, rtol=1e-4)
    weights = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(weights * compiled(75)(x)))(images))
    assert np.isfinite(gradient).all() and (gradient != 0).mean() > 0.99


def test_a_smaller_quality_keeps_less():
    image = photograph("astronaut")[None] / np.float32(255)
    errors = [np.abs(compiled(quality)(image) - image).mean() for quality in (10, 75, 95)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("quality", [0, 101])
def test_another_quality_is_refused(quality):
    with pytest.raises(ValueError, match=f"quality must be from 1 to 100, got {quality}"):
        jpeg_lib.jpeg(jnp.zeros((1, 8, 8, 3)), quality=quality)
