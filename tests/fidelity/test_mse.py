import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import metrics

from cprl_jax import fidelity


def pairs(seed=0):
    """Three noisy images and one without any change."""
    rng = np.random.default_rng(seed)
    references = rng.random((4, 9, 7, 3))
    images = np.clip(
        references + np.array([0.01, 0.1, 0.5, 0]).reshape(4, 1, 1, 1) * rng.normal(size=(4, 9, 7, 3)), 0, 1
    )
    return images.astype(np.float32), references.astype(np.float32)


def test_equal_scikit_image():
    images, references = pairs()
    doubles = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(images[:3], references[:3], strict=True)]
    errors = [metrics.mean_squared_error(*pair) for pair in doubles]
    ratios = [metrics.peak_signal_noise_ratio(b, a, data_range=1) for a, b in doubles]
    np.testing.assert_allclose(fidelity.mse(images, references), [*errors, 0], rtol=1e-5)
    np.testing.assert_allclose(fidelity.psnr(images, references), [*ratios, np.inf], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(fidelity.psnr)(images, references), [*ratios, np.inf], rtol=1e-6)


def test_psnr_of_the_largest_change_is_zero():
    black, white = np.zeros((1, 3, 3, 3), np.float32), np.ones((1, 3, 3, 3), np.float32)
    np.testing.assert_array_equal(fidelity.psnr(black, white), [0])


@pytest.mark.parametrize("measure", ["mse", "psnr"])
def test_gradients_are_finite_and_zero_at_the_reference(measure):
    images, references = pairs()
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(getattr(fidelity, measure)(x, references)[:3]))(images))
    everywhere = np.asarray(jax.jacrev(lambda x: getattr(fidelity, measure)(x, references))(images))
    assert np.all(np.isfinite(everywhere)) and np.all(everywhere[3] == 0)
    np.testing.assert_allclose(everywhere.sum(0)[:3], gradient[:3], rtol=1e-6)
    barely = references[:1] + np.float32(1e-7)
    assert np.all(np.isfinite(jax.grad(lambda x: getattr(fidelity, measure)(x, references[:1])[0])(barely)))


@pytest.mark.parametrize("measure", ["mse", "psnr"])
def test_gradient_equals_finite_differences(measure):
    with jax.enable_x64(True):
        images, references = (jnp.asarray(values[:3].astype(np.float64)) for values in pairs())
        along = np.random.default_rng(1).normal(size=images.shape)

        def total(x):
            return jnp.sum(getattr(fidelity, measure)(x, references))

        numeric = (total(images + 1e-6 * along) - total(images - 1e-6 * along)) / 2e-6
        np.testing.assert_allclose(jnp.sum(jax.grad(total)(images) * along), numeric, rtol=1e-6)
        assert total(images).dtype == jnp.float64


def test_half_precision_is_computed_as_float32(half_precision):
    images, references = (jnp.asarray(values, half_precision) for values in pairs())
    errors = fidelity.mse(images, references)
    assert errors.dtype == jnp.float32
    np.testing.assert_array_equal(errors, fidelity.mse(images.astype(jnp.float32), references.astype(jnp.float32)))
