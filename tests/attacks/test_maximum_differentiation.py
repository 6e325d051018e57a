import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax.attacks.maximum_differentiation import maximum_differentiation

CENTER = 0.5


def two_pixels(points):
    """Images of two pixels of which the metrics look at the first channel."""
    images = np.full((len(points), 1, 2, 3), CENTER, np.float32)
    images[:, 0, :, 0] += np.asarray(points, np.float32)
    return images


def deviations(images):
    return images[:, 0, :, 0] - CENTER


def l1(images):
    return jnp.sum(jnp.abs(deviations(images)), axis=1)


def l2(images):
    return jnp.sqrt(jnp.sum(deviations(images) ** 2, axis=1))


def mse(references, images):
    return jnp.mean((images - references) ** 2, axis=(1, 2, 3))


def l3(references, images):
    return jnp.mean(jnp.abs(images - references) ** 3, axis=(1, 2, 3))


STARTS = [(0.2, 0.1), (-0.05, 0.2), (0.1, -0.15)]


@pytest.mark.slow
def test_l1_at_fixed_l2_on_two_pixels():
    """On a circle, the sum of absolute values is largest on the diagonals and smallest on the axes."""
    images = two_pixels(STARTS)
    result = maximum_differentiation(l2, l1, images, steps=150, step_size=0.02)
    radius = np.linalg.norm(STARTS, axis=1)
    np.testing.assert_allclose(result.fixed_before, np.stack([radius] * 2), rtol=1e-5)
    np.testing.assert_allclose(result.fixed_after, np.stack([radius] * 2), rtol=1e-3)
    np.testing.assert_allclose(result.after, np.stack([np.sqrt(2) * radius, radius]), rtol=5e-3)
    ends = np.abs(deviations(result.images[0]))
    np.testing.assert_allclose(ends, np.stack([radius / np.sqrt(2)] * 2, axis=1), atol=2e-3)
    np.testing.assert_allclose(np.min(np.abs(deviations(result.images[1])), axis=1), np.zeros(3), atol=1e-3)
    np.testing.assert_array_equal(result.images[:, :, :, :, 1:], np.full((2, 3, 1, 2, 2), CENTER))
    np.testing.assert_allclose(result.before, [l1(images)] * 2, rtol=1e-6)


def test_l2_at_fixed_l1_on_two_pixels():
    """On a diamond, the length is largest at the corners and smallest in the middle of the sides."""
    result = maximum_differentiation(l1, l2, two_pixels(STARTS), steps=150, step_size=0.02)
    level = np.sum(np.abs(STARTS), axis=1)
    np.testing.assert_allclose(result.fixed_after, np.stack([level] * 2), rtol=1e-3)
    np.testing.assert_allclose(result.after, np.stack([level, level / np.sqrt(2)]), rtol=5e-3)


@pytest.mark.slow
def test_many_values_against_lagrange():
    """At a fixed sum of squares, the sum of cubes is smallest for equal changes and largest for a single one."""
    rng = np.random.default_rng(0)
    references = np.full((2, 3, 2, 3), 0.5, np.float32)
    images = (references + rng.uniform(-0.08, 0.08, references.shape)).astype(np.float32)
    result = maximum_differentiation(
        Partial(mse, references), Partial(l3, references), images, steps=300, step_size=0.05, tolerance=1e-2
    )
    level = np.asarray(mse(references, images))
    np.testing.assert_allclose(result.fixed_after, [level] * 2, rtol=1e-2)
    np.testing.assert_allclose(result.after[0], (18 * level) ** 1.5 / 18, rtol=0.03)
    np.testing.assert_allclose(result.after[1], level**1.5, rtol=0.03)


def test_stays_in_range_and_on_the_level_at_the_borders():
    rng = np.random.default_rng(1)
    references = rng.choice([0.0, 0.02, 0.98, 1.0], (3, 4, 4, 3)).astype(np.float32)
    images = np.clip(references + rng.normal(0, 0.1, references.shape), 0, 1).astype(np.float32)
    weights = rng.normal(size=(4, 4, 3)).astype(np.float32)

    def score(images):
        return jnp.einsum("bhwc,hwc->b", images, weights)

    result = maximum_differentiation(Partial(mse, references), score, images, steps=60)
    assert np.all(result.images >= 0) and np.all(result.images <= 1)
    np.testing.assert_allclose(result.fixed_after, result.fixed_before, rtol=1e-3)
    np.testing.assert_allclose(result.fixed_after[0], mse(references, result.images[0]), rtol=1e-4)
    np.testing.assert_allclose(result.after[1], score(result.images[1]), rtol=1e-4)
    assert np.all(result.after[0] > result.before[0] + 0.5) and np.all(result.after[1] < result.before[1] - 0.5)
    np.testing.assert_allclose(
        result.max_change, np.abs(np.asarray(result.images) - images).max(axis=(2, 3, 4)), atol=1e-6
    )


def test_equal_metrics_cannot_be_told_apart():
    images = two_pixels(STARTS)
    result = maximum_differentiation(l2, l2, images, steps=20)
    np.testing.assert_allclose(result.after, result.before, rtol=1e-3)
    still = maximum_differentiation(l2, l1, images, steps=5, step_size=0.0)
    np.testing.assert_array_equal(still.images, np.stack([images] * 2))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 20])
def test_jit_and_vmap_give_the_same(steps):
    images = two_pixels(STARTS)

    def attack(images):
        return maximum_differentiation(l2, l1, images, steps=steps, step_size=0.01)

    eager = attack(images)
    jitted = jax.jit(attack)(images)
    mapped = jax.jit(jax.vmap(attack))(np.stack([images, images[::-1]]))
    for name, a, b, c in zip(eager._fields, eager, jitted, mapped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(a, c[0], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_references_go_under_vmap_as_arguments():
    rng = np.random.default_rng(0)
    references = rng.random((2, 2, 3, 3, 3), dtype=np.float32) * 0.5 + 0.25
    images = references + rng.normal(0, 0.05, references.shape).astype(np.float32)

    def attack(references, images):
        return maximum_differentiation(Partial(mse, references), Partial(l3, references), images, steps=5)

    mapped = jax.vmap(attack)(references, images)
    alone = attack(references[1], images[1])
    np.testing.assert_allclose(mapped.after[1], alone.after, rtol=1e-5)


def test_constant_metric_is_reported_and_nothing_flows_back():
    images = two_pixels(STARTS)
    with pytest.warns(UserWarning, match="no gradient"):
        result = maximum_differentiation(l2, lambda x: jnp.ones(x.shape[0]), images, steps=2)
    np.testing.assert_array_equal(result.images, np.stack([images] * 2))
    np.testing.assert_array_equal(result.zero_gradient_fraction, np.ones((2, 3)))
    total = jax.grad(lambda x: sum(jnp.sum(leaf) for leaf in maximum_differentiation(l2, l1, x, steps=2)))
    np.testing.assert_array_equal(total(images), np.zeros_like(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrections": -1}, "corrections must be a whole number of at least 0, got -1"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"step_size": np.zeros(2)}, "step_size must be one number or one per image"),
        ({"fixed_fn": lambda x: x}, "fixed_fn must return one float per image"),
        ({"varied_fn": lambda x: jnp.sum(x)}, "varied_fn must return one float per image"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {"fixed_fn": l2, "varied_fn": l1} | change
    with pytest.raises(ValueError, match=message):
        maximum_differentiation(arguments.pop("fixed_fn"), arguments.pop("varied_fn"), two_pixels(STARTS), **arguments)
