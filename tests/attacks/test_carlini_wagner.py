import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax.attacks.carlini_wagner import carlini_wagner
from cprl_jax.attacks.directions import away, down, reflect, up

WEIGHTS = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)


def grays(batch=2, seed=1):
    """Away from 0 and 1, so that only the score binds."""
    return (0.3 + 0.4 * np.random.default_rng(seed).random((batch, 4, 5, 3))).astype(np.float32)


def linear(weights, images):
    return 50 + jnp.einsum("bhwc,hwc->b", images, weights)


SCORE = Partial(linear, WEIGHTS)
QUICK = {"steps": 60, "searches": 6}


@pytest.mark.parametrize(("direction", "sides"), [(up(), [1, 1]), (down(), [-1, -1]), (reflect([0.0, 99.0]), [1, -1])])
def test_linear_score_needs_the_known_change(direction, sides):
    """The nearest image with a change r of w.x is x + r w / ||w||^2, at the distance r / ||w||."""
    images, required = grays(), np.array([0.5, 1.0], np.float32)
    result = carlini_wagner(SCORE, images, required_change=required, direction=direction, initial_constant=0.1)
    norm = np.linalg.norm(WEIGHTS)
    assert np.all(result.success)
    assert np.all((result.after - result.before) * np.array(sides) >= required)
    np.testing.assert_allclose(result.distances, required / norm, rtol=0.02)
    expected = images + (sides * required / norm**2).reshape(2, 1, 1, 1).astype(np.float32) * WEIGHTS
    np.testing.assert_allclose(result.images, expected, atol=0.003)
    change = np.asarray(result.images, np.float64) - images
    np.testing.assert_allclose(result.distances, np.sqrt(np.sum(change**2, axis=(1, 2, 3))), rtol=1e-5)
    np.testing.assert_allclose(result.max_change, np.abs(change).max(axis=(1, 2, 3)), atol=1e-6)
    # With a smaller constant than 2 r / ||w||^2, the change costs more than it brings.
    assert np.all(result.constants > 0.98 * 2 * required / norm**2)


def test_black_and_white_values_take_part():
    images = np.zeros((1, 4, 5, 3), np.float32)
    images[:, 2:] = 1
    weights = np.where(images[0] == 0, 1, -1).astype(np.float32) * np.abs(WEIGHTS)
    result = carlini_wagner(
        Partial(linear, weights), images, required_change=0.5, direction=up(), initial_constant=0.1, steps=400
    )
    assert result.success[0] and np.all(result.images >= 0) and np.all(result.images <= 1)
    np.testing.assert_allclose(result.distances, 0.5 / np.linalg.norm(weights), rtol=0.1)


def test_out_of_reach_gives_the_original_back():
    images = grays()
    highest = np.asarray(linear(WEIGHTS, (np.broadcast_to(WEIGHTS, images.shape) > 0).astype(np.float32)))
    room = highest - np.asarray(linear(WEIGHTS, images))
    result = carlini_wagner(
        SCORE, images, required_change=np.array([1.01 * room[0], 0.5]), direction=up(), initial_constant=0.1, **QUICK
    )
    np.testing.assert_array_equal(result.success, [False, True])
    np.testing.assert_array_equal(result.images[0], images[0])
    assert result.after[0] == result.before[0] and result.distances[0] == 0 and result.constants[0] == 0
    assert result.max_change[0] == 0


def test_no_required_change_is_the_identity():
    images = grays()
    images[0, 0] = [-0.0, 0.0, 1.0]
    result = carlini_wagner(SCORE, images, required_change=0.0, direction=up(), steps=3, searches=2)
    assert np.asarray(result.images).tobytes() == images.tobytes()
    assert np.all(result.success) and np.all(result.distances == 0)


@pytest.mark.parametrize(("value", "direction"), [(0.0, up()), (1.0, down())], ids=["black", "white"])
def test_saturated_images_are_no_harder_to_attack(value, direction):
    mean = Partial(lambda images: 100 * jnp.mean(images, axis=(1, 2, 3)))
    images = np.full((1, 4, 5, 3), value, np.float32)
    result = carlini_wagner(mean, images, required_change=np.array([2.0]), direction=direction)
    assert result.success[0]
    np.testing.assert_allclose(result.distances, [0.02 * np.sqrt(60)], rtol=0.03)


def test_away_takes_the_nearer_side():
    def cliff(images):  # rises ten times as fast as it falls
        change = jnp.mean(images, axis=(1, 2, 3)) - 0.5
        return 50 + jnp.where(change > 0, 10 * change, change)

    images = np.full((2, 4, 5, 3), 0.5, np.float32)
    few = QUICK | {"learning_rate": 0.01}  # so that few steps end near the edge
    result = carlini_wagner(cliff, images, required_change=0.1, direction=away(), initial_constant=0.01, **few)
    assert np.all(result.success) and np.all(result.after > result.before)
    np.testing.assert_allclose(result.distances, np.full(2, 0.01 * np.sqrt(60)), rtol=0.05)


