import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.tree_util import Partial

from cprl_jax import attacks
from cprl_jax.attacks import Budget
from cprl_jax.attacks.ensemble import BUDGETS, cost, has_converged

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 4, 5, 3)).astype(np.float32)
SIZE = IMAGES[0].size
RADIUS = 0.05
KEY = jax.random.key(0)
WEIGHTS = RNG.normal(size=IMAGES.shape[1:]).astype(np.float32)
# Everything, in small numbers.
SMALL = Budget((10,), iterations=12, starts=2, averaged_starts=1, samples=2, queries=30, points=20)
ONLY = Budget((1,), iterations=1, starts=1, averaged_starts=0, samples=1, queries=0, points=0)


def flat(images):
    return images.reshape(len(images), -1)


def linear(weights, images):
    return jnp.einsum("bhwc,hwc->b", images, weights)


LINEAR = Partial(linear, WEIGHTS)


def attack(score_fn=LINEAR, images=IMAGES, **options):
    options = dict(radius=RADIUS, direction=attacks.up(), key=KEY, budget=SMALL) | options
    return attacks.ensemble(score_fn, images, **options)


def gain(result):
    return np.asarray(result.after - result.before)


def assert_same(first, second, tolerance=1e-5):
    for name, a, b in zip(first._fields, first, second, strict=True):
        if name not in ("which", "spent"):  # equal results may be found by several
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


# How far it gets


def test_reaches_the_maximum_of_a_linear_score():
    best = np.clip(IMAGES + RADIUS * np.sign(WEIGHTS), 0, 1)
    result = attack()
    np.testing.assert_allclose(result.images, best, atol=1e-6)
    assert result.converged and np.all(result.winners == "pgd")
    np.testing.assert_array_equal(result.after, LINEAR(result.images))


def test_reaches_the_maximum_of_a_piecewise_linear_score():
    rng = np.random.default_rng(1)
    planes, images = rng.normal(size=(8, SIZE)), 0.3 + 0.4 * IMAGES
    steep = planes.astype(np.float32).T

    def lowest_plane(x):
        return jnp.min(jnp.matmul(flat(x), steep, precision="highest"), axis=1)

    result = attack(lowest_plane, images, budget=SMALL._replace(iterations=100))
    for i, image in enumerate(images):
        highest = -scipy.optimize.linprog(
            np.append(np.zeros(SIZE), -1),
            A_ub=np.c_[-planes, np.ones(8)],
            b_ub=planes @ image.ravel(),
            bounds=[(-RADIUS, RADIUS)] * SIZE + [(None, None)],
        ).fun
        assert gain(result)[i] >= 0.99 * (highest - result.before[i])


def test_reaches_the_maximum_of_a_concave_quadratic_score():
    peaks = (IMAGES + np.random.default_rng(1).uniform(-0.1, 0.1, IMAGES.shape)).astype(np.float32)
    scales = np.random.default_rng(2).uniform(0.1, 1, IMAGES.shape).astype(np.float32)
    hill = Partial(lambda peaks, scales, x: -jnp.sum(scales * (x - peaks) ** 2, axis=(1, 2, 3)), peaks, scales)
    best = np.clip(peaks, np.maximum(IMAGES - RADIUS, 0), np.minimum(IMAGES + RADIUS, 1))
    result = attack(hill, budget=SMALL._replace(iterations=60))
    assert np.all(gain(result) >= 0.99 * np.asarray(hill(best) - hill(IMAGES)))


def winners_take_all(share, hidden):
    """Keeps the largest share of the values and silences the others: its gradient is right on a tiny piece only."""
    kept = jax.lax.top_k(hidden, int(share * hidden.shape[1]))[0]
    return jnp.where(hidden >= kept[:, -1:], hidden, 0)


def network(gate, images):
    rng = np.random.default_rng(5)
    hidden = 4 * flat(images) - 2
    for inputs, outputs in ((SIZE, 128), (128, 128)):
        hidden = gate(hidden @ (1.5 * rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)).astype(np.float32))
    return 50 + 10 * hidden @ rng.normal(size=128).astype(np.float32)


@pytest.mark.slow
def test_a_gate_of_winners_does_not_save_a_model():
    free = attack(Partial(network, jax.nn.relu), direction=attacks.down())
    options = dict(direction=attacks.down(), budget=SMALL._replace(iterations=30, queries=200))
    gated = attack(Partial(network, Partial(winners_take_all, 0.1)), **options)
    assert np.mean(-gain(gated)) > 0.5 * np.mean(-gain(free)) > 0


