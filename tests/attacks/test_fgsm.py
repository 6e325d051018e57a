import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax import attacks


def linear(weights, images):
    return jnp.einsum("bhwc,hwc->b", images, weights)


WEIGHTS = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
SCORE = Partial(linear, WEIGHTS)


def images_between(lowest, highest, batch=3):
    return np.random.default_rng(1).uniform(lowest, highest, (batch, 5, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("radius", [0.5 / 255, 4 / 255, 0.1])
def test_linear_score_changes_by_radius_times_the_sum_of_weights(radius):
    images = images_between(0.2, 0.8)
    result = attacks.fgsm(SCORE, images, radius=radius, direction=attacks.up())
    change = np.asarray(result.images, np.float64) - images
    np.testing.assert_allclose(np.sum(change * WEIGHTS, axis=(1, 2, 3)), radius * np.abs(WEIGHTS).sum(), rtol=1e-4)
    np.testing.assert_allclose(result.after - result.before, np.full(3, radius * np.abs(WEIGHTS).sum()), rtol=1e-3)


def test_linear_score_changes_by_radius_times_the_norm_of_the_weights_in_l2():
    result = attacks.fgsm(SCORE, images_between(0.2, 0.8), radius=0.1, direction=attacks.down(), norm="l2")
    np.testing.assert_allclose(result.before - result.after, np.full(3, 0.1 * np.linalg.norm(WEIGHTS)), rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_changes_a_linear_score_by_the_dual_norm_in_double_precision(norm):
    with jax.enable_x64(True):
        weights, images = WEIGHTS.astype(np.float64), images_between(0.2, 0.8).astype(np.float64)
        result = attacks.fgsm(Partial(linear, weights), images, radius=0.1, direction=attacks.up(), norm=norm)
    dual = np.abs(weights).sum() if norm == "linf" else np.linalg.norm(weights)
    # The l2 ball is kept with a margin of a millionth.
    tolerance = 1e-12 if norm == "linf" else 2e-6
    np.testing.assert_allclose(result.after - result.before, np.full(3, 0.1 * dual), rtol=tolerance)


def test_away_goes_to_the_side_of_the_larger_change():
    images = images_between(0.2, 0.8)

    def convex(images):  # rises faster than it falls
        return jnp.exp(jnp.einsum("bhwc,hwc->b", images, 0.2 * WEIGHTS))

    result = attacks.fgsm(convex, images, radius=0.1, direction=attacks.away())
    rising = attacks.fgsm(convex, images, radius=0.1, direction=attacks.up())
    np.testing.assert_allclose(result.after, rising.after, rtol=1e-6)
    flipped = attacks.fgsm(lambda x: -convex(x), images, radius=0.1, direction=attacks.away())
    np.testing.assert_allclose(flipped.images, rising.images, atol=1e-7)


def test_is_the_sign_of_the_gradient():
    def score(images):
        return jnp.sum(jnp.sin(9 * images), axis=(1, 2, 3))

    images = images_between(0, 1)
    result = attacks.fgsm(score, images, radius=0.03, direction=attacks.down())
    expected = np.clip(images.astype(np.float64) - 0.03 * np.sign(np.cos(9 * images)), 0, 1)
    np.testing.assert_allclose(result.images, expected, atol=1e-7)
    assert result.max_change.shape == (3,) and np.all(result.max_change <= np.float32(0.03))


def test_is_one_step_of_pgd():
    images = images_between(0, 1)
    fast = attacks.fgsm(SCORE, images, radius=0.03, direction=attacks.target_free())
    projected = attacks.pgd(SCORE, images, radius=0.03, steps=1, direction=attacks.target_free())
    for a, b in zip(fast, projected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_radius_per_image_and_zero():
    images, radii = images_between(0.2, 0.8), np.array([0.0, 0.01, 0.1])
    result = attacks.fgsm(SCORE, images, radius=radii, direction=attacks.up())
    np.testing.assert_allclose(result.max_change, radii, rtol=1e-5)
    assert np.asarray(result.images[0]).tobytes() == images[0].tobytes()


@pytest.mark.parametrize("radius", [1 / 255, 1 / 3, 1.0])
def test_radius_and_range_hold_in_exact_arithmetic(radius):
    images = images_between(0, 1, batch=20)
    for attack in (attacks.fgsm, jax.jit(attacks.fgsm, static_argnames=("radius",))):
        result = attack(SCORE, images, radius=radius, direction=attacks.up())
        attacked = np.asarray(result.images, np.float64)
        assert np.abs(attacked - images.astype(np.float64)).max() <= radius
        assert attacked.min() >= 0 and attacked.max() <= 1


def test_constant_score_is_reported():
    with pytest.warns(UserWarning, match="no gradient") as caught:
        result = attacks.fgsm(
            lambda x: jnp.full(x.shape[0], 40.0), images_between(0, 1), radius=0.1, direction=attacks.up()
        )
    assert [warning.filename for warning in caught] == [__file__]
    np.testing.assert_array_equal(result.zero_gradient_fraction, np.ones(3))


def test_jit_vmap_and_grad():
    images = images_between(0, 1)

    def attack(images):
        return attacks.fgsm(SCORE, images, radius=0.03, direction=attacks.up())

    eager = attack(images)
    mapped = jax.vmap(attack)(images[None])
    for a, b, c in zip(eager, jax.jit(attack)(images), mapped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        np.testing.assert_allclose(a, c[0], rtol=1e-6)
    gradient = jax.grad(
        lambda weights: jnp.sum(
            attacks.fgsm(Partial(linear, weights), images, radius=0.1, direction=attacks.up()).after
        )
    )(WEIGHTS)
    np.testing.assert_array_equal(gradient, np.zeros_like(WEIGHTS))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="4/255"):
        attacks.fgsm(SCORE, images_between(0, 1), radius=8, direction=attacks.up())
    with pytest.raises(ValueError, match=r"from .* to 25\d"):
        attacks.fgsm(SCORE, images_between(0, 255), radius=0.1, direction=attacks.up())
