"""Blurs against SciPy, discs against counting, motion against what a line covers."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import color

from cprl_jax.data.distortions import _arrays, kadid_blur


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(0, 255, (30, 40, 3))


def test_gaussian_blur(image):
    expected = ndimage.gaussian_filter(image, (2, 2, 0), mode="nearest", radius=4)
    np.testing.assert_allclose(kadid_blur.gaussian_blur(image, 2, 0), expected)


@pytest.mark.parametrize("radius", [1, 2, 2.7, 8])
def test_disk_by_counting(radius):
    ours = kadid_blur.disk(radius)
    assert ours.shape[0] == ours.shape[1] == 2 * int(np.ceil(radius - 0.5)) + 1
    fine = 200
    places = (np.arange(len(ours) * fine) + 0.5) / fine - len(ours) / 2
    inside = (places[:, None] ** 2 + places[None, :] ** 2 <= radius**2).reshape(len(ours), fine, len(ours), fine)
    np.testing.assert_allclose(ours, inside.mean(axis=(1, 3)) / (np.pi * radius**2), atol=2e-3 / radius**2)
    np.testing.assert_allclose(ours.sum(), 1)


def test_disk_of_matlab():
    """fspecial('disk', 1), to four digits."""
    np.testing.assert_allclose(
        kadid_blur.disk(1), [[0.0251, 0.1453, 0.0251], [0.1453, 0.3183, 0.1453], [0.0251, 0.1453, 0.0251]], atol=5e-5
    )


def test_lens_blur(image):
    expected = ndimage.correlate(image, kadid_blur.disk(4)[..., None], mode="nearest")
    np.testing.assert_allclose(kadid_blur.lens_blur(image, 4, 0), expected)


def seed_for(angle):
    """A seed whose motion blur runs at about this angle."""
    angles = np.array([181 * _arrays.uniform(seed, (), np.zeros(1)) for seed in range(400)])
    return int(np.argmin(np.abs(angles - angle - 0.5)))


@pytest.mark.parametrize(("angle", "direction"), [(0, (0, 1)), (90, (1, 0)), (45, (-1, 1)), (135, (1, 1))])
def test_motion_blur_runs_along_its_angle(angle, direction):
    impulse = np.zeros((31, 31, 3))
    impulse[15, 15] = 1
    kernel = kadid_blur.motion_blur(impulse, 9, seed_for(angle))[..., 0]
    np.testing.assert_allclose(kernel.sum(), 1)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)
    places = np.argwhere(kernel > 0) - 15
    along = places @ direction / np.linalg.norm(direction)
    across = places @ (direction[1], -direction[0]) / np.linalg.norm(direction)
    assert np.abs(across).max() < 1.2 and 4 - 0.3 <= np.abs(along).max() < 5


def test_motion_blur_of_rows(image):
    """Horizontally, `length` pixels with equal weights."""
    seed = next(seed for seed in range(2000) if 181 * _arrays.uniform(seed, (), image) < 1)
    expected = ndimage.uniform_filter1d(image, 5, axis=1, mode="nearest")
    np.testing.assert_allclose(kadid_blur.motion_blur(image, 5, seed), expected)


def test_high_sharpen(image):
    grey = np.repeat(image.mean(axis=-1, keepdims=True) / 2 + 64, 3, axis=-1)
    lab = color.rgb2lab(grey / 255)
    blurred = ndimage.gaussian_filter(lab[..., 0], 3, mode="nearest", radius=6)
    lab[..., 0] += 0.3 * (lab[..., 0] - blurred)
    np.testing.assert_allclose(kadid_blur.high_sharpen(grey, 0.3, 0), 255 * color.lab2rgb(lab), atol=0.1)