def test_stopped_gradients_do_not_save_a_model():
    plain = attack(direction=attacks.down())
    stopped = Partial(lambda weights, x: jax.lax.stop_gradient(linear(weights, x)), WEIGHTS)
    with pytest.warns(UserWarning, match="no gradient"):
        searched = attack(stopped, direction=attacks.down(), budget=SMALL._replace(queries=300))
    assert np.all(gain(searched) < 0.5 * gain(plain)) and set(searched.winners) == {"square"}
    assert np.all(searched.zero_gradient_fraction == 1)
    with pytest.warns(UserWarning, match="no gradient"):
        through = attack(stopped, direction=attacks.down(), adaptive_score_fn=LINEAR)
    np.testing.assert_allclose(gain(through), gain(plain), rtol=1e-4)
    assert set(through.winners) == {"adaptive ascent"}


@pytest.mark.slow
def test_a_saturated_head_does_not_save_a_model():
    """Tiny gradients are followed; where scores are rounded to the end of the scale, there are none, and it says so."""
    tiny = Partial(lambda weights, x: 100 * jax.nn.sigmoid(4 * linear(weights, x) - 40), WEIGHTS)
    result = attack(tiny)
    assert np.all(result.before < 1e-12)
    np.testing.assert_allclose(result.images, attack().images, atol=1e-6)
    rounded = Partial(lambda weights, x: 100 * jax.nn.sigmoid(linear(weights, x) + 60), WEIGHTS)
    with pytest.warns(UserWarning, match="3 of 3 images has no gradient"):
        nothing = attack(rounded, direction=attacks.down())
    assert set(nothing.winners) == {"none"} and np.all(nothing.zero_gradient_fraction == 1)


def noisy(weights, key, images):
    """The noise is different for every image and draw, and hides the gradient at each draw."""
    gate = 2 * jax.random.bernoulli(key, 0.5, images.shape[1:]).astype(images.dtype) - 0.8
    return linear(weights, images * gate[None])


@pytest.mark.slow
def test_randomness_does_not_save_a_model():
    stochastic = Partial(noisy, WEIGHTS)
    one_draw = Partial(noisy, WEIGHTS, jax.random.key(3))
    options = dict(budget=ONLY._replace(iterations=30))
    fixed = attack(one_draw, **options)
    averaged = attack(
        one_draw, stochastic_score_fn=stochastic, budget=SMALL._replace(iterations=30, samples=8, queries=0, points=0)
    )
    assert np.all(gain(averaged) >= gain(fixed) - 1e-5)
    # What is followed is the mean: with a judge that is the mean, its ascent alone reaches the maximum.
    mean = Partial(linear, 0.2 * WEIGHTS)
    blind = Partial(lambda weights, x: jax.lax.stop_gradient(linear(weights, x)), 0.2 * WEIGHTS)
    budget = Budget((1,), 30, starts=1, averaged_starts=1, samples=16, queries=0, points=0)
    with pytest.warns(UserWarning, match="no gradient"):
        found = attack(blind, stochastic_score_fn=stochastic, budget=budget)
    assert set(found.winners) == {"expectation ascent"}
    assert np.all(gain(found) > 0.7 * gain(attack(mean)))


def test_never_weaker_than_pgd():
    waves = Partial(lambda weights, x: jnp.einsum("bhwc,hwc->b", jnp.sin(300 * x), weights), WEIGHTS)
    for steps in (10, 100):
        plain = attacks.pgd(waves, IMAGES, radius=RADIUS, direction=attacks.up(), steps=steps)
        result = attack(waves, budget=ONLY._replace(pgd_steps=(steps,)))
        assert np.all(result.after >= plain.after)
    assert BUDGETS["standard"].pgd_steps == (10, 100) and 10 in BUDGETS["quick"].pgd_steps


# What it says


def test_a_slowly_converging_model_is_told():
    """A ridge so narrow that every long step falls off: after twice as many iterations, one is farther along it."""
    sums = np.sum(IMAGES, axis=(1, 2, 3))
    ridge = Partial(lambda sums, x: linear(WEIGHTS, x) - 10 * (jnp.sum(x, axis=(1, 2, 3)) - sums) ** 2, sums)
    tiny = attack(ridge, budget=ONLY._replace(iterations=8))
    assert not tiny.converged and np.all(tiny.after > tiny.settled)
    assert attack(ridge, budget=ONLY._replace(iterations=100, starts=2)).converged


