"""The causal intervention and its loss against closed forms and a literal NumPy transcription of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.losses import intervention, invariance_loss, magnitudes, perturb

WEIGHTS = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)


def linear(images):
    return jnp.sum(images * WEIGHTS[None], axis=(1, 2, 3))


@pytest.fixture
def images():
    return np.random.default_rng(1).uniform(0.3, 0.7, (4, 6, 5, 3)).astype(np.float32)


def keys(count):
    return jax.random.split(jax.random.key(3), count)


def test_one_step_is_epsilon_times_the_sign_of_the_gradient(images):
    delta = intervention(linear, images, epsilon=0.01)
    np.testing.assert_array_equal(delta, np.broadcast_to(np.float32(0.01) * np.sign(WEIGHTS), images.shape))


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_several_steps_reach_the_largest_change_of_a_linear_score(images, steps):
    delta = intervention(linear, images, epsilon=0.01, steps=steps, keys=keys(4))
    change = np.abs(linear(images + delta) - linear(images))
    # The softened sign leaves pixels with less than a hundredth of the mean gradient on their way: 1e-3 of the change.
    np.testing.assert_allclose(change, 0.01 * np.abs(WEIGHTS).sum(), rtol=1e-3)
    assert np.abs(delta).max() <= np.float32(0.01)


def test_several_steps_find_what_the_gradient_at_the_image_does_not(images):
    """A score that is flat at the image and curved around it: first order sees nothing, the ascent does."""

    def curved(x):
        return jnp.sum((x - images) ** 2, axis=(1, 2, 3))

    assert np.abs(intervention(curved, images, epsilon=0.01)).max() == 0
    delta = intervention(curved, images, epsilon=0.01, steps=3, keys=keys(4))
    np.testing.assert_allclose(np.abs(delta), 0.01, rtol=1e-4)


def test_an_image_has_its_own_draw_whatever_the_batch(images):
    whole = intervention(linear, images, epsilon=0.02, steps=2, keys=keys(4))
    alone = intervention(linear, images[2:3], epsilon=0.02, steps=2, keys=keys(4)[2:3])
    np.testing.assert_array_equal(whole[2], alone[0])


def test_the_direction_is_a_constant_for_autodiff(images):
    def loss(scale):
        return jnp.sum(intervention(lambda x: scale * linear(x) ** 2, images, epsilon=0.01))

    assert jax.grad(loss)(2.0) == 0


def test_several_steps_need_keys(images):
    with pytest.raises(ValueError, match="keys"):
        intervention(linear, images, epsilon=0.01, steps=2)


def test_perturb_stays_in_range():
    edge = jnp.array([0.0, 0.005, 0.995, 1.0]).reshape(1, 2, 2, 1)
    assert perturb(edge, jnp.full_like(edge, 0.01)).max() <= 1
    assert perturb(edge, jnp.full_like(edge, -0.01)).min() >= 0


def test_magnitudes():
    uniform = magnitudes(keys(4000), count=3)
    assert uniform.shape == (3, 4000)
    assert uniform.min() >= -1
    assert uniform.max() <= 1
    # Uniform on [-1, 1]: mean 0, variance 1/3, each within five standard errors.
    assert abs(float(uniform.mean())) < 5 * np.sqrt(1 / 3 / 12000)
    np.testing.assert_allclose(uniform.var(), 1 / 3, rtol=0.05)
    np.testing.assert_array_equal(magnitudes(keys(5), count=2, law="edge"), np.ones((2, 5)))
    with pytest.raises(ValueError, match="'gauss'.*'uniform', 'edge'"):
        magnitudes(keys(2), count=1, law="gauss")


@pytest.mark.parametrize(("norm", "power"), [("absolute", 1), ("squared", 2)])
def test_invariance_loss_is_the_printed_expectation(norm, power):
    generator = np.random.default_rng(2)
    clean, perturbed = generator.uniform(0, 100, 7), generator.uniform(0, 100, (3, 7))
    expected = np.mean([abs(perturbed[a, i] - clean[i]) ** power for a in range(3) for i in range(7)])
    clean, perturbed = clean.astype(np.float32), perturbed.astype(np.float32)
    np.testing.assert_allclose(invariance_loss(clean, perturbed, norm=norm), expected, rtol=1e-5)
    relative = invariance_loss(clean, perturbed, norm=norm, relative=True)
    np.testing.assert_allclose(relative, expected / clean.std() ** power, rtol=1e-4)


def test_relative_loss_does_not_reward_shrinking():
    clean, perturbed = np.array([20.0, 50.0, 80.0]), np.array([[30.0, 45.0, 85.0]])
    full = invariance_loss(clean, perturbed, relative=True)
    shrunk = invariance_loss(50 + (clean - 50) / 10, 50 + (perturbed - 50) / 10, relative=True)
    np.testing.assert_allclose(shrunk, full, rtol=1e-2)


def test_both_branches_receive_gradients():
    clean, perturbed = jnp.array([1.0, 5.0]), jnp.array([[2.0, 3.0]])
    by_clean, by_perturbed = jax.grad(invariance_loss, argnums=(0, 1))(clean, perturbed)
    np.testing.assert_allclose(by_clean, [-0.5, 0.5])
    np.testing.assert_allclose(by_perturbed, [[0.5, -0.5]])


def test_finite_gradients_at_equal_scores():
    gradient = jax.grad(lambda c: invariance_loss(c, jnp.full((2, 4), 50.0), relative=True))(jnp.full(4, 50.0))
    assert np.isfinite(gradient).all()


def test_unknown_norm_names_the_allowed_ones():
    with pytest.raises(ValueError, match="'max'.*'absolute', 'squared'"):
        invariance_loss(jnp.zeros(2), jnp.zeros((1, 2)), norm="max")
