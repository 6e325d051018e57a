"""Soft ranks and their correlation against SciPy; the attack on a whole set against attacks on single images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from cprl_jax import attacks
from cprl_jax.attacks.ranking import soft_ranks, soft_srcc, soft_srcc_gradient, srcc

# The scale is traced, so that one program serves all scales.
differentiated = jax.jit(jax.grad(soft_srcc))
soft_ranks, soft_srcc, soft_srcc_gradient, srcc = map(jax.jit, (soft_ranks, soft_srcc, soft_srcc_gradient, srcc))

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((30, 6, 8, 3)).astype(np.float32)
WEIGHTS = RANDOM.normal(0, 0.2, (6, 8, 3)).astype(np.float32)
RADIUS = 0.01


def score(weights, images):
    return 70 + 3 * jnp.tanh(jnp.einsum("bhwc,hwc->b", images - 0.5, weights))


SCORE = Partial(score, WEIGHTS)
MOS = np.asarray(SCORE(IMAGES)) + RANDOM.normal(0, 0.5, 30).astype(np.float32)  # all above the middle, 50


def spearman(scores, mos=MOS):
    return stats.spearmanr(scores, mos).statistic


@pytest.mark.sampled
@pytest.mark.parametrize("count", [2, 300])
def test_ranks_are_those_of_scipy_where_nothing_is_soft(count):
    scores = np.random.default_rng(count).integers(0, 40, count).astype(np.float32)
    scores[0], mos = 41, np.random.default_rng(1).integers(0, 5, count) + np.arange(count) % 2
    np.testing.assert_allclose(soft_ranks(scores, scale=1e-4), stats.rankdata(scores), rtol=1e-6)
    for found in (soft_srcc(scores, mos, scale=1e-4), srcc(scores, mos)):
        np.testing.assert_allclose(found, spearman(scores, mos), atol=1e-6)
    # And a straight line of the scores where everything is.
    expected = np.corrcoef(scores, stats.rankdata(mos))[0, 1]
    np.testing.assert_allclose(soft_srcc(scores, mos, scale=1e4), expected, atol=1e-3)


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        scores, mos = RANDOM.normal(50, 10, 200), RANDOM.integers(0, 9, 200) / 1.0
        scores[7] = scores[8]
        for scale in (1.0, 20.0):
            steps = 1e-5 * np.eye(200)[::23]
            expected = [
                (soft_srcc(scores + step, mos, scale=scale) - soft_srcc(scores - step, mos, scale=scale)) / 2e-5
                for step in steps
            ]
            found = soft_srcc_gradient(jnp.asarray(scores), jnp.asarray(mos), scale=scale)
            np.testing.assert_allclose(found[::23], expected, rtol=1e-5, atol=1e-9)
            np.testing.assert_allclose(found, differentiated(scores, mos, scale=scale), rtol=1e-9, atol=1e-15)


@pytest.mark.slow
def test_the_gradient_does_not_vanish_between_scores_far_apart():
    scores, mos = np.array([0.0, 60.0, 1.0, 130.0]), np.array([1.0, 2.0, 4.0, 3.0])
    with jax.enable_x64(True):
        expected = np.asarray(soft_srcc_gradient(jnp.asarray(scores), jnp.asarray(mos), scale=1.0))
    found = soft_srcc_gradient(jnp.asarray(scores, jnp.float32), jnp.asarray(mos, jnp.float32), scale=1.0)
    assert np.all(expected != 0)
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # in float32, the slope of sigmoid(60) by itself would be 0


@pytest.mark.slow
def test_a_step_follows_the_gradient_of_the_whole_set():
    """The chain rule over scores, in batches, is differentiation through all of it."""
    images = jnp.asarray(IMAGES)
    scale = jnp.std(SCORE(images))
    gradient = jax.jit(jax.grad(lambda images: soft_srcc(SCORE(images), MOS, scale=scale)))(images)
    expected = jnp.clip(images - RADIUS * jnp.sign(gradient), 0, 1)
    for batch_size in (None, 7):
        found = attacks.ranking(SCORE, IMAGES, MOS, radius=RADIUS, steps=1, step_size=RADIUS, batch_size=batch_size)
        np.testing.assert_allclose(found.images, expected, atol=1e-6)
        np.testing.assert_allclose(found.after, SCORE(found.images), rtol=1e-6)
        np.testing.assert_allclose(found.before, SCORE(images), rtol=1e-6)


def test_lowers_the_ranking_where_attacks_on_single_images_keep_it():
    reflected = attacks.pgd(SCORE, IMAGES, radius=RADIUS, direction=attacks.reflect(MOS))
    assert np.all(reflected.after < reflected.before)
    for temperature in (0.3, 3.0):
        found = attacks.ranking(SCORE, IMAGES, MOS, radius=RADIUS, temperature=temperature)
        assert spearman(found.after) < spearman(reflected.after) - 0.1
        assert 0 < np.sum(found.after > found.before) < 30


def test_keeps_the_radius_and_never_raises_the_ranking():
    radii = np.linspace(0, 0.05, 30).astype(np.float32)
    found = attacks.ranking(SCORE, IMAGES, MOS, radius=[0.0, 0.003, 0.05])
    np.testing.assert_array_equal(found.images[0], IMAGES)
    values = [spearman(found.before[0]), *(spearman(after) for after in found.after)]
    assert values == sorted(values, reverse=True) and values[0] == values[1] > values[2] > values[3]
    each = attacks.ranking(SCORE, IMAGES, MOS, radius=radii, steps=3)
    change = np.abs(np.asarray(each.images, np.float64) - IMAGES).max(axis=(1, 2, 3))
    assert np.all(change <= radii) and change[0] == 0 and change.max() > 0.04
    assert np.all((each.images >= 0) & (each.images <= 1))
    # No iterate is better than images in the reverse order already.
    reverse = attacks.ranking(SCORE, IMAGES, -np.asarray(SCORE(IMAGES)), radius=RADIUS)
    np.testing.assert_array_equal(reverse.images, IMAGES)


def test_under_jit_and_without_a_gradient():
    plain = attacks.ranking(SCORE, IMAGES, MOS, radius=RADIUS, steps=2, batch_size=16)
    inside = jax.jit(lambda x, mos: attacks.ranking(SCORE, x, mos, radius=RADIUS, steps=2, batch_size=16))(IMAGES, MOS)
    for name, a, b in zip(plain._fields, plain, inside, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)
    with pytest.warns(UserWarning, match="30 of 30 images has no gradient"):
        blind = attacks.ranking(lambda x: jnp.round(SCORE(x)), IMAGES, MOS, radius=RADIUS, steps=2)
    np.testing.assert_array_equal(blind.images, IMAGES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mos": MOS[:5]}, r"mos must be one label for each .*: \(5,\) for 30 images"),
        ({"mos": np.where(MOS > 70, MOS, np.nan)}, "mos must be finite, 15 of 30 are not"),
        ({"mos": np.full(30, 3.0)}, "mos must not be the same for all images"),
        ({"images": IMAGES[:1], "mos": MOS[:1]}, "for each of two images or more"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"radius": -1.0}, "radius must be in"),
    ],
    ids=["count", "nan", "constant", "one image", "temperature", "batch size", "radius"],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"images": IMAGES, "mos": MOS, "radius": RADIUS} | change
    with pytest.raises(ValueError, match=message):
        attacks.ranking(SCORE, arguments.pop("images"), arguments.pop("mos"), **arguments)