def test_convergence_of_hand_cases():
    clean, settled = jnp.zeros(2), jnp.array([100.0, 300.0])
    assert has_converged(clean, settled, settled + 2) and not has_converged(clean, settled, settled + 2.1)
    assert not has_converged(clean, clean, clean), "what gained nothing shows nothing"
    assert not has_converged(clean, settled, settled * jnp.nan)


def test_names_what_won():
    """Each image's score can be raised by one attack only, and which is known beforehand."""
    assert set(attack().winners) == {"pgd"}
    hopeless = attack(Partial(lambda start, x: -jnp.sum((x - start) ** 2, axis=(1, 2, 3)), IMAGES))
    assert set(hopeless.winners) == {"none"} and not hopeless.converged
    np.testing.assert_array_equal(hopeless.images, IMAGES)
    blind = Partial(lambda weights, x: jax.lax.stop_gradient(linear(weights, x)), WEIGHTS)
    with pytest.warns(UserWarning, match="no gradient"):
        points = attack(blind, budget=ONLY._replace(points=50))
        patches = attack(blind, budget=ONLY._replace(queries=50))
    assert set(points.winners) == {"random points"} and set(patches.winners) == {"square"}
    assert np.all(gain(points) > 0) and np.all(gain(patches) > 0)
    # Steps of plain PGD end beyond the top of a narrow hill; the ascent halves its own.
    top = np.clip(IMAGES + 0.013, 0, 1).astype(np.float32)
    hill = Partial(lambda top, x: -jnp.sum(jnp.abs(x - top), axis=(1, 2, 3)), top)
    assert set(attack(hill, budget=SMALL._replace(queries=0, points=0, averaged_starts=0)).winners) == {"ascent"}


@pytest.mark.slow
def test_noise_finds_the_slope_behind_a_staircase():
    """Steps of the score with a slope the wrong way on each: only a mean over several steps shows where it rises."""

    def sawtooth(x):
        return jnp.sum(WEIGHTS[None] * (jnp.round(80 * x) / 80 - 0.9 * (x - jnp.round(80 * x) / 80)), axis=(1, 2, 3))

    smooth = Partial(lambda weights, x: linear(weights, x), WEIGHTS)
    result = attack(sawtooth, budget=SMALL._replace(iterations=20))
    assert np.all(gain(result) > 0) and np.all(gain(result) <= 1.5 * gain(attack(smooth)))


@pytest.mark.parametrize(
    ("direction", "has_more"),
    [(attacks.up(), False), pytest.param(attacks.away(), True, marks=pytest.mark.slow)],
    ids=["plain", "all, both ways"],
)
def test_counts_its_work(direction, has_more):
    calls = {"gradients": 0, "all": 0}

    @jax.custom_vjp
    def counted(score):
        jax.debug.callback(lambda value: calls.update(all=calls["all"] + 1), score[0])
        return score

    def backward(_, cotangent):
        jax.debug.callback(lambda value: calls.update(gradients=calls["gradients"] + 1), cotangent[0])
        return (cotangent,)

    counted.defvjp(lambda score: (counted(score), None), backward)
    image = IMAGES[:1]
    options = {}
    if has_more:
        options["adaptive_score_fn"] = lambda x: counted(linear(2 * WEIGHTS, x))
        options["stochastic_score_fn"] = lambda key, x: counted(noisy(WEIGHTS, key, x))
    budget = Budget((3, 4), 5, starts=2, averaged_starts=2, samples=3, queries=6, points=7)
    result = attack(lambda x: counted(LINEAR(x)), image, direction=direction, budget=budget, **options)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert result.spent.gradients == calls["gradients"]
    assert result.spent.queries == calls["all"] - calls["gradients"]


def test_the_documented_cost_is_that_of_the_budgets():
    def of(name, *more):
        options = dict(has_adaptive="adaptive" in more, is_stochastic="random" in more)
        return tuple(cost(BUDGETS[name], ways=1, **options))

    assert of("standard") == (1110, 15120) and of("standard", "adaptive") == (1710, 15732)
    assert of("quick") == (110, 188) and of("quick", "adaptive") == (185, 269)
    assert of("standard", "random")[0] == 1510 and of("quick", "random")[0] == 135


# What all attacks promise


