"""Smooth activations against PyTorch and the printed formula: values, slopes, and no jump at 0."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from cprl_jax import methods, models
from cprl_jax.config import defaults as config_lib
from cprl_jax.methods import METHODS
from cprl_jax.models import change
from cprl_jax.models.smooth_activations import LEARNED, SMOOTH, SmoothActivations, smooth_relu

IN_TORCH = {
    "silu": functional.silu,
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "softplus": functional.softplus,
    "elu": functional.elu,
    "mish": functional.mish,
    LEARNED: lambda x: torch.where(x >= 0, x - torch.log(400 * x.clamp(min=0) + 1) / 400, torch.zeros_like(x)),
}
OURS = {**SMOOTH, LEARNED: lambda x: smooth_relu(x, jnp.float32(400.0))}
SLOPE_AT_0 = {"silu": 0.5, "gelu": 0.5, "softplus": 0.5, "elu": 1.0, "mish": 0.6, LEARNED: 0.0}


@pytest.mark.parametrize("name", [*SMOOTH, LEARNED])
def test_values_and_slopes_are_those_of_torch(name):
    assert METHODS["sat"].settings["activation"].choices == tuple(IN_TORCH)
    points = np.concatenate([np.linspace(-6, 6, 201), [-80.0, 80.0, 1e-3, -1e-3]])
    theirs = torch.tensor(points, requires_grad=True)
    IN_TORCH[name](theirs).sum().backward()
    np.testing.assert_allclose(OURS[name](jnp.float32(points)), IN_TORCH[name](theirs).detach(), rtol=1e-5, atol=1e-6)
    slopes = jax.vmap(jax.grad(OURS[name]))(jnp.float32(points))
    np.testing.assert_allclose(slopes, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*SMOOTH, LEARNED])
def test_the_slope_has_no_jump_at_0(name):
    below, at, above = jax.vmap(jax.grad(OURS[name]))(jnp.array([-1e-5, 0.0, 1e-5]))
    np.testing.assert_allclose([below, at, above], SLOPE_AT_0[name], atol=400 * 1e-5 + 1e-3)


def test_smooth_relu_is_relu_in_the_limit_and_0_for_negative_values():
    x = jnp.arange(-3, 3, 0.125)
    np.testing.assert_array_equal(smooth_relu(x, jnp.float32(7.0))[x <= 0], 0)
    np.testing.assert_allclose(smooth_relu(x, jnp.float32(1e7)), np.maximum(x, 0), atol=1e-5)
    np.testing.assert_allclose(smooth_relu(x, jnp.float32(1e-6)), 0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_place_learns_a_beta_of_its_own(dtype):
    config = config_lib.default()
    config.model.name, config.model.backbone, config.model.dtype = "compact", "", dtype
    config.sat.activation = LEARNED
    module = models.create(config.model, change=METHODS["sat"].network(config.sat))
    shapes = jax.eval_shape(lambda: models.initialize(module, jax.random.key(0), 16))
    roots = {name: leaf for name, leaf in shapes["params"]["backbone"].items() if name.endswith("_root_beta")}
    assert len(roots) == 6 and all(leaf.shape == () and leaf.dtype == jnp.float32 for leaf in roots.values())


class Place(nn.Module):
    """A place of an activation in bfloat16."""

    @nn.compact
    def __call__(self, x):
        place = change.Place("relu", 1, train=False, dtype=x.dtype, axis_name=None)
        return SmoothActivations(LEARNED).activation(self, x, nn.relu, place)


def test_half_precision_stays_and_a_beta_of_0_gives_no_nan():
    x = jnp.array([[[[-1.0, 0.0, 1e-3, 2.0]]]], jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        values, variables = Place().init_with_output(jax.random.key(0), x)
    assert values.dtype == jnp.bfloat16
    np.testing.assert_allclose(values.astype(np.float32), OURS[LEARNED](x.astype(jnp.float32)), rtol=0.01)
    variables = jax.tree.map(jnp.zeros_like, variables)
    gradient = jax.grad(lambda variables: jnp.sum(Place().apply(variables, x.astype(jnp.float32))))(variables)
    assert np.isfinite(gradient["params"]["relu_root_beta"])


@pytest.mark.parametrize("method", ["cprl", "cprl_loss"])
def test_cprl_can_have_them_too(method):
    settings = config_lib.default()[method]
    assert METHODS[method].network(settings) == change.NetworkChange()
    settings.activation = "silu"
    assert METHODS[method].network(settings) == SmoothActivations("silu")
    assert "silu" in methods.title(method, settings)
