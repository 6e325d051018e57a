"""The 9/7 wavelet transform."""

import numpy as np
import pytest

from cprl_jax.data.distortions import _wavelets


@pytest.mark.parametrize("shape", [(32, 48, 3), (17, 33), (16, 5), (4, 4), (1, 7)])
def test_inverse(shape):
    image = np.random.default_rng(0).uniform(0, 255, shape)
    levels = _wavelets.depth(shape, most=4)
    coefficients = _wavelets.transform(image, levels=levels)
    assert coefficients.shape == shape
    np.testing.assert_allclose(_wavelets.inverse(coefficients, levels=levels), image, atol=1e-9)


@pytest.mark.parametrize(("shape", "levels"), [((512, 384), 4), ((96, 96), 4), ((16, 64), 2), ((7, 9), 0), ((1, 1), 0)])
def test_depth(shape, levels):
    assert _wavelets.depth(shape, most=4) == levels


def test_low_pass_filter():
    """The nine taps as published (Cohen, Daubechies and Feauveau), up to our scale of sqrt(2)."""
    taps = [
        _wavelets._analyse(np.eye(32)[place])[8] / np.sqrt(2)  # the low sample at position 16
        for place in range(12, 21)
    ]
    expected = [0.026748757410810, -0.016864118442875, -0.078223266528988, 0.266864118442872, 0.602949018236358]
    np.testing.assert_allclose(taps, expected + expected[-2::-1], atol=1e-9)


def test_polynomials_have_no_detail():
    """Four vanishing moments, away from the borders."""
    x = np.linspace(-1, 1, 64)
    detail = _wavelets._analyse(x**3 - x)[32:]
    assert np.abs(detail[4:-4]).max() < 1e-10


def test_nearly_orthonormal():
    image = np.random.default_rng(1).standard_normal((64, 64))
    coefficients = _wavelets.transform(image, levels=3)
    np.testing.assert_allclose(np.sum(coefficients**2), np.sum(image**2), rtol=0.1)


@pytest.mark.parametrize("shape", [(32, 48), (33, 19)])
def test_bands_cover_all_but_the_coarsest(shape):
    levels = _wavelets.depth(shape, most=4)
    count = np.zeros(shape, int)
    for level, rows, columns in _wavelets.detail_bands(shape, levels=levels):
        assert 1 <= level <= levels
        count[rows, columns] += 1
    low = tuple(-(-side // 2**levels) for side in shape)
    assert np.all(count[: low[0], : low[1]] == 0) and count.sum() == count.size - low[0] * low[1] and count.max() == 1
