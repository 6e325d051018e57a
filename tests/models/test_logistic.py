"""The logistic map against its formula, and its fit against maps that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax.models import logistic
from cprl_jax.models.logistic import LogisticConstants, fit_logistic, logistic_map


def formula(scores, center, scale, highest=10.0, lowest=0.0):
    return (highest - lowest) / (1 + np.exp(-(np.asarray(scores, np.float64) - center) / abs(scale))) + lowest


@pytest.mark.parametrize("constants", [logistic.BRISQUE, logistic.CORNIA, logistic.MA19, logistic.UNIQUE])
def test_formula_with_the_published_constants(constants):
    scores = np.linspace(constants.center - 5 * constants.scale, constants.center + 5 * constants.scale, 21)
    mapped = logistic_map(jnp.asarray(scores, jnp.float32), *constants)
    np.testing.assert_allclose(mapped, formula(scores, *constants), rtol=1e-5)
    assert (np.diff(mapped) > 0).all()
    np.testing.assert_allclose(logistic_map(constants.center, *constants), 5.0)


def test_constants_are_those_of_their_models():
    assert logistic.MA19 == (2.6943240, 0.9155527, 10.0, 0.0)
    assert logistic.UNIQUE == (-0.4135264, 1.6893845, 10.0, 0.0)
    # The range of Ma19's scores, 1.5 to 4.2, spreads over the scale with its own constants, and not with CORNIA's.
    assert np.ptp(logistic_map(np.array([1.5, 4.2]), *logistic.MA19)) > 5
    assert np.ptp(logistic_map(np.array([1.5, 4.2]), *logistic.CORNIA)) < 0.2


def test_limits_sign_of_the_scale_and_extreme_scores():
    scores = jnp.array([-1e30, -1.0, 0.0, 1.0, 1e30])
    np.testing.assert_allclose(
        logistic_map(scores, 0.0, -1.0, 3.0, 1.0), formula(scores.clip(-99, 99), 0, 1, 3, 1), rtol=1e-6
    )
    slopes = jax.vmap(jax.grad(lambda score: logistic_map(score, 0.0, 2.0)))(scores)
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(slopes[2], 10 / (4 * 2), rtol=1e-6)
    with pytest.raises(ValueError, match="scale is 0"):
        logistic_map(scores, 0.0, 0.0)


def test_mapped_score_function(getkey):
    images = jax.random.uniform(getkey(), (3, 4, 4, 3))

    def plain(images):
        return 10 * jnp.mean(images, axis=(1, 2, 3))

    def weighted(weight, images):
        return weight * jnp.mean(images, axis=(1, 2, 3))

    traces = []

    @jax.jit
    def through_jit(score_fn, images):
        traces.append(1)
        return score_fn(images)

    expected = formula(plain(images), 5.0, 2.0)
    constants = LogisticConstants(5.0, 2.0)
    for score_fn in (plain, Partial(weighted, jnp.float32(10))):
        mapped = logistic.logistic(score_fn, constants)
        np.testing.assert_allclose(mapped(images), expected, rtol=1e-5)
        np.testing.assert_allclose(through_jit(mapped, images), expected, rtol=1e-5)
    through_jit(logistic.logistic(Partial(weighted, jnp.float32(2)), LogisticConstants(1.0, 3.0)), images)
    assert len(traces) == 2  # neither weights nor constants are compiled in
    with pytest.raises(ValueError, match="scale is 0"):
        logistic.logistic(plain, LogisticConstants(5.0, 0.0))


@pytest.mark.parametrize("limits", [{}, {"highest": None}, {"highest": None, "lowest": None}])
def test_fit_finds_the_map_that_made_the_opinions(limits):
    scores = np.random.default_rng(0).uniform(-30, 90, 200)
    truth = LogisticConstants(40.0, 12.0, 8.0 if "highest" in limits else 10.0, 1.5 if "lowest" in limits else 0.0)
    found = fit_logistic(scores, formula(scores, *truth), **limits)
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-6)


def test_fit_is_the_nearest_map_to_noisy_opinions():
    generator = np.random.default_rng(1)
    scores = generator.normal(2.7, 0.8, 300)
    mos = formula(scores, *logistic.MA19) + generator.normal(0, 0.5, 300)
    found = fit_logistic(scores, mos)
    np.testing.assert_allclose(found[:2], logistic.MA19[:2], rtol=0.1)
    best = np.sum((formula(scores, *found) - mos) ** 2)
    for factor in (0.99, 1.01):
        for other in (found._replace(center=factor * found.center), found._replace(scale=factor * found.scale)):
            assert np.sum((formula(scores, *other) - mos) ** 2) > best


@pytest.mark.parametrize(
    ("scores", "mos", "message"),
    [
        ([1, 2, 3], [1, 2], r"shapes \(3,\) and \(2,\)"),
        ([1, 2, np.nan, 4], [1, 2, 3, 4], "not finite"),
        ([1, 2, 3], [1, 2, 3], "3 images are too few to fit 2 parameters; give 4 or more"),
        ([2, 2, 2, 2], [1, 2, 3, 4], "all the same"),
    ],
)
def test_refusals(scores, mos, message):
    with pytest.raises(ValueError, match=message):
        fit_logistic(scores, mos)