def test_constant_grows_until_it_is_large_enough():
    problem = {"required_change": 0.5, "direction": up(), "steps": 60, "learning_rate": 0.01}
    few = carlini_wagner(SCORE, grays(), initial_constant=1e-4, searches=2, **problem)
    assert not np.any(few.success)
    many = carlini_wagner(SCORE, grays(), initial_constant=1e-4, searches=5, **problem)
    assert np.all(many.success)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "searches"), [(4, 3), (10, 2)])  # unrolled, and as a device loop
def test_jit_and_vmap_give_the_same(steps, searches):
    images = grays()

    def attack(score_fn, images):
        return carlini_wagner(
            score_fn,
            images,
            required_change=0.2,
            direction=up(),
            steps=steps,
            searches=searches,
            learning_rate=0.05,
            initial_constant=1.0,
        )

    eager = attack(SCORE, images)
    assert np.all(eager.success)
    jitted = jax.jit(attack)(SCORE, images)
    mapped = jax.jit(jax.vmap(attack, in_axes=(None, 0)))(SCORE, np.stack([images, images[::-1]]))
    for name, a, b, c in zip(eager._fields, eager, jitted, mapped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(a, c[0], rtol=1e-4, atol=1e-5, err_msg=name)


def test_images_of_a_batch_do_not_influence_each_other():
    images, options = grays(), {"required_change": 0.3, "direction": up(), "steps": 20, "searches": 3}
    together = carlini_wagner(SCORE, images, initial_constant=np.array([0.1, 10.0]), **options)
    alone = carlini_wagner(SCORE, images[1:], initial_constant=10.0, **options)
    np.testing.assert_allclose(together.images[1], alone.images[0], atol=1e-5)


def test_constant_score_is_reported():
    images = grays()
    with pytest.warns(UserWarning, match="no gradient"):
        result = carlini_wagner(
            lambda x: jnp.full(x.shape[0], 7.0), images, required_change=1.0, direction=up(), steps=2, searches=2
        )
    np.testing.assert_array_equal(result.zero_gradient_fraction, np.ones(2))
    np.testing.assert_array_equal(result.images, images)
    assert not np.any(result.success)


def test_quantized_images_reach_the_required_change():
    """Rounding afterwards does not: the change that just suffices is a few grey levels or less in each value."""
    levels = np.random.default_rng(2).integers(60, 200, (2, 4, 5, 3))
    levels[0, 0, 0] = [0, 255, 0]  # where the derivative in tanh space vanishes
    images = (levels / 255).astype(np.float32)
    options = {"required_change": 0.07, "direction": up(), "initial_constant": 0.1, **QUICK}
    exact = carlini_wagner(SCORE, images, **options)
    result = carlini_wagner(SCORE, images, quantize=True, **options)
    assert np.all(exact.success) and np.all(result.success)
    saved = np.rint(255 * np.asarray(result.images, np.float64))
    np.testing.assert_array_equal(result.images, (saved / 255).astype(np.float32))
    gain = np.einsum("bhwc,hwc->b", (saved - levels) / 255, WEIGHTS.astype(np.float64))
    assert np.all(gain >= 0.07 - 1e-5)
    distances = np.sqrt(np.sum((saved - levels) ** 2, axis=(1, 2, 3))) / 255
    np.testing.assert_allclose(result.distances, distances, rtol=1e-4)
    assert np.all(result.distances < 2 * exact.distances)
    afterwards = np.rint(255 * np.asarray(exact.images, np.float64)) - levels
    assert np.any(np.einsum("bhwc,hwc->b", afterwards / 255, WEIGHTS) < 0.07)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"required_change": -1.0}, "required_change must be finite and at least 0, got -1"),
        ({"required_change": np.ones(3)}, r"required_change must be one number or one per image.*\(3,\) for 2"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and more than 0"),
        ({"initial_constant": np.inf}, "initial_constant must be finite"),
        ({"searches": 0}, "searches must be a whole number"),
        ({"direction": lambda s, c: jnp.sum(s)}, "direction must return one float per image"),
        ({"score_fn": lambda x: x}, "score_fn must return one float per image"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {"score_fn": SCORE, "required_change": 1.0, "direction": up()} | change
    with pytest.raises(ValueError, match=message):
        carlini_wagner(arguments.pop("score_fn"), grays(), **arguments)
