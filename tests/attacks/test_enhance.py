import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax.attacks.directions import away, down, target_free
from cprl_jax.attacks.enhance import enhance

WEIGHTS = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)


def photographs(batch=3, seed=1):
    images = np.random.default_rng(seed).random((batch, 4, 5, 3), dtype=np.float32)
    images[:, 0, 0], images[:, -1, -1] = 0, 1
    return images


def linear(weights, images):
    return 50 + jnp.einsum("bhwc,hwc->b", images, weights)


SCORE = Partial(linear, WEIGHTS)


def test_linear_score_moves_every_value_by_the_steps():
    images = photographs()
    result = enhance(SCORE, images, steps=20, step_size=0.01)
    expected = np.clip(images + 0.2 * np.sign(WEIGHTS), 0, 1)
    np.testing.assert_allclose(result.images, expected, atol=1e-6)
    np.testing.assert_allclose(result.after, linear(WEIGHTS, expected), rtol=1e-5)
    np.testing.assert_allclose(result.max_change, np.abs(expected - images).max(axis=(1, 2, 3)), atol=1e-6)
    assert result.trajectory.shape == (21, 3)
    for step in (0, 1, 10, 20):
        scores = linear(WEIGHTS, np.clip(images + step * 0.01 * np.sign(WEIGHTS), 0, 1))
        np.testing.assert_allclose(result.trajectory[step], scores, rtol=1e-5)
    np.testing.assert_array_equal(result.trajectory[-1], result.after)
    degraded = enhance(SCORE, images, steps=20, step_size=0.01, direction=down())
    np.testing.assert_allclose(degraded.images, np.clip(images - 0.2 * np.sign(WEIGHTS), 0, 1), atol=1e-6)


def test_euclidean_steps():
    images = 0.4 + 0.2 * photographs()
    result = enhance(SCORE, images, steps=7, step_size=[0.0, 0.01, 0.02], norm="l2")
    gain = 7 * np.array([0.0, 0.01, 0.02]) * np.linalg.norm(WEIGHTS)
    np.testing.assert_allclose(result.after - result.before, gain, atol=2e-4)
    np.testing.assert_array_equal(result.images[0], images[0])


@pytest.mark.parametrize("steps", [3, 20])
def test_jit_and_vmap_give_the_same(steps):
    images = photographs()

    def attack(score_fn, images):
        return enhance(score_fn, images, steps=steps, direction=target_free())

    eager = attack(SCORE, images)
    jitted = jax.jit(attack)(SCORE, images)
    mapped = jax.jit(jax.vmap(attack, in_axes=(None, 0)))(SCORE, np.stack([images, images[::-1]]))
    for name, a, b, c in zip(eager._fields, eager, jitted, mapped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(a, c[0], rtol=1e-6, atol=1e-6, err_msg=name)


def test_constant_score_is_reported():
    images = photographs()
    with pytest.warns(UserWarning, match="no gradient"):
        result = enhance(lambda x: jnp.full(x.shape[0], 7.0), images, steps=3)
    np.testing.assert_array_equal(result.zero_gradient_fraction, np.ones(3))
    np.testing.assert_array_equal(result.images, images)


def test_no_gradient_flows():
    gradient = jax.grad(lambda x: sum(jnp.sum(leaf) for leaf in enhance(SCORE, x, steps=2)))(photographs())
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"norm": "l0"}, "norm must be"),
        ({"step_size": -1.0}, "step_size"),
        ({"direction": lambda s, c: jnp.sum(s)}, "direction must return one float per image"),
        ({"direction": away()}, "enhance needs a single direction"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        enhance(SCORE, photographs(), **change)
