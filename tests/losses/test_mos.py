"""Losses on MOS against NumPy, torch and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cprl_jax.losses import correlation_loss, mos_loss


@pytest.fixture
def pair():
    generator = np.random.default_rng(0)
    return generator.uniform(0, 100, 17).astype(np.float32), generator.uniform(0, 100, 17).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "oracle"),
    [
        ("l1", torch.nn.functional.l1_loss),
        ("l2", torch.nn.functional.mse_loss),
        ("huber", lambda a, b: torch.nn.functional.huber_loss(a, b, delta=10.0)),
    ],
)
def test_equals_torch(pair, kind, oracle):
    scores, mos = pair
    expected = oracle(torch.from_numpy(scores), torch.from_numpy(mos))
    np.testing.assert_allclose(mos_loss(scores, mos, kind=kind), expected, rtol=1e-6)


def test_unknown_kind_names_the_allowed_ones(pair):
    with pytest.raises(ValueError, match="'l3'.*'l1', 'l2', 'huber'"):
        mos_loss(*pair, kind="l3")


def test_correlation_loss_is_one_minus_plcc(pair):
    scores, mos = pair
    np.testing.assert_allclose(correlation_loss(scores, mos), 1 - np.corrcoef(scores, mos)[0, 1], rtol=1e-5)


def test_correlation_loss_ignores_shift_and_scale(pair):
    scores, mos = pair
    np.testing.assert_allclose(correlation_loss(3 * scores - 7, mos), correlation_loss(scores, mos), rtol=1e-5)
    np.testing.assert_allclose(correlation_loss(mos, mos), 0, atol=1e-6)
    np.testing.assert_allclose(correlation_loss(-mos, mos), 2, atol=1e-6)


def test_constant_scores_give_one_and_finite_gradients(pair):
    _, mos = pair
    value, gradient = jax.value_and_grad(correlation_loss)(jnp.full(17, 50.0), mos)
    np.testing.assert_allclose(value, 1, atol=1e-4)
    assert np.isfinite(gradient).all()
