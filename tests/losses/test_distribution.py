"""The distance of distributions of opinions, against the literal formula and SciPy; distributions made of a MOS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cprl_jax.losses import earth_movers_distance, opinion_distribution


@pytest.fixture
def pairs():
    """Two sets of five distributions over ten grades; the last pair is opposite certainties."""
    random = np.random.default_rng(0)
    p, q = (random.dirichlet(np.full(10, 0.5), 5).astype(np.float32) for _ in range(2))
    p[-1], q[-1] = np.eye(10, dtype=np.float32)[[0, 9]]
    return p, q


@pytest.mark.parametrize("r", [1.0, 2.0, 3.0])
def test_it_is_the_literal_formula(pairs, r):
    expected = []
    for p, q in zip(*np.float64(pairs), strict=True):
        total = sum(abs(sum(p[: k + 1]) - sum(q[: k + 1])) ** r for k in range(10))
        expected.append((total / 10) ** (1 / r))
    np.testing.assert_allclose(earth_movers_distance(*pairs, r=r), expected, rtol=1e-4)


def test_r_1_is_scipy_s_work_as_a_share_of_the_grades(pairs):
    work = [stats.wasserstein_distance(range(10), range(10), p, q) for p, q in zip(*np.float64(pairs), strict=True)]
    np.testing.assert_allclose(earth_movers_distance(*pairs, r=1), np.divide(work, 10), rtol=1e-4)


@pytest.mark.parametrize("r", [1, 2])
def test_equal_distributions_have_no_distance_and_no_gradient(pairs, r):
    distance = lambda p: jnp.sum(earth_movers_distance(p, pairs[1], r=r))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(distance))(pairs[1])
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    assert np.isfinite(jax.grad(distance)(pairs[0])).all()


def test_norms_below_1_are_refused(pairs):
    with pytest.raises(ValueError, match=r"r must be at least 1, got 0.5"):
        earth_movers_distance(*pairs, r=0.5)


def test_the_distribution_of_a_mos_has_it_as_its_mean_and_lies_around_it():
    grades = np.linspace(0, 100, 10, dtype=np.float32)
    mos = np.asarray([0.0, 3.0, 50.0, 99.5, 100.0, -4.0, 130.0], np.float32)
    p = np.asarray(opinion_distribution(mos, jnp.asarray(grades)))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(p @ grades, np.clip(mos, 0, 100), rtol=1e-5, atol=1e-4)
    spread = np.sqrt(np.maximum(p @ grades**2 - (p @ grades) ** 2, 0))
    assert (p >= 0).all() and ((p > 1e-6).sum(axis=1) <= 2).all() and (spread < 100 / 9).all()
