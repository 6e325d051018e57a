"""Soft ranks: SciPy's ranks in the limit, a constant sum, order and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from cprl_jax.losses import soft_ranks

VALUES = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)


def test_without_temperature_left_they_are_the_ranks():
    values = np.concatenate([VALUES, np.float32([[1, 1, 2, 2, 2, 0, 5]])])  # of equal values the mean
    np.testing.assert_allclose(soft_ranks(jnp.asarray(values), 1e-5), stats.rankdata(values, axis=1), atol=1e-4)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 1e4])
def test_their_order_is_that_of_the_values_and_their_sum_is_constant(temperature):
    ranks = np.asarray(soft_ranks(jnp.asarray(VALUES), temperature))
    np.testing.assert_allclose(ranks.sum(1), 7 * 8 / 2, rtol=1e-5)
    assert ranks.min() > 0.99 and ranks.max() < 7.01
    if temperature < 10:
        np.testing.assert_array_equal(ranks.argsort(1), VALUES.argsort(1))
    else:
        np.testing.assert_allclose(ranks, 4.0, atol=1e-3)


def test_gradients_are_those_of_finite_differences_and_finite_at_ties():
    check_grads(lambda x: soft_ranks(x, 0.7), (VALUES,), 1, rtol=0.02)
    assert np.isfinite(jax.jacobian(lambda x: soft_ranks(x, 1e-3))(jnp.ones(4))).all()
