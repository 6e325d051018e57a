import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.tree_util import Partial

from cprl_jax import attacks
from cprl_jax.attacks.ascent import as_guide, climb
from cprl_jax.attacks.gradients import as_constant, evaluate

RNG = np.random.default_rng(0)
IMAGES = (0.3 + 0.4 * RNG.random((3, 4, 5, 3))).astype(np.float32)
SIZE = IMAGES[0].size
RADIUS = 0.05
KEY = jax.random.key(0)
WEIGHTS = RNG.normal(size=IMAGES.shape[1:]).astype(np.float32)


def flat(images):
    return images.reshape(len(images), -1)


def linear(weights, images):
    return jnp.einsum("bhwc,hwc->b", images, weights)


def lowest_of(planes, offsets, images):
    """Piecewise linear and concave: the lowest of several planes."""
    return jnp.min(jnp.matmul(flat(images), planes.T, precision="highest") + offsets[None], axis=1)


def paraboloid(matrix, peaks, images):
    change = flat(images) - peaks
    return -jnp.einsum("bi,ij,bj->b", change, matrix, change, precision="highest")


LINEAR = Partial(linear, WEIGHTS)


def attack(score_fn=LINEAR, images=IMAGES, **options):
    return attacks.ascent(score_fn, images, **dict(radius=RADIUS, direction=attacks.up()) | options)


def assert_same(first, second, tolerance=1e-5):
    for name, a, b in zip(first._fields, first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def highest_of_planes(planes, offsets, image):
    """By linear programming: maximise t subject to planes (image + change) + offsets >= t."""
    count = len(planes)
    found = scipy.optimize.linprog(
        np.append(np.zeros(SIZE), -1),
        A_ub=np.c_[-planes, np.ones(count)],
        b_ub=planes @ image.ravel().astype(np.float64) + offsets,
        bounds=[(-RADIUS, RADIUS)] * SIZE + [(None, None)],
    )
    return -found.fun


def highest_of_paraboloid(matrix, peak, image):
    start = image.ravel().astype(np.float64)
    found = scipy.optimize.minimize(
        lambda x: ((x - peak) @ matrix @ (x - peak), 2 * matrix @ (x - peak)),
        start,
        jac=True,
        bounds=[(value - RADIUS, value + RADIUS) for value in start],
        options={"maxiter": 5000, "maxfun": 100_000, "ftol": 1e-15},
    )
    return -found.fun


def assert_reaches(result, highest, share=0.99):
    gain, best = np.asarray(result.after - result.before), np.asarray(highest) - result.before
    assert np.all(gain >= share * best) and np.all(gain <= 1.001 * best)


# What it finds


def test_reaches_the_maximum_of_a_linear_score():
    best = np.clip(IMAGES + RADIUS * np.sign(WEIGHTS), 0, 1)
    result = attack(iterations=3)
    np.testing.assert_allclose(result.images, best, atol=1e-6)
    np.testing.assert_allclose(result.after, LINEAR(best), atol=1e-4)


@pytest.mark.parametrize("count", [2, 12])
def test_reaches_the_maximum_of_a_piecewise_linear_score(count):
    rng = np.random.default_rng(count)
    planes, offsets = rng.normal(size=(count, SIZE)).astype(np.float32), np.zeros(count, np.float32)
    result = attack(Partial(lowest_of, planes, offsets), iterations=100, starts=2, key=KEY)
    assert_reaches(result, [highest_of_planes(planes, offsets, image) for image in IMAGES])


@pytest.mark.parametrize("condition", [1, 100])
def test_reaches_the_maximum_of_a_concave_quadratic_score(condition):
    rng = np.random.default_rng(1)
    axes, _ = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))
    matrix = (axes * np.logspace(0, -np.log10(condition), SIZE)) @ axes.T
    peaks = flat(IMAGES) + rng.uniform(-2 * RADIUS, 2 * RADIUS, size=(len(IMAGES), SIZE))
    score_fn = Partial(paraboloid, matrix.astype(np.float32), peaks.astype(np.float32))
    highest = [highest_of_paraboloid(matrix, peak, image) for peak, image in zip(peaks, IMAGES, strict=True)]
    assert_reaches(attack(score_fn, iterations=100, starts=2, key=KEY), highest)


@pytest.mark.slow
def test_the_adaptive_step_beats_fixed_steps_along_a_valley():
    """A narrow ridge: long steps jump across it, and short ones get nowhere."""
    ridge = Partial(lambda weights, x: linear(weights, x) - 4 * jnp.abs(jnp.sum(x, axis=(1, 2, 3)) - 30), WEIGHTS)
    images = np.full((2, 4, 5, 3), 0.5, np.float32)
    options = dict(radius=RADIUS, direction=attacks.up())
    found = attack(ridge, images, iterations=40, starts=2, key=KEY)
    for steps in (10, 40):
        plain = attacks.pgd(ridge, images, steps=steps, **options)
        assert np.all(found.after > plain.after)


# Its rules


