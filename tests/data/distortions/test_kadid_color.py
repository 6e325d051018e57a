"""Colours and tones against scikit-image, SciPy and exhaustive search."""

import itertools

import numpy as np
import pytest
from scipy import interpolate, ndimage
from skimage import color, filters

from cprl_jax.data import scenes
from cprl_jax.data.distortions import _color, kadid_color


@pytest.fixture(scope="module")
def image():
    return scenes.make_views("coffee", seed=0, image_size=64)[0].image.astype(np.float64)


def clipped(values):
    return np.clip(values, 0, 255)


def test_color_diffusion(image):
    pale = 110 + image / 8  # stays within sRGB, beyond which scikit-image clips and we do not
    lab = color.rgb2lab(pale / 255)
    for channel in (1, 2):
        lab[..., channel] = 3 * ndimage.gaussian_filter(lab[..., channel], 6.5, mode="nearest", radius=13)
    np.testing.assert_allclose(kadid_color.color_diffusion(pale, 3, 0), 255 * color.lab2rgb(lab), atol=0.05)


def test_color_shift_moves_green_along_edges():
    image = np.full((40, 40, 3), 60.0)
    image[:, 20:] = 200
    result = kadid_color.color_shift(image, 4, 0)
    np.testing.assert_array_equal(result[..., [0, 2]], image[..., [0, 2]])
    changed = np.abs(result[..., 1] - image[..., 1]) > 1
    columns = np.flatnonzero(changed.any(axis=0))
    assert columns.min() == 20 and 1 <= len(columns) <= 4  # to the right, by at most 4 pixels
    assert np.all(result[..., 1] <= image[..., 1] + 1e-9)


def test_color_shift_far_from_edges():
    image = np.full((64, 64, 3), 60.0)
    image[20:40, 50:] = 200
    result = kadid_color.color_shift(image, 12, 1)
    np.testing.assert_allclose(result[:, :20], image[:, :20])


@pytest.mark.parametrize("colors", [64, 8])
def test_color_quantization(colors, image):
    result = kadid_color.color_quantization(image, colors, 0)
    assert len(np.unique(result.reshape(-1, 3), axis=0)) <= colors
    smooth = (ndimage.gaussian_filter(values, (3, 3, 0)) for values in (result.astype(float), image))
    assert np.sqrt(np.mean(np.subtract(*smooth) ** 2)) < 15  # dithering keeps means


@pytest.mark.parametrize("factor", [0.4, 0, -0.4])
def test_color_saturation_1(factor, image):
    hsv = color.rgb2hsv(image / 255)
    hsv[..., 1] *= factor
    np.testing.assert_allclose(kadid_color.color_saturation_1(image, factor, 0), 255 * color.hsv2rgb(hsv), atol=1e-9)


def test_color_saturation_2(image):
    lab = color.rgb2lab(image / 255)
    lab[..., 1:] *= 0.5
    np.testing.assert_allclose(kadid_color.color_saturation_2(image, 0.5, 0), 255 * color.lab2rgb(lab), atol=0.01)
    assert np.array_equal(
        kadid_color.color_saturation_2(image, 9, 0), _color.lab_to_rgb(_color.rgb_to_lab(image) * [1, 9, 9])
    )


def spline(values, x, y):
    curve = interpolate.CubicSpline(x, y, bc_type="not-a-knot")  # through three points: a parabola
    return np.clip(curve(values), 0, 1)


@pytest.mark.parametrize("amount", [0.1, 1.1])
def test_brighten(amount, image):
    knots = [0, 0.5, 1], [0, 0.5 + amount / 2, 1]
    lab = color.rgb2lab(image / 255)
    lab[..., 0] = 100 * spline(lab[..., 0] / 100, *knots)
    expected = 255 * (2 * spline(image / 255, *knots) + color.lab2rgb(lab)) / 3
    ours = kadid_color.brighten(image, amount, 0)
    # scikit-image clips negative XYZ, where we clip RGB: dark colours beyond sRGB differ a little.
    assert np.quantile(np.abs(ours - expected), 0.98) < 0.1 and np.abs(ours - expected).max() < 4


@pytest.mark.parametrize("amount", [0.05, 0.8])
def test_darken(amount, image):
    expected = 255 * spline(image / 255, [0, 0.5, 1], [0, 0.5 - amount / 2, 1])
    np.testing.assert_allclose(kadid_color.darken(image, amount, 0), expected, atol=1e-9)


def test_mean_shift(image):
    np.testing.assert_allclose(kadid_color.mean_shift(image, -0.08, 0), image - 20.4)


@pytest.mark.parametrize("amount", [0.3, 0.15, 0, -0.2, -0.4, -0.6])
def test_contrast_change(amount, image):
    knots = [0, 0.3, 0.5, 0.7, 1], [0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1]
    ours = clipped(kadid_color.contrast_change(image, amount, 0))
    np.testing.assert_allclose(ours, 255 * spline(image / 255, *knots), atol=1e-9)


def test_quantization_against_scikit_image(image):
    """Otsu's thresholds for few classes, where scikit-image can search them all."""
    levels = np.sort(np.random.default_rng(0).permutation(256)[:30])
    coarse = levels[np.searchsorted(levels, image.astype(int)).clip(max=29)]
    result = kadid_color.quantization(coarse.astype(float), 3, 0)
    cuts = [coarse[result == value].max() for value in np.unique(result)[:-1]]
    theirs = filters.threshold_multiotsu(coarse.reshape(64, 192), 4, nbins=256)

    def within(thresholds):
        classes = np.digitize(coarse, thresholds, right=True)
        return sum(((coarse[classes == k] - coarse[classes == k].mean()) ** 2).sum() for k in range(4))

    assert within(cuts) <= within(theirs) * (1 + 1e-9)


def test_quantization_is_exact():
    values = np.random.default_rng(1).integers(0, 256, 9).astype(float)
    values = np.repeat(np.concatenate([values, values[:3]]), 3).reshape(4, 3, 3)
    result = kadid_color.quantization(values, 2, 0)
    levels = np.unique(values)

    def within(cuts):
        classes = np.digitize(values, cuts, right=True)
        return sum(((values[classes == k] - values[classes == k].mean()) ** 2).sum() for k in range(3))

    cuts = [values[result == value].max() for value in np.unique(result)[:-1]]
    np.testing.assert_allclose(within(cuts), min(within(pair) for pair in itertools.combinations(levels[:-1], 2)))
    assert np.unique(result).tolist() == [0, cuts[1], 255]


def test_quantization_of_few_levels():
    checks = np.indices((6, 6)).sum(axis=0)[..., None] % 2 * np.array([200.0, 10.0, 0.0])
    np.testing.assert_array_equal(kadid_color.quantization(checks, 7, 0), checks)
