"""Losses on MOS against NumPy, torch and closed forms."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

from cprl_jax.config.fields import ALL
from cprl_jax.losses import correlation_loss, fidelity_loss, mos_loss


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
    with pytest.raises(ValueError, match="'l3'.*'l1', 'l2', 'huber', 'fidelity'"):
        mos_loss(*pair, kind="l3")


def test_every_loss_that_a_configuration_can_name_is_one(pair):
    for kind in ALL["train.mos_loss"].choices:
        assert mos_loss(*pair, kind=kind) > 0


def test_correlation_loss_is_one_minus_plcc(pair):
    scores, mos = pair
    np.testing.assert_allclose(correlation_loss(scores, mos), 1 - np.corrcoef(scores, mos)[0, 1], rtol=1e-5)


def test_correlation_loss_ignores_shift_and_scale(pair):
    scores, mos = pair
    np.testing.assert_allclose(correlation_loss(3 * scores - 7, mos), correlation_loss(scores, mos), rtol=1e-5)
    np.testing.assert_allclose(correlation_loss(mos, mos), 0, atol=1e-6)
    np.testing.assert_allclose(correlation_loss(-mos, mos), 2, atol=1e-6)


@pytest.mark.parametrize("loss", [mos_loss, correlation_loss, functools.partial(fidelity_loss, std=20.0, mos_std=20.0)])
def test_labels_of_another_shape_are_refused(pair, loss):
    scores, mos = pair
    with pytest.raises(ValueError, match=r"must both be \[batch\], got shapes \(17,\) and \(17, 1\)"):
        loss(scores, mos[:, None])


def test_constant_scores_give_one_and_finite_gradients(pair):
    _, mos = pair
    value, gradient = jax.value_and_grad(correlation_loss)(jnp.full(17, 50.0), mos)
    np.testing.assert_allclose(value, 1, atol=1e-4)
    assert np.isfinite(gradient).all()


def literal_fidelity_loss(scores, mos, std, mos_std):
    """The published formula in float64, pair by pair."""
    losses = []
    for i, j in itertools.combinations(range(len(scores)), 2):
        p = stats.norm.cdf((scores[i] - scores[j]) / np.sqrt(std[i] ** 2 + std[j] ** 2 + 1e-8))
        g = stats.norm.cdf((mos[i] - mos[j]) / np.sqrt(mos_std[i] ** 2 + mos_std[j] ** 2 + 1e-8))
        losses.append(1 - np.sqrt(p * g + 1e-8) - np.sqrt((1 - p) * (1 - g) + 1e-8))
    return np.mean(losses)


def test_fidelity_loss_is_the_published_formula(pair):
    scores, mos = (values.astype(np.float64) for values in pair)
    generator = np.random.default_rng(1)
    std, mos_std = generator.uniform(5, 30, (2, 17))
    found = fidelity_loss(*pair, std=std.astype(np.float32), mos_std=mos_std.astype(np.float32))
    np.testing.assert_allclose(found, literal_fidelity_loss(scores, mos, std, mos_std), rtol=1e-5)
    same = np.full(17, 20.0)
    found = mos_loss(*pair, kind="fidelity", fidelity_std=20.0)
    np.testing.assert_allclose(found, literal_fidelity_loss(scores, mos, same, same), rtol=1e-5)


def test_fidelity_loss_is_least_where_the_differences_are_those_of_the_labels(pair):
    _, mos = pair
    loss = functools.partial(mos_loss, mos=mos, kind="fidelity")
    value, gradient = jax.value_and_grad(loss)(mos + 7)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert loss(100 - mos) > loss(mos[::-1]) > loss(0.5 * mos) > 1e-3


@pytest.mark.parametrize(
    "scores", [np.zeros(4), np.array([0.0, 1e4, -1e4, 5.0]), np.ones(1)], ids=["equal", "far", "one"]
)
def test_fidelity_loss_and_its_gradient_are_finite(scores):
    scores = scores.astype(np.float32)
    mos = np.linspace(0, 100, len(scores), dtype=np.float32)
    value, gradient = jax.value_and_grad(fidelity_loss)(scores, mos, std=1.0, mos_std=1.0)
    assert np.isfinite(value) and -1e-6 <= value <= 1 and np.isfinite(gradient).all()
