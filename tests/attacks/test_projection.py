import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.attacks.projection import l2_norm, project_l2, project_linf, round_to_8_bit


def hard_cases(count, seed=0):
    """Images and radii over many magnitudes, with values at and next to 0 and 1."""
    rng = np.random.default_rng(seed)
    images = rng.random((count, 8, 8, 3), dtype=np.float32)
    images[::2] = 10.0 ** -(8 * images[::2])
    images[:, 0] = rng.choice(np.array([0, 1, 0.5, 1 - 2**-24, 2**-24], np.float32), images[:, 0].shape)
    images[:, 1] = rng.integers(0, 256, images[:, 1].shape) / 255
    radius = (10.0 ** rng.uniform(-8, 0, (count, 1, 1, 1))).astype(np.float32)
    radius[:8] = (np.arange(1, 9) / 255).astype(np.float32).reshape(8, 1, 1, 1)
    return images.astype(np.float32), radius


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("side", [-1, 1])
def test_linf_holds_in_exact_arithmetic_and_wastes_less_than_an_ulp(jit, side):
    images, radius = hard_cases(500)
    project = jax.jit(project_linf) if jit else project_linf
    projected = np.asarray(project(images + side * 2, images, radius))
    change = np.abs(projected.astype(np.float64) - images)
    assert np.all(change <= radius)
    assert np.all((projected >= 0) & (projected <= 1))
    further = np.nextafter(projected, np.float32(2 * side))
    beyond = np.abs(further.astype(np.float64) - images) > radius
    assert np.all(beyond | (projected == (side > 0)))


def test_linf_leaves_points_inside_alone():
    images, radius = hard_cases(100)
    inside = np.asarray(project_linf(images + 0.4 * radius, images, radius))
    np.testing.assert_array_equal(inside, np.minimum(images + 0.4 * radius, 1))


@pytest.mark.parametrize("jit", [False, True])
def test_l2_holds_in_exact_arithmetic(jit):
    images, radius = hard_cases(200)
    perturbed = images + np.random.default_rng(1).normal(size=images.shape).astype(np.float32)
    project = jax.jit(project_l2) if jit else project_l2
    projected = np.asarray(project(perturbed, images, radius))
    change = (projected.astype(np.float64) - images).reshape(200, -1)
    assert np.all(np.linalg.norm(change, axis=1) <= radius.ravel())
    assert np.all((projected >= 0) & (projected <= 1))
    gray, large = np.full((1, 32, 32, 3), 0.5, np.float32), np.array([2.0], np.float32).reshape(1, 1, 1, 1)
    moved = np.asarray(project(gray + 0.9, gray, large), np.float64) - gray
    np.testing.assert_allclose(np.linalg.norm(moved), 2, rtol=3e-6)


@pytest.mark.parametrize("project", [project_linf, project_l2])
def test_zero_radius_keeps_every_bit(project):
    images, radius = hard_cases(10)
    images[0, 0, 0] = [-0.0, 1e-40, 1e-45]
    kept = np.asarray(jax.jit(project)(images + 1, images, 0 * radius))
    assert kept.tobytes() == images.tobytes()


def test_float64():
    with jax.enable_x64(True):
        images, radius = (values.astype(np.float64) for values in hard_cases(20))
        projected = np.asarray(project_linf(jnp.asarray(images + 2), images, radius))
        assert projected.dtype == np.float64
        exact = projected.astype(np.longdouble) - images.astype(np.longdouble)
        assert np.all(exact <= radius)


def test_l2_norm_at_the_ends_of_the_float_range():
    values = np.array([0, 1e-30, 1, 1e30], np.float32).reshape(4, 1, 1, 1) * np.ones((4, 5, 5, 3), np.float32)
    np.testing.assert_allclose(l2_norm(values).ravel(), np.sqrt(75) * np.array([0, 1e-30, 1, 1e30]), rtol=1e-6)


# On the 8-bit grid


def grid_case(dtype=np.float32, seed=0):
    """8-bit images that have every grey level, their levels, and attacked images that leave the ball."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (4, 16, 16, 3))
    levels[:, ..., 0] = np.arange(256).reshape(16, 16)
    images = (levels / 255).astype(dtype)
    attacked = np.clip(images + rng.uniform(-6 / 255, 6 / 255, images.shape), 0, 1).astype(dtype)
    return attacked, images, levels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("grey_levels", [0, 0.5, 0.999, 1, 1.5, 2, 4, 255])
def test_8_bit_images_change_by_whole_levels_within_the_radius(dtype, grey_levels):
    with jax.enable_x64(dtype == np.float64):
        attacked, images, levels = grid_case(dtype)
        rounded = np.asarray(round_to_8_bit(attacked, images, grey_levels / 255))
        assert rounded.dtype == dtype
        numbers = np.rint(255 * rounded.astype(np.float64)).astype(int)
        np.testing.assert_array_equal(rounded, (numbers / 255).astype(dtype))  # on the grid to the last bit
        reach = int(np.floor(grey_levels))
        expected = np.clip(np.rint(255 * attacked.astype(np.float64)), levels - reach, levels + reach).clip(0, 255)
        np.testing.assert_array_equal(numbers, expected)
        np.testing.assert_array_equal(round_to_8_bit(rounded, images, grey_levels / 255), rounded)
        if grey_levels < 1:
            np.testing.assert_array_equal(rounded, images)


def test_8_bit_rounding_of_images_off_the_grid():
    images = (np.array([10.3, 10.3, 10.3, 10.3, 0.2, 254.9]) / 255).astype(np.float32).reshape(1, 1, 2, 3)
    attacked = (np.array([14, 9.9, 9.0, 11.6, 0, 255]) / 255).astype(np.float32).reshape(1, 1, 2, 3)
    for radius, expected in (
        (0.1, [10, 10, 10, 10, 0, 255]),
        (0.5, [10, 10, 10, 10, 0, 255]),
        (1.4, [11, 10, 9, 11, 0, 255]),
    ):
        rounded = np.asarray(round_to_8_bit(attacked, images, radius / 255))
        np.testing.assert_array_equal(rounded, (np.array(expected) / 255).astype(np.float32).reshape(1, 1, 2, 3))


def test_8_bit_rounding_takes_a_radius_per_image_and_is_constant_under_jit_and_vmap():
    attacked, images, levels = grid_case()
    radius = np.array([0, 1, 2, 3], np.float32) / 255
    rounded = jax.jit(round_to_8_bit)(attacked, images, radius)
    change = np.abs(np.rint(255 * np.asarray(rounded)) - levels).max((1, 2, 3))
    np.testing.assert_array_equal(change, [0, 1, 2, 3])
    mapped = jax.vmap(round_to_8_bit)(attacked[:, None], images[:, None], radius)
    np.testing.assert_array_equal(mapped[:, 0], rounded)
    assert not np.any(jax.grad(lambda x: jnp.sum(round_to_8_bit(x, images, radius)))(jnp.asarray(attacked)))


def test_mistakes_in_8_bit_rounding_are_named():
    attacked, images, _ = grid_case()
    with pytest.raises(ValueError, match=r"attacked and images must agree.*\(2, 16, 16, 3\).*\(4, 16, 16, 3\)"):
        round_to_8_bit(attacked[:2], images, 0.1)
    with pytest.raises(ValueError, match="radius must be in"):
        round_to_8_bit(attacked, images, 4)
