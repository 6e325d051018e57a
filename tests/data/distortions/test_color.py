"""Colour spaces against scikit-image."""

import numpy as np
from skimage import color

from cprl_jax.data.distortions import _color, luma

COLORS = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.float64)
COLORS[0, :8] = 255 * np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])


def test_luma_of_grey_and_primaries():
    np.testing.assert_allclose(luma(np.eye(3)[None] * 255), [[76.245, 149.685, 29.07]])


def test_lab():
    np.testing.assert_allclose(_color.rgb_to_lab(COLORS), color.rgb2lab(COLORS / 255), atol=1e-3)


def test_round_trip():
    np.testing.assert_allclose(_color.lab_to_rgb(_color.rgb_to_lab(COLORS)), COLORS, atol=1e-2)


def test_colors_beyond_srgb():
    lab = color.rgb2lab(COLORS / 255)
    lab[..., 1:] *= 0.8
    np.testing.assert_allclose(np.clip(_color.lab_to_rgb(lab), 0, 255), 255 * color.lab2rgb(lab), atol=0.02)
    assert _color.lab_to_rgb(lab * [1, 4, 4]).min() < 0


def test_chroma():
    ycbcr = np.random.default_rng(1).uniform(-20, 20, (5, 5, 3)) * [0, 1, 1]
    expected = 255 * (
        color.ycbcr2rgb(ycbcr * 224 / 255 + [126, 128, 128]) - color.ycbcr2rgb(np.array([126, 128, 128.0]))
    )
    np.testing.assert_allclose(_color.rgb_of_chroma(ycbcr[..., 1], ycbcr[..., 2]), expected, atol=0.01)
