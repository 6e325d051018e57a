"""Meta optimisers: the direction and the length of the meta step."""

import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.experiments.causal_iqa.optimizers import interpolation, pseudo_gradient_adam


@pytest.mark.parametrize("meta", [interpolation(0.1), interpolation(1.0), pseudo_gradient_adam(0.1)])
def test_theta_moves_towards_phi(meta):
    theta, phi = {"w": jnp.array([1.0, -2.0, 3.0])}, {"w": jnp.array([1.5, -2.1, 3.0])}
    new, _ = meta.update(theta, phi, meta.init(theta))
    np.testing.assert_array_equal(np.sign(new["w"] - theta["w"]), [1, -1, 0])


def test_adam_moves_by_its_rate_and_interpolation_by_a_share_of_the_way():
    theta, phi = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([1.5, -2.1])}
    moved = {
        name: np.asarray(meta.update(theta, phi, meta.init(theta))[0]["w"] - theta["w"])
        for name, meta in (("adam", pseudo_gradient_adam(0.01)), ("interpolation", interpolation(0.01)))
    }
    np.testing.assert_allclose(moved["adam"], [0.01, -0.01], rtol=1e-3)
    np.testing.assert_allclose(moved["interpolation"], [0.005, -0.001], rtol=1e-3)


def test_options_that_are_not_allowed():
    for wrong, message in (
        (lambda: interpolation(1.5), "rate is 1.5"),
        (lambda: interpolation(0.0), "rate is 0.0"),
        (lambda: pseudo_gradient_adam(0.0), "rate is 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
