"""The embedded dataset's distortions: byte for byte what they were, and against other implementations."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image
from skimage import filters, measure

from cprl_jax.data import scenes
from cprl_jax.data.distortions import DISTORTIONS, LEVELS, distort, embedded, luma

# SHA-256 of the five levels of `waves()`, from the version with which the quickstart's results were measured.
BYTES = {
    "gaussian-blur": "b30f35b832aead6d990ed2c5859cfab8015062df018035d70e15dc0157262593",
    "white-noise": "c64de1263d825106c8fc42d27b064850899cd6f1972b750f3aeb3920b3c306ae",
    "pixelation": "ec93621a13df2c76d03362c683ef8e213924d9b5f9e2fb25b1ed7516b5b56197",
    "contrast": "a89d7fd2aeb8b62b550be26c1b67ba3c6a254a46b7cde5a848fd90ff8b08ff78",
    "color-noise": "312453c928d9479494b41b30e63afd09638d965a5a9520c03313fdbe06bb1b81",
}


def waves():
    rows, columns = np.mgrid[:40, :56]
    channels = [128 + 90 * np.sin(rows / a) * np.cos(columns / b) for a, b in ((3, 5), (7, 2.5), (11, 4))]
    noise = np.random.default_rng(5).integers(-30, 31, (40, 56, 3))
    return np.clip(np.round(np.stack(channels, -1) + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def image():
    return scenes.make_views("coffee", seed=0, image_size=64)[0].image


def test_names():
    assert list(embedded.DISTORTIONS) == [name for name in DISTORTIONS if "/" not in name]
    assert {*BYTES, "jpeg"} == set(embedded.DISTORTIONS)


@pytest.mark.parametrize("name", BYTES)
def test_bytes_have_not_changed(name):
    bytes_of_levels = b"".join(distort(waves(), name, level=level, key=[0, 123456789]).tobytes() for level in LEVELS)
    assert hashlib.sha256(bytes_of_levels).hexdigest() == BYTES[name]


def test_seed_is_that_of_a_numpy_generator(image):
    noise = np.random.default_rng([4, 2]).standard_normal(image.shape)
    expected = np.clip(np.round(image + 13 * noise), 0, 255)
    np.testing.assert_array_equal(distort(image, "white-noise", level=1, key=[4, 2]), expected)


@pytest.mark.parametrize("name", embedded.DISTORTIONS)
@pytest.mark.parametrize("scene", ["coffee", "grass", "leaves-01", "text-01"])
def test_error_grows_with_level(name, scene):
    picture = scenes.make_views(scene, seed=0, image_size=64)[0].image
    errors = [np.mean((distort(picture, name, level=level, key=0) - picture.astype(float)) ** 2) for level in LEVELS]
    assert np.all(np.diff([0, *errors]) > 0)


def test_first_level_of_noise_is_seen():
    """Attacks may change values by some 2/255: what the labels call distorted has to be clearly more than that."""
    assert DISTORTIONS["white-noise"].parameters[0] >= 8 and DISTORTIONS["color-noise"].parameters[0] >= 8


def test_white_noise_statistics():
    grey = np.full((128, 128, 3), 128, np.uint8)
    noise = distort(grey, "white-noise", level=3, key=0).astype(float) - 128
    assert abs(noise.std() / DISTORTIONS["white-noise"].parameters[2] - 1) < 0.02 and abs(noise.mean()) < 0.5
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T)[np.triu_indices(3, 1)]).max() < 0.03


def test_color_noise_spares_the_luma():
    grey = np.full((128, 128, 3), 128, np.uint8)
    noisy = distort(grey, "color-noise", level=1, key=0).astype(float)
    assert np.abs(luma(noisy) - 128).max() < 1  # rounding alone
    blue_difference = 0.564 * (noisy[..., 2] - luma(noisy))
    assert abs(blue_difference.std() / DISTORTIONS["color-noise"].parameters[0] - 1) < 0.03


def test_blur_against_scikit_image(image):
    sigma = DISTORTIONS["gaussian-blur"].parameters[3]
    theirs = filters.gaussian(image.astype(float), sigma, mode="mirror", truncate=3.0, channel_axis=-1)
    np.testing.assert_allclose(distort(image, "gaussian-blur", level=4, key=0), theirs, atol=0.5 + 1e-6)


def test_pixelation_of_whole_blocks_against_scikit_image(image):
    means = measure.block_reduce(image.astype(float), (2, 2, 1), np.mean)
    np.testing.assert_allclose(embedded.pixelation(image.astype(float), 2, 0), np.kron(means, np.ones((2, 2, 1))))


def test_pixelation_of_broken_blocks(image):
    block = 3.3
    ours = embedded.pixelation(image[:31, :40].astype(float), block, 0)
    starts = [{int(block * index) for index in range(99) if block * index < side} for side in (31, 40)]
    expected = np.zeros((31, 40, 3))
    rows, columns = ([*sorted(start), side] for start, side in zip(starts, (31, 40), strict=True))
    for top, bottom in zip(rows, rows[1:], strict=False):
        for left, right in zip(columns, columns[1:], strict=False):
            expected[top:bottom, left:right] = image[top:bottom, left:right].mean(axis=(0, 1))
    np.testing.assert_allclose(ours, expected)


def test_contrast_formula(image):
    factor = DISTORTIONS["contrast"].parameters[1]
    centre = np.round((image @ [0.299, 0.587, 0.114]).mean())
    ours = distort(image, "contrast", level=2, key=0)
    np.testing.assert_allclose(ours, centre + factor * (image - centre), atol=0.5 + 1e-6)


def test_jpeg_quality(image):
    file = io.BytesIO()
    quality = int(DISTORTIONS["jpeg"].parameters[2])
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=2)
    np.testing.assert_array_equal(distort(image, "jpeg", level=3, key=0), np.asarray(Image.open(file)))
