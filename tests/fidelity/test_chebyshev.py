import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import fidelity


def test_is_the_largest_change_of_each_image(getkey):
    references = np.asarray(jax.random.uniform(getkey(), (3, 6, 5, 3), maxval=0.5))
    images = references.copy()
    images[1, 2, 3, 1] += 0.25
    images[2] += 0.125
    np.testing.assert_allclose(fidelity.chebyshev(images, references), [0, 0.25, 0.125], atol=1e-7)
    np.testing.assert_array_equal(fidelity.chebyshev(references, images), fidelity.chebyshev(images, references))
    assert fidelity.chebyshev(images, references)[0] == 0


def test_gradient_sits_on_the_largest_change_and_vanishes_at_the_reference():
    references = np.full((1, 4, 4, 3), 0.5, np.float32)
    images = references.copy()
    images[0, 1, 2, 0] = 0.25
    gradient = jax.grad(lambda x: jnp.sum(fidelity.chebyshev(x, references)))
    expected = np.zeros_like(images)
    expected[0, 1, 2, 0] = -1
    np.testing.assert_array_equal(gradient(images), expected)
    np.testing.assert_array_equal(gradient(references), np.zeros_like(images))


def test_mistakes_are_named():
    images = np.zeros((1, 4, 4, 3), np.float32)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 4, 4, 3\) and \(2, 4, 4, 3\)"):
        fidelity.chebyshev(images, np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="uint8: divide"):
        fidelity.chebyshev(images, images.astype(np.uint8))
    with pytest.raises(ValueError, match="at least one pixel"):
        fidelity.chebyshev(images[:, :0], images[:, :0])
