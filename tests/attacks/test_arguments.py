import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.attacks.arguments import check_count, check_distance, check_images, check_number, per_image_keys
from cprl_jax.attacks.result import AttackResult, finish, warn_if_gradient_is_zero

IMAGES = jnp.zeros((3, 2, 2, 3))


def test_distances_are_rounded_down():
    for value in (1 / 255, 0.1, 1 / 3):
        rounded = np.asarray(check_distance("radius", value, IMAGES), np.float64)
        assert np.all(rounded <= value) and np.all(rounded > value * (1 - 2e-7))


def test_distances_may_be_traced():
    np.testing.assert_allclose(jax.jit(lambda r: check_distance("radius", r, IMAGES))(0.1), np.full(3, 0.1), rtol=1e-6)


def test_counts_and_numbers():
    assert check_count("steps", np.int64(3)) == 3 == check_count("steps", 3, at_least=3)
    for wrong in (0, -1, 2.0, "1", None):
        with pytest.raises(ValueError, match=f"draws must be a whole number of at least 1, got {wrong!r}"):
            check_count("draws", wrong)
    assert check_number("momentum", jnp.float32(0.5)) == 0.5
    for wrong in (-1, np.inf, np.nan, "1x", None, [1, 2]):
        with pytest.raises(ValueError, match="momentum must be"):
            check_number("momentum", wrong)
    with pytest.raises(ValueError, match="momentum"):
        jax.jit(lambda value: check_number("momentum", value))(1.0)


def test_images_are_not_waited_for_while_tracing():
    jax.jit(check_images)(IMAGES + 5)
    with pytest.raises(ValueError, match="from 5 to 5"):
        check_images(IMAGES + 5)


def test_keys_of_an_image_do_not_depend_on_the_batch():
    key = jax.random.key(0)
    three, five = per_image_keys(key, 3), per_image_keys(key, 5)
    np.testing.assert_array_equal(jax.random.key_data(three), jax.random.key_data(five[:3]))
    assert len(np.unique(jax.random.key_data(five), axis=0)) == 5
    np.testing.assert_array_equal(jax.random.key_data(per_image_keys(five, 5)), jax.random.key_data(five))
    old = per_image_keys(jax.random.PRNGKey(0), 3)
    np.testing.assert_array_equal(old, jax.random.key_data(three))
    np.testing.assert_array_equal(per_image_keys(old, 3), old)
    with pytest.raises(ValueError, match=r"one per image: got \w+ of shape \(5,\) for 3 images"):
        per_image_keys(five, 3)


def test_the_warning_counts_images_and_is_silent_otherwise(recwarn):
    warn_if_gradient_is_zero(jnp.array([0.0, 0.999, jnp.nan]))
    jax.jit(lambda fraction: warn_if_gradient_is_zero(fraction))(jnp.ones(3))
    assert not recwarn
    with pytest.warns(UserWarning, match="2 of 3 images") as caught:
        warn_if_gradient_is_zero(jnp.array([1.0, 0.5, 1.0]))
    assert caught[0].filename == __file__


def test_a_finished_result_is_constant():
    def total(x):
        result = finish(AttackResult(x, x[:, 0, 0, 0], x[:, 0, 0, 0], x[:, 0, 0, 0], 0 * x[:, 0, 0, 0]), x)
        return sum(jnp.sum(leaf) for leaf in result)

    np.testing.assert_array_equal(jax.grad(total)(IMAGES), np.zeros_like(IMAGES))


def test_what_is_no_number_is_named():
    for wrong in ("4/255", None, True, ["1", "2", "3"]):
        with pytest.raises(
            ValueError, match="radius must be one number or one per image, such as 4 / 255 without quotes"
        ):
            check_distance("radius", wrong, IMAGES)
