import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax import attacks

RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (3, 6, 5, 3))
IMAGES = (LEVELS / 255).astype(np.float32)
WEIGHTS = RNG.normal(size=(6, 5, 3)).astype(np.float32)
SCORE = Partial(lambda weights, images: jnp.einsum("bhwc,hwc->b", images, weights), WEIGHTS)


def as_saved(images):
    """What an 8-bit file holds."""
    return np.rint(255 * np.asarray(images, np.float64)).astype(int)


def test_within_the_radius_in_whole_grey_levels_and_scored_there():
    grey_levels = [0.5, 1.0, 2.5]
    radii = [levels / 255 for levels in grey_levels]
    result = attacks.fgsm(SCORE, IMAGES, radius=radii, direction=attacks.up())
    # What rounding without regard to the radius does to half a grey level.
    assert np.abs(as_saved(result.images[0]) - LEVELS).max() == 1
    held = attacks.as_8_bit(SCORE, IMAGES, result, radius=radii)
    for place, levels in enumerate(grey_levels):
        saved = as_saved(held.images[place])
        np.testing.assert_array_equal(held.images[place], (saved / 255).astype(np.float32))
        assert np.abs(saved - LEVELS).max() == int(levels)
        np.testing.assert_allclose(held.after[place], SCORE((saved / 255).astype(np.float32)), rtol=1e-5, atol=1e-5)
        one = jax.tree.map(lambda leaf, place=place: leaf[place], result)
        alone = attacks.as_8_bit(SCORE, IMAGES, one, radius=radii[place])
        again = attacks.as_8_bit(SCORE, IMAGES, alone, radius=radii[place])
        for field, several, first, second in zip(held._fields, held, alone, again, strict=True):
            np.testing.assert_allclose(several[place], first, rtol=1e-6, err_msg=field)
            np.testing.assert_allclose(second, first, rtol=1e-6, err_msg=field)
    column = attacks.as_8_bit(SCORE, IMAGES, result, radius=np.array(radii)[:, None])
    np.testing.assert_array_equal(column.images, held.images)
    np.testing.assert_array_equal(held.before, result.before)
    np.testing.assert_array_equal(held.max_change[0], np.zeros(3))


def test_of_other_attacks_and_traced():
    enhanced = attacks.enhance(SCORE, IMAGES, steps=2)
    held = jax.jit(attacks.as_8_bit)(SCORE, IMAGES, enhanced, radius=1.0)
    np.testing.assert_array_equal(as_saved(held.images), as_saved(enhanced.images))
    np.testing.assert_array_equal(held.trajectory, enhanced.trajectory)
    square = attacks.square(SCORE, IMAGES, radius=0.02, queries=3, key=jax.random.key(0), direction=attacks.up())
    assert attacks.as_8_bit(SCORE, IMAGES, square, radius=0.02).zero_gradient_fraction is None


def test_mistakes_are_named():
    result = attacks.fgsm(SCORE, IMAGES, radius=[0.01, 0.02], direction=attacks.up())
    for wrong in (0.01, [0.01]):
        with pytest.raises(ValueError, match="radius must be the list of 2 radii"):
            attacks.as_8_bit(SCORE, IMAGES, result, radius=wrong)
    with pytest.raises(ValueError, match="got tuple: give quantize=True"):
        attacks.as_8_bit(SCORE, IMAGES, tuple(result), radius=0.01)