def transcription(score_and_gradient, image, radius, iterations, by_sign):
    """Algorithm 1 of Croce and Hein (2020) for one image in float64, as their code runs it."""
    low, high = np.maximum(image - radius, 0), np.minimum(image + radius, 1)
    x = image.copy()
    old = x.copy()
    best, (best_value, best_gradient) = x, score_and_gradient(x)
    gradient, values, step = best_gradient, [best_value], (2 if by_sign else 0.5) * radius
    stretch, since, halved, checked = max(1, int(0.22 * iterations)), 0, False, best_value
    for index in range(iterations):
        way = np.sign(gradient) if by_sign else gradient / np.abs(gradient).mean()
        ahead = np.clip(x + step * way, low, high)
        moved = ahead if index == 0 else np.clip(x + 0.75 * (ahead - x) + 0.25 * (x - old), low, high)
        old, x = x, moved
        value, gradient = score_and_gradient(x)
        values.append(value)
        if value > best_value:
            best, best_value, best_gradient = x, value, gradient
        since += 1
        if since == stretch:
            rises = np.sum(np.diff(values[-stretch - 1 :]) > 0)
            halve = rises <= 0.75 * stretch or (not halved and best_value <= checked)
            if halve:
                step, x, old, gradient = step / 2, best, best, best_gradient
            halved, checked, since = halve, best_value, 0
            stretch = max(stretch - max(1, int(0.03 * iterations)), max(1, int(0.06 * iterations)))
    return best, best_value


@pytest.mark.parametrize("by_sign", [True, False])
def test_equals_a_literal_transcription(by_sign):
    matrix, head = np.random.default_rng(3).normal(size=(6, SIZE)), np.random.default_rng(4).normal(size=6)

    def score(x):
        return 50 + jnp.sin(2 * flat(x) @ matrix.T) @ head

    def score_and_gradient(x):
        inner = 2 * x.ravel() @ matrix.T
        return 50 + np.sin(inner) @ head, (2 * (np.cos(inner) * head) @ matrix).reshape(x.shape)

    with jax.enable_x64(True):
        images = jnp.asarray(IMAGES, np.float64)
        score_fn, up = as_constant(score), as_constant(attacks.up())
        radius = jnp.full(3, RADIUS, np.float64)
        options = dict(start=images, radius=radius, direction=up, iterations=30, by_sign=by_sign)
        result = climb(score_fn, images, evaluate(score_fn, images), **options)
        assert result.images.dtype == np.float64
    for i, image in enumerate(IMAGES.astype(np.float64)):
        best, value = transcription(score_and_gradient, image, RADIUS, 30, by_sign)
        np.testing.assert_allclose(result.images[i], best, atol=1e-9)
        np.testing.assert_allclose(result.after[i], value, atol=1e-9)


def test_the_best_iterate_is_kept_also_where_it_is_the_image_itself():
    hill = Partial(lambda top, x: -jnp.sum(jnp.abs(x - top), axis=(1, 2, 3)), IMAGES)
    result = attack(hill, IMAGES, iterations=4, starts=3, key=KEY)
    np.testing.assert_array_equal(result.images, IMAGES)
    np.testing.assert_array_equal(result.after, result.before)


def test_more_starts_are_never_worse():
    waves = Partial(lambda x: jnp.sum(jnp.sin(200 * x) + 9 * x, axis=(1, 2, 3)))
    pixels = IMAGES[:, :1, :1]
    found = [attack(waves, pixels, iterations=8, starts=starts, key=KEY).after for starts in (1, 2, 6)]
    assert np.all(found[1] >= found[0]) and np.all(found[2] >= found[1]) and np.any(found[2] > found[0])


def test_gradients_of_another_function_scores_of_this_one():
    rounded = Partial(lambda weights, x: linear(weights, jnp.round(50 * x) / 50), WEIGHTS)
    with pytest.warns(UserWarning, match="no gradient"):
        stuck = attack(rounded, iterations=3)
    np.testing.assert_array_equal(stuck.images, IMAGES)
    through = attack(rounded, iterations=3, adaptive_score_fn=LINEAR)
    np.testing.assert_allclose(through.after, rounded(through.images), rtol=1e-6)
    gain = np.sum(RADIUS * np.abs(WEIGHTS))
    assert np.all(through.after - through.before > 0.7 * gain) and np.all(through.zero_gradient_fraction == 0)
    # A function that leads downhill cannot spoil anything.
    down = attack(rounded, iterations=3, adaptive_score_fn=Partial(linear, -WEIGHTS))
    assert np.all(down.after >= down.before)


def test_both_ways_and_objectives_with_a_kink():
    result = attack(direction=attacks.away(), iterations=2)
    np.testing.assert_allclose(
        np.abs(result.after - result.before), np.full(3, RADIUS * np.abs(WEIGHTS).sum()), rtol=1e-4
    )

    def bent(x):  # at the image, both ways lead on; downwards ten times as far
        return jnp.sum(jnp.where(x > IMAGES, x - IMAGES, 10 * (x - IMAGES)), axis=(1, 2, 3))

    result = attack(bent, direction=attacks.away(), iterations=5)
    np.testing.assert_allclose(result.after, np.full(3, -10 * RADIUS * WEIGHTS.size), rtol=1e-4)
    target = LINEAR(IMAGES) + 0.3
    np.testing.assert_allclose(attack(direction=attacks.towards(target), iterations=60).after, target, atol=0.02)


