"""Noise: its statistics, on flat images."""

import numpy as np
import pytest
from skimage import color

from cprl_jax.data.distortions import kadid_noise

GREY = np.full((200, 200, 3), 128.0)


def test_white_noise():
    noise = kadid_noise.white_noise(GREY, 0.01, 0) - GREY
    np.testing.assert_allclose(noise.std(axis=(0, 1)), 25.5, rtol=0.02)
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T)[np.triu_indices(3, 1)]).max() < 0.03


def test_white_noise_in_color_components():
    noisy = kadid_noise.white_noise_color_component(GREY, 0.002, 0)
    noise = (color.rgb2ycbcr(noisy / 255) - color.rgb2ycbcr(GREY / 255)).reshape(-1, 3)
    np.testing.assert_allclose(noise.std(axis=0), 255 * np.sqrt(0.002), rtol=0.02)
    assert np.abs(np.corrcoef(noise.T)[np.triu_indices(3, 1)]).max() < 0.03


def test_impulse_noise():
    noisy = kadid_noise.impulse_noise(GREY, 0.03, 0)
    for value in (0, 255):
        np.testing.assert_allclose((noisy == value).mean(axis=(0, 1)), 0.015, atol=0.003)
    assert set(np.unique(noisy)) == {0, 128, 255}
    fewer = kadid_noise.impulse_noise(GREY, 0.01, 0)
    assert np.all(noisy[fewer != 128] == fewer[fewer != 128])  # a stronger level keeps the impulses of a weaker one


def test_multiplicative_noise():
    for value in (50.0, 200.0):
        factors = kadid_noise.multiplicative_noise(np.full_like(GREY, value), 0.05, 0) / value
        np.testing.assert_allclose([factors.mean(), factors.var()], [1, 0.05], rtol=0.01)
        assert np.abs(factors - 1).max() <= np.sqrt(3 * 0.05)


@pytest.mark.parametrize("variance", [0.01, 0.05])
def test_denoising_takes_most_of_the_noise_away(variance):
    image = GREY[:48, :48].copy()
    image[:, 24:] = 60
    result = kadid_noise.denoise(image, variance, 0)
    noise = kadid_noise.white_noise(image, variance, 0) - image
    assert np.std(result - image) < 0.35 * np.std(noise)
    assert result[:, 26:].mean() + 40 < result[:, :22].mean()
