import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax import attacks
from cprl_jax.attacks import adaptive

IMAGES = np.random.default_rng(0).random((3, 6, 5, 3), dtype=np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32)


def smooth(weights, images):
    return jnp.einsum("bhwc,hwc->b", jnp.sin(3 * images), weights)


def rounded(weights, images):
    """The same behind 8 levels of grey, which leave no gradient."""
    return smooth(weights, jnp.round(7 * images) / 7)


SMOOTH, ROUNDED = Partial(smooth, WEIGHTS), Partial(rounded, WEIGHTS)


def test_straight_through_has_the_value_of_one_and_the_derivatives_of_the_other():
    function = adaptive.straight_through(ROUNDED, SMOOTH)
    for transform in (lambda f: f, jax.jit):
        np.testing.assert_array_equal(transform(function)(IMAGES), transform(ROUNDED)(IMAGES))
        gradient = transform(jax.grad(lambda x: jnp.sum(function(x))))(IMAGES)
        np.testing.assert_allclose(gradient, jax.grad(lambda x: jnp.sum(SMOOTH(x)))(IMAGES), rtol=1e-6)
    change = np.ones_like(IMAGES)
    (value, tangent), (_, expected) = (jax.jvp(f, (IMAGES,), (change,)) for f in (function, SMOOTH))
    np.testing.assert_array_equal(value, ROUNDED(IMAGES))
    np.testing.assert_allclose(tangent, expected, rtol=1e-6)


def test_straight_through_needs_no_derivative_of_the_first():
    def outside_of_jax(images):
        return jax.pure_callback(
            lambda x: np.asarray(x).sum((1, 2, 3), np.float32), jax.ShapeDtypeStruct((3,), np.float32), images
        )

    with pytest.raises(ValueError, match="(?i)callback"):
        jax.grad(lambda x: jnp.sum(outside_of_jax(x)))(IMAGES)
    result = attacks.fgsm(
        adaptive.straight_through(outside_of_jax, lambda x: jnp.mean(x, axis=(1, 2, 3))),
        IMAGES,
        radius=0.1,
        direction=attacks.up(),
    )
    np.testing.assert_allclose(result.images, np.minimum(IMAGES + np.float32(0.1), 1), atol=1e-6)
    np.testing.assert_allclose(result.after, result.images.sum((1, 2, 3)), rtol=1e-5)


def test_an_attack_gets_through_a_gate_without_a_gradient():
    arguments = dict(radius=0.2, direction=attacks.up())
    with pytest.warns(UserWarning, match="no gradient"):
        stuck = attacks.pgd(ROUNDED, IMAGES, **arguments)
    np.testing.assert_array_equal(stuck.images, IMAGES)
    through = attacks.pgd(adaptive.straight_through(ROUNDED, SMOOTH), IMAGES, **arguments)
    assert np.all(through.after > through.before + 1)
    np.testing.assert_allclose(through.after, ROUNDED(through.images), rtol=1e-5)  # scores of the model itself


def test_both_are_pytrees_that_compile_once():
    traces = []

    @jax.jit
    def evaluate(score_fn, images):
        traces.append(1)
        return score_fn(images)

    for factor in (1, 2):
        pair = Partial(rounded, factor * WEIGHTS), Partial(smooth, factor * WEIGHTS)
        np.testing.assert_allclose(evaluate(adaptive.straight_through(*pair), IMAGES), pair[0](IMAGES), rtol=1e-5)
        evaluate(adaptive.expectation(Partial(noisy, factor * WEIGHTS), jax.random.key(factor), 4), IMAGES)
    assert len(traces) == 2


def test_straight_through_of_unlike_functions():
    with pytest.raises(ValueError, match=r"equal shapes, got \(3,\) and \(\)"):
        jax.grad(lambda x: jnp.sum(adaptive.straight_through(SMOOTH, lambda x: jnp.sum(x))(x)))(IMAGES)


def noisy(weights, key, images):
    """Scores images through a gate that is random and closed half of the time."""
    gate = jax.random.bernoulli(key, 0.5, images.shape[1:])
    return smooth(weights, images * gate[None])


def test_expectation_is_the_mean_over_its_draws():
    stochastic = Partial(noisy, WEIGHTS)
    function = adaptive.expectation(stochastic, jax.random.key(3), 5)
    draws = [stochastic(key, IMAGES) for key in jax.random.split(jax.random.key(3), 5)]
    np.testing.assert_allclose(function(IMAGES), np.mean(draws, axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(function(IMAGES), function(IMAGES))
    assert not np.array_equal(function(IMAGES), adaptive.expectation(stochastic, jax.random.key(4), 5)(IMAGES))
    one = adaptive.expectation(stochastic, jax.random.PRNGKey(3), np.int64(1))  # an old-style key
    assert one(IMAGES).shape == (3,)


def test_expectation_approaches_the_mean():
    stochastic = Partial(noisy, WEIGHTS)
    many = adaptive.expectation(stochastic, jax.random.key(3), 4000)
    exact = 0.5 * smooth(WEIGHTS, IMAGES)  # sin(0) = 0: a closed gate takes its term away
    standard_error = np.sqrt(np.sum((0.5 * WEIGHTS * np.sin(3 * IMAGES)) ** 2, axis=(1, 2, 3)) / 4000)
    assert np.all(np.abs(many(IMAGES) - exact) < 4 * standard_error)


@pytest.mark.slow
def test_attack_on_the_expectation_fools_other_draws():
    stochastic = Partial(noisy, WEIGHTS)
    other = adaptive.expectation(stochastic, jax.random.key(99), 200)
    gains = [
        other(
            attacks.pgd(
                adaptive.expectation(stochastic, jax.random.key(0), samples), IMAGES, radius=0.1, direction=attacks.up()
            ).images
        )
        - other(IMAGES)
        for samples in (1, 16)
    ]
    assert np.all(gains[1] > gains[0]) and np.all(gains[0] > 0)


@pytest.mark.parametrize("samples", [0, -1, 2.5, "4"])
def test_expectation_refuses_a_number_of_samples(samples):
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1"):
        adaptive.expectation(Partial(noisy, WEIGHTS), jax.random.key(0), samples)


def test_expectation_names_a_wrong_function():
    with pytest.raises(ValueError, match=r"stochastic_score_fn must return one float per image.*\(\)"):
        adaptive.expectation(lambda key, images: jnp.sum(images), jax.random.key(0), 2)(IMAGES)
