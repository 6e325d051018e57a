from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import attacks
from cprl_jax.attacks.directions import alternatives

SCORES, CLEAN = jnp.array([10.0, 50.0, 90.0]), jnp.array([49.0, 50.0, 51.0])


def signs(direction, clean=CLEAN):
    """+1 where ascending the objective raises the score, -1 where it lowers it."""
    return list(np.asarray(jax.grad(lambda scores: jnp.sum(direction(scores, clean)))(SCORES)))


def test_up_and_down():
    assert signs(attacks.up()) == [1, 1, 1]
    assert signs(attacks.down()) == [-1, -1, -1]
    np.testing.assert_array_equal(attacks.down()(SCORES, CLEAN), -SCORES)


def test_reflect_goes_by_the_label_and_up_at_the_middle():
    assert signs(attacks.reflect([50.1, 50.0, 49.9])) == [-1, 1, 1]
    assert signs(attacks.reflect(np.array([5, 3, 1]), mid=3.0)) == [-1, 1, 1]
    assert signs(attacks.reflect(70.0)) == [-1, -1, -1]


def test_target_free_goes_by_the_clean_score_and_up_at_the_middle():
    assert signs(attacks.target_free()) == [1, 1, -1]
    assert signs(attacks.target_free(mid=49.5)) == [1, -1, -1]


def test_towards_goes_to_the_target_and_stays_there():
    assert signs(attacks.towards(50.0)) == [1, 0, -1]
    assert signs(attacks.towards([0.0, 60.0, 95.0])) == [-1, 1, 1]
    np.testing.assert_array_equal(attacks.towards([0.0, 60.0, 95.0])(SCORES, CLEAN), [-10, -10, -5])


def test_away_is_the_distance_and_tries_both_ways():
    np.testing.assert_array_equal(attacks.away()(SCORES, CLEAN), [39, 0, 39])
    assert [signs(way) for way in alternatives(attacks.away())] == [[1, 1, 1], [-1, -1, -1]]
    direction = attacks.up()
    assert alternatives(direction) == (direction,)


def linear(images):
    return jnp.mean(images, axis=(1, 2, 3))


def test_pgd_reaches_a_target_within_a_step():
    images = np.random.default_rng(0).uniform(0.3, 0.7, (3, 4, 4, 3)).astype(np.float32)
    target = linear(images) + jnp.array([0.03, -0.03, 0.5])
    result = attacks.pgd(linear, images, radius=0.1, steps=40, step_size=0.005, direction=attacks.towards(target))
    np.testing.assert_allclose(result.after[:2], target[:2], atol=0.0051)
    np.testing.assert_allclose(result.after[2] - result.before[2], 0.1, rtol=1e-4)  # as near as the radius allows


BUDGET = attacks.Budget((10,), iterations=5, starts=1, averaged_starts=0, samples=1, queries=0, points=0)
AWAY = {
    "fgsm": attacks.fgsm,
    "pgd": attacks.pgd,
    "ascent": partial(attacks.ascent, iterations=5),
    "ensemble": partial(attacks.ensemble, key=jax.random.key(0), budget=BUDGET),
}


@pytest.mark.parametrize("attack", AWAY.values(), ids=AWAY)
def test_away_takes_the_larger_change_of_each_image(attack):
    images = np.full((2, 4, 4, 3), 0.5, np.float32)
    steeper = jnp.array([1.0, -1.0])  # the first image's score rises more easily, the second one's falls

    def score(images):
        change = linear(images) - 0.5
        return 50 + jnp.where(change * steeper > 0, 3 * change, change)

    result = attack(score, images, radius=0.1, direction=attacks.away())
    np.testing.assert_allclose(result.after, [50.3, 49.7], rtol=1e-5)
    np.testing.assert_allclose(result.after, score(result.images), rtol=1e-6)
    np.testing.assert_array_equal(result.zero_gradient_fraction, np.zeros(2))


def test_pgd_away_compiles_once_for_both_ways():
    traces = []

    def counted(images):
        traces.append(1)
        return linear(images)

    attacks.pgd(counted, np.full((2, 4, 4, 3), 0.5, np.float32), radius=0.1, direction=attacks.away())
    assert len(traces) == 2  # the step and the final score


def test_reflect_refuses_another_number_of_labels():
    with pytest.raises(ValueError, match="one label per image"):
        attacks.reflect([1.0, 2.0])(SCORES, CLEAN)


def test_directions_are_pytrees_that_compile_once():
    traces = []

    @jax.jit
    def objective(direction, scores, clean):
        traces.append(1)
        return direction(scores, clean)

    for shift in (0.0, 1.0):
        objective(attacks.reflect(np.array([50.1, 50.0, 49.9]) + shift), SCORES, CLEAN)
        objective(attacks.target_free(50.0 + shift), SCORES, CLEAN)
        objective(attacks.towards(50.0 + shift), SCORES, CLEAN)
        objective(attacks.away(), SCORES, CLEAN)
        objective(attacks.up(), SCORES, CLEAN)
        objective(attacks.down(), SCORES, CLEAN)
    assert len(traces) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["mos", "target"])
def test_labels_that_are_not_finite_are_refused_and_whole_numbers_are_taken(name, value):
    make = {"mos": attacks.reflect, "target": attacks.towards}[name]
    with pytest.raises(ValueError, match=f"{name} must be finite, 1 of 3 are not"):
        make([1.0, value, 2.0])
    scores = jnp.array([10.0, 60.0, 90.0])
    with jax.numpy_dtype_promotion("strict"):
        np.testing.assert_array_equal(make([20, 60, 95])(scores, scores), make([20.0, 60.0, 95.0])(scores, scores))


@pytest.mark.parametrize("mid", [np.nan, np.inf, np.float32(np.nan), jnp.asarray(np.nan)], ids=range(4))
def test_a_middle_that_is_not_finite_is_refused(mid):
    """Nothing is above it: every score would go up."""
    images = np.full((1, 4, 4, 3), 0.5, np.float32)
    for use in (
        lambda: attacks.target_free(mid),
        lambda: attacks.reflect([50.0], mid),
        lambda: attacks.score_reflection(linear, images, radius=0.1, mid=mid),
        jax.jit(lambda: attacks.target_free(mid)(SCORES, CLEAN)),
    ):
        with pytest.raises(ValueError, match="mid must be a finite number, got"):
            use()
    jax.jit(lambda mid: attacks.target_free(mid)(SCORES, CLEAN))(mid)  # a traced value passes


@pytest.mark.parametrize(
    "attack", [attacks.pgd, attacks.ascent, attacks.ensemble, attacks.square], ids=lambda attack: attack.__name__
)
def test_a_direction_that_was_not_made_is_named(attack):
    images, options = np.full((1, 4, 4, 3), 0.5, np.float32), {"key": jax.random.key(0)}
    with pytest.raises(ValueError, match=r"direction must be up\(\.\.\.\), .*: call it"):
        attack(linear, images, radius=0.1, direction=attacks.up, **options)