def test_radius_and_range_hold_in_exact_arithmetic():
    images = IMAGES.copy()
    images[:, 0, 0], images[:, -1, -1] = 0, 1
    for radius in (1 / 255, 1 / 3, np.array([0.01, 0.02, 1.0])):
        result = attack(images=images, radius=radius)
        attacked = np.asarray(result.images, np.float64)
        assert np.all(np.abs(attacked - images.astype(np.float64)).max(axis=(1, 2, 3)) <= radius)
        assert attacked.min() >= 0 and attacked.max() <= 1
        np.testing.assert_allclose(result.max_change, np.abs(attacked - images).max(axis=(1, 2, 3)), rtol=1e-5)
    still = attack(images=images, radius=0)
    assert np.asarray(still.images).tobytes() == images.tobytes() and set(still.winners) == {"none"}


def test_a_list_of_radii_is_the_first_axis():
    several = attack(radius=[0.01, 0.05])
    assert several.images.shape == (2, *IMAGES.shape) and several.converged.shape == (2,)
    assert several.winners.shape == (2, 3) and several.spent == attack().spent
    assert_same(
        attack(radius=0.05), several._replace(**{name: getattr(several, name)[1] for name in several._fields[:-1]}), 0
    )


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_neighbours():
    keys = jax.random.split(KEY, 3)
    waves = Partial(lambda weights, x: jnp.einsum("bhwc,hwc->b", jnp.sin(9 * x), weights), WEIGHTS)
    options = dict(stochastic_score_fn=Partial(noisy, WEIGHTS), adaptive_score_fn=LINEAR)
    together = attack(waves, key=keys, **options)
    alone = attack(waves, IMAGES[1:2], key=keys[1:2], **options)
    np.testing.assert_allclose(alone.images[0], together.images[1], atol=1e-6)
    for field in ("after", "settled", "zero_gradient_fraction"):
        np.testing.assert_allclose(getattr(alone, field)[0], getattr(together, field)[1], rtol=1e-5)


@pytest.mark.slow
def test_jit_and_grad():
    compiled = jax.jit(lambda f, x, key: attack(f, x, key=key, adaptive_score_fn=f))(LINEAR, IMAGES, KEY)
    assert_same(attack(adaptive_score_fn=LINEAR), compiled)
    gradient = jax.grad(lambda x: jnp.sum(attack(images=x, budget=ONLY).after))(IMAGES)
    np.testing.assert_array_equal(gradient, np.zeros_like(IMAGES))


def test_images_that_are_not_finite_inside_a_trace():
    images = IMAGES.copy()
    images[1, 0, 0, 0] = np.nan
    result = jax.jit(lambda x: attack(images=x, budget=ONLY))(images)
    assert result.which[1] == 0
    assert np.all(np.isnan(result.images[1])) and np.isnan(result.after[1]) and not result.converged
    np.testing.assert_allclose(gain(result)[[0, 2]], gain(attack(budget=ONLY))[[0, 2]], rtol=1e-5)


@pytest.mark.slow
def test_double_precision_and_a_tiny_flat_image():
    gray = np.full((2, 1, 1, 3), 0.5)
    with jax.enable_x64(True):
        result = attack(lambda x: jnp.mean(x, axis=(1, 2, 3)), gray)
        assert result.images.dtype == result.after.dtype == np.float64
        np.testing.assert_allclose(result.after, [0.55, 0.55], rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": "huge"}, "budget must be 'standard', 'quick' or a Budget, got 'huge'"),
        ({"budget": SMALL._replace(iterations=0)}, "budget.iterations must be a whole number of at least 1"),
        ({"budget": SMALL._replace(queries=-1)}, "budget.queries must be a whole number of at least 0"),
        ({"budget": SMALL._replace(pgd_steps=(10, 0))}, "budget.pgd_steps must be a whole number"),
        ({"budget": SMALL._replace(pgd_steps=10)}, "budget.pgd_steps must be a tuple of at least one number"),
        ({"budget": SMALL._replace(pgd_steps=())}, "budget.pgd_steps must be a tuple of at least one number"),
        ({"key": jax.random.split(KEY, 2)}, "one per image"),
        ({"key": 0}, "key must be one jax.random.key.seed. or one per image: got int of shape"),
        ({"radius": 4}, "4/255"),
        ({"direction": lambda s, c: jnp.sum(s)}, "direction must return one float per image"),
        ({"score_fn": lambda x: x}, "score_fn must return one float per image"),
        ({"adaptive_score_fn": lambda x: x}, "adaptive_score_fn must return one float per image"),
        ({"stochastic_score_fn": lambda key, x: jnp.sum(x)}, "stochastic_score_fn must return one float per image"),
    ],
    ids=[
        "name",
        "iterations",
        "queries",
        "steps",
        "number",
        "no steps",
        "key",
        "seed",
        "radius",
        "direction",
        "score_fn",
        "adaptive",
        "random",
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        attack(**change)
