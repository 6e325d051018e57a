import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from cprl_jax import attacks


def brightness(images):
    return 100 * jnp.mean(images, axis=(1, 2, 3))


def gray(*levels):
    return np.stack([np.full((4, 4, 3), level, np.float32) for level in levels])


def curved(weights, images):
    return 50 + 10 * jnp.tanh(jnp.einsum("bhwc,hwc->b", images - 0.5, weights))


SCORE = Partial(curved, np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32))
IMAGES = np.random.default_rng(1).random((4, 6, 5, 3)).astype(np.float32)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_the_mirror_image_or_the_edge_of_the_ball(norm):
    radius = 0.1 if norm == "linf" else 0.1 * np.sqrt(48)
    result = attacks.score_reflection(brightness, gray(0.48, 0.53, 0.3, 0.9), radius=radius, steps=100, norm=norm)
    np.testing.assert_allclose(result.before, [48, 53, 30, 90], rtol=1e-6)
    np.testing.assert_allclose(result.after, [52, 47, 40, 80], atol=0.13)  # a step changes the score by 0.25


def test_another_middle_of_the_scale():
    result = attacks.score_reflection(brightness, gray(0.48, 0.53), radius=0.1, steps=100, mid=45.0)
    np.testing.assert_allclose(result.after, [42, 43], atol=0.13)  # the second one would go on to 37


@pytest.mark.parametrize("start", [None, 0])
def test_returns_the_nearest_of_all_iterates(start):
    """Against the last iterates of shorter attacks: with a fixed step size they are this attack's iterates."""
    key = None if start is None else jax.random.key(start)
    options = dict(radius=0.02, step_size=0.01, key=key)
    result = attacks.score_reflection(SCORE, IMAGES, steps=6, **options)
    mirror = 100 - result.before
    iterates = [
        attacks.pgd(SCORE, IMAGES, steps=steps, direction=attacks.towards(mirror), **options) for steps in range(1, 7)
    ]
    distances = np.stack([np.abs(iterate.after - mirror) for iterate in iterates])
    if start is None:
        distances = np.concatenate([distances, np.abs(result.before - mirror)[None]])
    np.testing.assert_allclose(np.abs(result.after - mirror), distances.min(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result.after, SCORE(result.images), rtol=1e-6)
    np.testing.assert_array_equal(result.max_change, np.abs(result.images - IMAGES).max(axis=(1, 2, 3)))


def test_never_ends_farther_than_it_began():
    result = attacks.score_reflection(SCORE, IMAGES, radius=0.5, steps=2, step_size=0.5)
    assert np.all(np.abs(result.after - (100 - result.before)) <= np.abs(result.before - (100 - result.before)))


def test_a_score_in_the_middle_is_left_alone(recwarn):
    images = gray(0.5)
    result = attacks.score_reflection(brightness, images, radius=0.1, mid=float(brightness(images)[0]))
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.zero_gradient_fraction, [0])
    assert not recwarn


def test_constant_score_is_reported():
    with pytest.warns(UserWarning, match="no gradient"):
        result = attacks.score_reflection(lambda x: 40 + 0 * brightness(x), gray(0.5), radius=0.1)
    np.testing.assert_array_equal(result.images, gray(0.5))


def test_radius_zero_gives_the_images_back_bit_for_bit():
    images = IMAGES.copy()
    images[0, 1, 1] = [-0.0, 1e-40, np.nextafter(np.float32(1), np.float32(0))]
    result = attacks.score_reflection(SCORE, images, radius=0.0, key=jax.random.key(0))
    assert np.asarray(result.images).tobytes() == images.tobytes()
    np.testing.assert_array_equal(result.before, result.after)


def test_radius_and_range_hold_in_exact_arithmetic():
    for radius in (1 / 255, 0.3):
        attacked = np.asarray(attacks.score_reflection(SCORE, IMAGES, radius=radius).images, np.float64)
        assert np.abs(attacked - IMAGES.astype(np.float64)).max() <= radius
        assert attacked.min() >= 0 and attacked.max() <= 1


def attack(score_fn, images, steps=3):
    return attacks.score_reflection(score_fn, images, radius=0.02, steps=steps)


def assert_same(first, second):
    for name, a, b in zip(first._fields, first, second, strict=True):
        np.testing.assert_allclose(np.ravel(a), np.ravel(b), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("steps", [3, 20])
def test_jit_vmap_and_grad(steps):
    eager = attack(SCORE, IMAGES, steps)
    assert_same(eager, jax.jit(attack, static_argnums=2)(SCORE, IMAGES, steps))
    assert_same(eager, jax.jit(jax.vmap(lambda x: attack(SCORE, x, steps)))(IMAGES.reshape(2, 2, 6, 5, 3)))
    gradient = jax.grad(lambda x: sum(jnp.sum(leaf) for leaf in attack(SCORE, x, steps)))(IMAGES)
    np.testing.assert_array_equal(gradient, np.zeros_like(IMAGES))


@pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize(("spec", "steps"), [(P("batch"), 3), (P("batch"), 20), (P(), 20)])
def test_two_devices(spec, steps):
    mesh = Mesh(np.array(jax.local_devices()[:2]), ("batch",))
    mapped = jax.shard_map(lambda f, x: attack(f, x, steps), mesh=mesh, in_specs=(P(), spec), out_specs=spec)
    assert_same(attack(SCORE, IMAGES, steps), jax.jit(mapped)(SCORE, IMAGES))
