"""Painted scenes: sizes, seeds, and the statistics that they were chosen for."""

import numpy as np
import pytest

from cprl_jax.data.procedural import PAINTERS, power_law_noise


@pytest.mark.parametrize("kind", PAINTERS)
@pytest.mark.parametrize("size", [64, 130])
def test_painters(kind, size):
    first, again, other = (PAINTERS[kind](size, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.dtype == np.uint8 and first.shape == (size, size, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.astype(float).std() > 5


def spectrum_slope(plane):
    """Exponent of the fall of amplitude with frequency, from rings of the spectrum."""
    size = plane.shape[0]
    window = np.outer(np.hanning(size), np.hanning(size))
    power = np.abs(np.fft.fft2((plane - plane.mean()) * window)) ** 2
    radius = size * np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    rings = [(low, low * 1.3) for low in 4 * 1.3 ** np.arange(10) if low * 1.3 < size / 2]
    amplitude = [np.sqrt(power[(radius >= low) & (radius < high)].mean()) for low, high in rings]
    return -np.polyfit(np.log([low for low, _ in rings]), np.log(amplitude), 1)[0]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_power_law_noise(exponent):
    noise = power_law_noise(256, exponent, np.random.default_rng(0))
    assert abs(noise.mean()) < 1e-3 and abs(noise.std() - 1) < 1e-3
    np.testing.assert_array_equal(noise * 1024, np.round(noise * 1024))
    assert spectrum_slope(noise) == pytest.approx(exponent, abs=0.15)


def test_leaves_have_the_spectrum_of_photographs():
    """Amplitude about 1/f^1.2, between 1/f^0.8 and 1/f^1.6 (Tolhurst, Tadmor and Chao, 1992)."""
    slopes = [spectrum_slope(PAINTERS["leaves"](256, np.random.default_rng(seed))[..., 1] * 1.0) for seed in range(3)]
    assert 0.8 < np.mean(slopes) < 1.7
