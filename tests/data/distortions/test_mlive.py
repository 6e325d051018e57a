"""The pairs of the LIVE Multiply Distorted database."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cprl_jax.data.distortions import distort, mlive


@pytest.fixture(scope="module")
def image():
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((72, 54), Image.Resampling.BICUBIC))


def test_path_rises_and_spans_the_levels():
    assert mlive.PATH[0] == (1, 1) and mlive.PATH[-1] == (3, 3)
    steps = np.diff(mlive.PATH, axis=0)
    assert np.all(steps >= 0) and np.all(steps.sum(axis=1) == 1)


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_levels_are_pairs(image, level):
    blur, second = mlive.PATH[level - 1]
    np.testing.assert_array_equal(
        distort(image, "mlive/blur-jpeg", level=level, key=4), mlive.pair(image, blur=blur, jpeg=second)
    )
    np.testing.assert_array_equal(
        distort(image, "mlive/blur-noise", level=level, key=4), mlive.pair(image, blur=blur, noise=second, key=4)
    )


@pytest.mark.parametrize(("level", "sigma", "side"), [(1, 3.2, 9), (2, 3.9, 11), (3, 4.6, 13)])
def test_blur(image, level, sigma, side):
    places = np.arange(side) - side // 2
    kernel = np.exp(-(places[:, None] ** 2 + places**2) / (2 * sigma**2))
    expected = ndimage.correlate(image.astype(float), (kernel / kernel.sum())[..., None], mode="reflect")
    np.testing.assert_allclose(mlive.pair(image, blur=level), expected, atol=0.5 + 1e-6)


@pytest.mark.parametrize(("level", "quality"), [(1, 27), (2, 18), (3, 12)])
def test_jpeg(image, level, quality):
    file = io.BytesIO()
    Image.fromarray(mlive.pair(image, blur=2)).save(file, "JPEG", quality=quality, subsampling=2)
    np.testing.assert_array_equal(mlive.pair(image, blur=2, jpeg=level), np.asarray(Image.open(file)))


@pytest.mark.parametrize(("level", "variance"), [(1, 0.002), (2, 0.008), (3, 0.032)])
def test_noise(level, variance):
    grey = np.full((128, 128, 3), 128, np.uint8)
    noise = mlive.pair(grey, noise=level, key=1) / 255.0 - 128 / 255
    np.testing.assert_allclose(noise.var(), variance, rtol=0.03)


def test_nothing_is_the_image(image):
    np.testing.assert_array_equal(mlive.pair(image), image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blur": 4}, "blur=4.*0 .none. to 3"),
        ({"jpeg": -1}, "jpeg=-1"),
        ({"noise": 1.5}, "noise=1.5"),
        ({"jpeg": 1, "noise": 1}, "one of them only"),
    ],
)
def test_refusals(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        mlive.pair(image, **arguments)
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\]"):
        mlive.pair(image[..., 0], blur=1)
