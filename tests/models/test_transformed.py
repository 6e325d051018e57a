"""Score functions behind a transformation: what they score, what an attack finds, and that jit sees equal ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import attacks
from cprl_jax.layers import jpeg, transformations
from cprl_jax.models import transformed

IMAGES = np.random.default_rng(0).uniform(0.2, 0.8, (2, 16, 16, 3)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(16, 16, 3)).astype(np.float32)
CASES = {
    "jpeg": ({"quality": 75}, jpeg.jpeg),
    "bit_depth": ({"bits": 4}, transformations.bit_depth),
    "resize": ({"scale": 0.5}, transformations.resize),
    "blur": ({"sigma": 1.0}, transformations.blur),
}


def score(images):
    return jnp.sum(images * WEIGHTS[None], axis=(1, 2, 3))


@pytest.mark.sampled
@pytest.mark.parametrize("name", CASES)
def test_an_attack_gets_through(name):
    settings, transformation = CASES[name]
    defended = getattr(transformed, name)(score, **settings)
    expected = score(functools.partial(transformation, **settings)(jnp.asarray(IMAGES)))
    np.testing.assert_allclose(jax.jit(defended)(IMAGES), expected, rtol=1e-3, atol=1e-3)
    assert jax.tree.structure(defended) == jax.tree.structure(getattr(transformed, name)(score))  # compiled once
    result = attacks.fgsm(defended, IMAGES, radius=8 / 255, direction=attacks.up())
    assert np.all(result.zero_gradient_fraction < 0.01) and np.all(result.after > result.before + 1)
