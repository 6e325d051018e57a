"""Norm training against the gradient norm itself, and its two published forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.config import defaults as config_lib
from cprl_jax.models.common import IMAGENET
from cprl_jax.training.optimizers import make_optimizer
from cprl_jax.training.state import create_state
from cprl_jax.training.step import make_step

WEIGHTS = np.random.default_rng(0).normal(size=(6, 5, 3))


class Linear(nn.Module):
    """score = <weights, image> + scale: the l1 norm of its gradient is the sum of |weights|."""

    @nn.compact
    def __call__(self, images, train=False):
        scale = self.param("head", nn.initializers.ones, ())
        return scale * jnp.sum(jnp.asarray(WEIGHTS, jnp.float32)[None] * images, axis=(1, 2, 3))


def run(**settings):
    config = config_lib.default()
    config.nt.update(settings)
    generator = np.random.default_rng(1)
    batch = {
        "image": generator.integers(0, 256, (4, 6, 5, 3), np.uint8),
        "mos": generator.uniform(0, 100, 4).astype(np.float32),
    }
    optimizer = make_optimizer(config.train, steps=10)
    params = {"head": jnp.ones(())}
    state = create_state({"params": params}, optimizer.init(params))
    return jax.jit(make_step(Linear(), optimizer, config, method="nt"))(state, batch)[1]


@pytest.mark.parametrize("step", [0.1, 0.58, 4.0])
def test_of_a_linear_score_the_penalty_is_half_the_squared_l1_norm_at_any_step(step):
    np.testing.assert_allclose(run(step=step)["norm_loss"], np.abs(WEIGHTS).sum() ** 2 / 2, rtol=1e-3)


def test_the_published_step_counts_in_units_of_the_normalised_input():
    norm = (np.abs(WEIGHTS) * np.array(IMAGENET.std)).sum()  # that of the gradient in (image - mean) / std
    np.testing.assert_allclose(run(normalized_step=0.01)["norm_loss"], norm**2 / 2, rtol=1e-3)


def test_the_loss_is_the_sum_of_its_parts():
    metrics = run(weight=0.25)
    np.testing.assert_allclose(metrics["loss"], metrics["mos_loss"] + 0.25 * metrics["norm_loss"], rtol=1e-6)
    assert metrics["direction_agreement"] == 1 and np.isfinite(metrics["gradient_norm"])