# What all attacks promise


def test_radius_and_range_hold_in_exact_arithmetic():
    images = IMAGES.copy()
    images[:, 0, 0], images[:, -1, -1] = 0, 1
    for radius in (1 / 255, 1 / 3, np.array([0.01, 0.02, 1.0])):
        result = attack(images=images, radius=radius, iterations=5, starts=2, key=KEY)
        attacked = np.asarray(result.images, np.float64)
        assert np.all(np.abs(attacked - images.astype(np.float64)).max(axis=(1, 2, 3)) <= radius)
        assert attacked.min() >= 0 and attacked.max() <= 1
    still = attack(images=images, radius=0, iterations=5, starts=2, key=KEY)
    assert np.asarray(still.images).tobytes() == images.tobytes()


def test_a_list_of_radii_is_the_first_axis():
    several = attack(radius=[0.01, 0.05], iterations=5)
    assert several.images.shape == (2, *IMAGES.shape)
    assert_same(attack(radius=0.05, iterations=5), jax.tree.map(lambda leaf: leaf[1], several), 0)


def test_an_image_does_not_depend_on_its_neighbours():
    keys = jax.random.split(KEY, 3)
    waves = Partial(lambda weights, x: jnp.einsum("bhwc,hwc->b", jnp.sin(9 * x), weights), WEIGHTS)
    together = attack(waves, iterations=12, starts=2, key=keys)
    for i in (0, 2):
        alone = attack(waves, IMAGES[i : i + 1], iterations=12, starts=2, key=keys[i : i + 1])
        np.testing.assert_allclose(alone.images[0], together.images[i], atol=1e-6)


def test_a_large_score_that_is_flat_or_not_a_number_does_no_harm():
    def partly_nan(x):
        scores = linear(WEIGHTS, x)
        return jnp.where(scores > linear(WEIGHTS, IMAGES) + 1, jnp.nan, 1e30 * scores)

    result = attack(partly_nan, iterations=12)
    assert np.all(np.isfinite(result.after)) and np.all(result.after > result.before)
    gray = np.full((2, 1, 1, 3), 0.5, np.float32)
    np.testing.assert_allclose(
        attack(lambda x: jnp.mean(x, axis=(1, 2, 3)), gray, iterations=1).after, [0.55, 0.55], rtol=1e-5
    )


@pytest.mark.parametrize("iterations", [3, 20])
def test_jit_and_grad(iterations):
    options = dict(iterations=iterations, starts=2)
    compiled = jax.jit(lambda f, x, key: attack(f, x, key=key, **options))(LINEAR, IMAGES, KEY)
    assert_same(attack(key=KEY, **options), compiled)
    gradient = jax.grad(lambda x: jnp.sum(attack(images=x, key=KEY, **options).after))(IMAGES)
    np.testing.assert_array_equal(gradient, np.zeros_like(IMAGES))


def test_a_second_call_with_other_values_compiles_nothing(monkeypatch):
    traces = []

    def counted(weights, images):
        traces.append(1)
        return linear(weights, images)

    options = dict(starts=2, key=KEY)
    attack(Partial(counted, WEIGHTS), iterations=3, **options)
    count = len(traces)
    attack(Partial(counted, 2 * WEIGHTS), IMAGES + 0.01, iterations=7, radius=0.02, **options)
    assert len(traces) == count


def test_guides_see_the_number_of_the_iteration():
    seen = []

    def guide(index, images):
        jax.debug.callback(lambda index: seen.append(int(index)), index, ordered=True)
        return linear(WEIGHTS, images)

    score_fn, up, images = as_constant(LINEAR), as_constant(attacks.up()), jnp.asarray(IMAGES)
    options = dict(start=images, radius=jnp.full(3, 0.1), direction=up, iterations=3)
    before = evaluate(score_fn, images)
    first = climb(score_fn, images, before, guide=as_constant(guide), **options)
    jax.effects_barrier()
    assert seen == [0, 1, 2]
    assert_same(first, climb(score_fn, images, before, guide=as_guide(LINEAR, images), **options))


def test_progress(capfd):
    attack(iterations=3, progress=True)
    assert "ascent" in (bar := capfd.readouterr().err) and "3/3" in bar


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "iterations must be a whole number of at least 1"),
        ({"starts": 0}, "starts must be a whole number of at least 1"),
        ({"starts": 2}, "2 starts need random numbers: give key"),
        ({"starts": 2, "key": jax.random.split(KEY, 2)}, "one per image"),
        ({"radius": 4}, "4/255"),
        ({"direction": lambda s, c: jnp.sum(s)}, "direction must return one float per image"),
        ({"score_fn": lambda x: x}, "score_fn must return one float per image"),
    ],
    ids=["iterations", "starts", "no key", "keys", "radius", "direction", "score_fn"],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        attack(**change)
