"""Random numbers and filters: SciPy's to the letter, alike for NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cprl_jax.data.distortions import _arrays


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(0, 255, (2, 9, 13, 3))


@pytest.mark.parametrize("draw", [_arrays.normal, _arrays.uniform])
def test_draws(draw):
    numpy_like, jax_like = np.zeros(1, np.float32), jnp.zeros(1)
    ours, theirs = draw([1, 2], (4, 5), numpy_like), draw([1, 2], (4, 5), jax_like)
    assert isinstance(ours, np.ndarray) and isinstance(theirs, jax.Array) and ours.dtype == theirs.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)
    key = jax.random.key(0)
    ours, theirs = draw(key, (4, 5), numpy_like), draw(key, (4, 5), jax_like)
    assert isinstance(ours, np.ndarray) and isinstance(theirs, jax.Array)
    np.testing.assert_array_equal(ours, theirs)


def test_subkeys():
    like = np.zeros(1)
    for key in (3, [3, 4], np.array([3, 4]), jax.random.key(3)):
        draws = [_arrays.normal(part, (4,), like) for part in (key, *_arrays.subkeys(key, 3))]
        assert len(np.unique(np.stack(draws), axis=0)) == 4
    assert _arrays.subkeys(np.int64(3), 2) == [[3, 1], [3, 2]]  # not 0: NumPy's seeds 3 and [3, 0] are the same


def test_generator_of_old_and_new_keys():
    old, new = (_arrays.generator(key).random() for key in (jax.random.PRNGKey(5), jax.random.key(5)))
    assert old == new


@pytest.mark.parametrize("border", ["mirror", "nearest", "reflect"])
def test_separable_filter(border, image):
    weights = np.array([0.5, 1, -3, 2, 0.25, 0.1, 0.7])
    kernel = np.outer(weights, weights)[None, :, :, None]
    expected = ndimage.correlate(image, kernel, mode=border)
    np.testing.assert_allclose(_arrays.correlate_separably(image, weights, border=border), expected, atol=1e-9)
    ours = _arrays.correlate_separably(jnp.asarray(image), weights, border=border)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=0.02)


@pytest.mark.parametrize("border", ["mirror", "nearest", "reflect"])
def test_filter(border, image):
    kernel = np.random.default_rng(1).normal(size=(3, 5))
    expected = np.stack(
        [ndimage.correlate(image[index, ..., channel], kernel, mode=border) for index in (0, 1) for channel in range(3)]
    )
    expected = np.moveaxis(expected.reshape(2, 3, 9, 13), 1, -1)
    np.testing.assert_allclose(_arrays.correlate(image, kernel, border=border), expected, atol=1e-9)
    ours = _arrays.correlate(jnp.asarray(image), kernel, border=border)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=0.02)


def test_gaussian_weights():
    weights = _arrays.gaussian_weights(1.5, radius=6)
    impulse = np.zeros(13)
    impulse[6] = 1
    np.testing.assert_allclose(weights, ndimage.gaussian_filter1d(impulse, 1.5, truncate=4))
