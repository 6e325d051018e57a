"""GDN against its formula written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cprl_jax.layers.gdn import GDN


def literal(x, gamma, beta):
    """One output channel after the other, in float64."""
    x, gamma, beta = (np.asarray(value, np.float64) for value in (x, gamma, beta))
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        energy = beta[c] + sum(x[..., k] ** 2 * gamma[k, c] for k in range(x.shape[-1]))
        y[..., c] = x[..., c] / np.sqrt(energy)
    return y


@pytest.fixture
def variables():
    generator = np.random.default_rng(0)
    gamma = generator.uniform(0, 1, (5, 5)).astype(np.float32)  # not symmetric: its orientation matters
    return {"params": {"gamma": gamma, "beta": generator.uniform(0.1, 1, 5).astype(np.float32)}}


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 5), (5,)])
def test_formula(getkey, variables, shape):
    x = 3 * jax.random.normal(getkey(), shape)
    expected = literal(x, **variables["params"])
    np.testing.assert_allclose(GDN().apply(variables, x), expected, rtol=2e-6)
    np.testing.assert_allclose(jax.jit(GDN().apply)(variables, x), expected, rtol=2e-6)


def test_initial_values(getkey):
    x = jax.random.normal(getkey(), (2, 3, 3, 4))
    y, variables = GDN().init_with_output(getkey(), x)
    np.testing.assert_array_equal(variables["params"]["gamma"], np.eye(4))
    np.testing.assert_allclose(variables["params"]["beta"], np.full(4, 1e-4), rtol=1e-6)
    np.testing.assert_allclose(y, x / np.sqrt(np.square(x) + 1e-4), rtol=1e-5)


def test_every_position_is_for_itself_and_scale_falls_out(getkey, variables):
    x = jax.random.normal(getkey(), (2, 4, 4, 5))
    moved = GDN().apply(variables, x[:, ::-1, :])[:, ::-1, :]
    np.testing.assert_array_equal(moved, GDN().apply(variables, x))
    large = [GDN().apply(variables, scale * x) for scale in (1e4, 1e8)]
    np.testing.assert_allclose(*large, rtol=1e-4)


def test_gradients(getkey, variables):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5)))
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        check_grads(lambda v, x: GDN().apply(v, x), (wide, x), order=1, modes=["rev"])
    gradient = jax.grad(lambda x: jnp.sum(GDN().apply(variables, x)))(jnp.zeros((2, 5)))
    expected = 1 / np.sqrt(variables["params"]["beta"])
    np.testing.assert_allclose(gradient, np.broadcast_to(expected, (2, 5)), rtol=1e-5)


def test_parameters_below_their_bounds_count_as_these_and_can_come_back(getkey):
    """Of gradients that point further down nothing is left; those that point up pass."""
    gamma = np.array([[1, -0.5, 0], [0, 1, -1], [-1, 0, -2]], np.float32)
    beta = np.array([-1, 0, 0.3], np.float32)
    x = jax.random.normal(getkey(), (40, 3)).at[0].set(0.0)
    bounded = {"gamma": np.maximum(gamma, 0), "beta": np.maximum(beta, 1e-6)}

    def apply(parameters, sign):
        return jnp.sum(sign * jnp.abs(GDN().apply({"params": parameters}, x)))

    for sign in (1.0, -1.0):  # larger parameters make smaller outputs
        value, gradients = jax.value_and_grad(apply)({"gamma": gamma, "beta": beta}, sign)
        expected, slopes = jax.value_and_grad(apply)(bounded, sign)
        assert value == pytest.approx(float(expected))
        for name, parameter in (("gamma", gamma), ("beta", beta)):
            moves = (parameter >= (0 if name == "gamma" else 1e-6)) | (slopes[name] < 0)
            np.testing.assert_allclose(gradients[name], np.where(moves, slopes[name], 0), rtol=1e-5)
        assert np.all(gradients["gamma"][gamma < 0] < 0) == (sign > 0)


def test_half_precision_goes_through_float32(getkey, variables, half_precision):
    x = 300 * jax.random.normal(getkey(), (4, 5))  # whose squares overflow in float16
    expected = literal(x, **variables["params"])
    y = GDN().apply(variables, x.astype(half_precision))
    assert y.dtype == half_precision
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0.03, atol=0.01)
    assert GDN(dtype=jnp.bfloat16).apply(variables, x).dtype == jnp.bfloat16
