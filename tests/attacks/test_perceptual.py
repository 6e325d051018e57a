import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax.attacks.directions import away, down, reflect, up
from cprl_jax.attacks.perceptual import PUBLISHED_MULTIPLIERS, PerceptualResult, perceptual, select_counterexample

RNG = np.random.default_rng(0)
MATRIX, HEAD = RNG.normal(size=(5, 6 * 5 * 3)) / 4, RNG.normal(size=5)


def photographs(batch=2, height=6, width=5, seed=0):
    """8-bit images with some black and white values."""
    images = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3))
    images[:, 0, 0], images[:, -1, -1] = 0, 255
    return (images / 255).astype(np.float32)


def score(matrix, head, images):
    return 5 + jnp.tanh(images.reshape(images.shape[0], -1) @ matrix.T) @ head


SCORE = Partial(score, MATRIX.astype(np.float32), HEAD.astype(np.float32))


def mse(images, references):
    return jnp.mean(jnp.square(images - references), axis=(1, 2, 3))


def chebyshev(images, references):
    return jnp.max(jnp.abs(images - references), axis=(1, 2, 3))


def zero(images, references):
    return 0 * jnp.sum(images + references, axis=(1, 2, 3))


def assert_same(first, second, tolerance=1e-6):
    for name, a, b in zip(first._fields, first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


# The algorithm


@pytest.mark.parametrize(("norm", "step_size"), [("linf", 0.003), ("l2", 0.05)])
def test_equals_a_literal_transcription_in_numpy(norm, step_size):
    """Algorithm 1 in float64, one multiplier and image after the other, from the same noisy starts."""
    multipliers, steps = [0.0, 0.02, 3.0], 12
    with jax.enable_x64(True):
        images = photographs().astype(np.float64)
        problem = {"multipliers": multipliers, "key": jax.random.key(1), "quantize": False}
        score_fn = Partial(score, MATRIX, HEAD)
        starts = np.asarray(perceptual(score_fn, images, mse, step_size=0.0, steps=1, **problem).images)
        result = perceptual(score_fn, images, mse, step_size=step_size, steps=steps, norm=norm, **problem)
        assert result.images.dtype == np.float64
    noise = np.round(255 * (starts - images), 6)
    inside = (images > 0) & (images < 1)
    assert set(np.unique(noise[:, inside])) == {-1, 0, 1}
    for m, multiplier in enumerate(multipliers):
        for b, clean in enumerate(images):
            clean_score = HEAD @ np.tanh(MATRIX @ clean.ravel())
            x = starts[m, b].copy()
            for _ in range(steps):
                hidden = np.tanh(MATRIX @ x.ravel())
                slope = ((1 - hidden**2) * HEAD) @ MATRIX
                g = -2 * (x - clean) / x.size + multiplier * 2 * (HEAD @ hidden - clean_score) * slope.reshape(x.shape)
                g = np.sign(g) if norm == "linf" else g / np.linalg.norm(g)
                x = np.clip(x + step_size * g, 0, 1)
            np.testing.assert_allclose(result.images[m, b], x, atol=1e-9)
            np.testing.assert_allclose(result.before[m, b], 5 + clean_score, atol=1e-9)
            np.testing.assert_allclose(result.after[m, b], 5 + HEAD @ np.tanh(MATRIX @ x.ravel()), atol=1e-9)
            np.testing.assert_allclose(result.distances[m, b], np.mean((x - clean) ** 2), atol=1e-12)
            np.testing.assert_allclose(result.max_change[m, b], np.abs(x - clean).max(), atol=1e-12)
    np.testing.assert_array_equal(result.after, result.after_unquantized)
    np.testing.assert_array_equal(result.distances, result.distances_unquantized)


def test_published_multipliers():
    assert len(PUBLISHED_MULTIPLIERS) == 32
    assert tuple(sorted(PUBLISHED_MULTIPLIERS)) == PUBLISHED_MULTIPLIERS
    assert PUBLISHED_MULTIPLIERS[0] == 1 / 9e6 and PUBLISHED_MULTIPLIERS[-1] == 5
    result = perceptual(SCORE, photographs(), mse, key=jax.random.key(0), steps=2)
    assert result.images.shape == (32, 2, 6, 5, 3)
    np.testing.assert_array_equal(result.multipliers, np.float32(PUBLISHED_MULTIPLIERS))


def test_larger_multipliers_trade_distance_for_change():
    result = perceptual(
        SCORE, photographs(), mse, multipliers=[0, 1e-3, 1e-2, 0.1, np.inf], direction=up(), key=jax.random.key(0)
    )
    assert np.all(np.diff(result.distances_unquantized, axis=0) > -1e-6)
    assert np.all(np.diff(result.after_unquantized, axis=0) > -0.02)
    np.testing.assert_array_equal(result.images[0], photographs())  # only the fidelity: back to the image, bit for bit


def test_infinite_multiplier_leaves_the_distance_out():
    images, key = photographs(), jax.random.key(0)
    infinite = perceptual(SCORE, images, mse, multipliers=[np.inf], key=key, steps=20, quantize=False)
    free = perceptual(SCORE, images, zero, multipliers=[1.0], key=key, steps=20, quantize=False)
    np.testing.assert_allclose(infinite.images, free.images, atol=1e-6)


def test_chebyshev_restrains_one_value_at_a_time_but_step_sizes_do_all():
    radii = np.array([1, 2, 4, 8]) / 255
    result = perceptual(
        SCORE,
        photographs(),
        chebyshev,
        multipliers=np.full(4, np.inf),
        step_size=radii / 20,
        steps=20,
        initial_noise=0.1 / 255,
        key=jax.random.key(0),
    )
    np.testing.assert_allclose(result.distances, np.repeat(radii[:, None], 2, axis=1), atol=1e-6)
    restrained = perceptual(
        SCORE, photographs(), chebyshev, multipliers=[1e-6], steps=20, key=jax.random.key(0), quantize=False
    )
    assert np.all(restrained.distances > 0.8 * 20e-3)


@pytest.mark.parametrize(
    ("direction", "sides"), [(up(), [1, 1]), (down(), [-1, -1]), (reflect([10.0, 0.0], mid=5.0), [-1, 1])]
)
def test_direction_decides_which_way(direction, sides):
    result = perceptual(
        SCORE, photographs(), mse, multipliers=[0.1, 10.0], direction=direction, steps=50, key=jax.random.key(3)
    )
    np.testing.assert_array_equal(np.sign(result.after - result.before), [sides, sides])


def test_either_direction_is_the_noise_side():
    images, key = photographs(), jax.random.key(3)
    problem = {"multipliers": [10.0, 1.0, 2.0], "key": key, "quantize": False}
    start = perceptual(SCORE, images, mse, step_size=0.0, steps=1, **problem)
    result = perceptual(SCORE, images, mse, steps=50, **problem)
    np.testing.assert_array_equal(np.sign(result.after - result.before), np.sign(start.after - start.before))
    assert_same(result, perceptual(SCORE, images, mse, steps=50, direction=away(), **problem), 0)


# Rounding


def test_candidates_are_8_bit_images_exactly():
    result = perceptual(SCORE, photographs(), mse, multipliers=[0.0, 0.1, 1.0], steps=20, key=jax.random.key(0))
    levels = np.round(255 * np.asarray(result.images)).astype(np.uint8)
    np.testing.assert_array_equal(result.images, levels.astype(np.float32) / np.float32(255))
    flat = np.asarray(result.images).reshape(6, 6, 5, 3)
    np.testing.assert_allclose(np.ravel(result.after), SCORE(flat), rtol=1e-5)
    originals = np.concatenate([photographs()] * 3)
    np.testing.assert_allclose(np.ravel(result.distances), mse(flat, originals), rtol=1e-5, atol=1e-9)
    assert np.any(result.after != result.after_unquantized)


@pytest.mark.slow
def test_halves_round_to_even_and_other_images_are_rounded_too():
    images = np.full((1, 2, 2, 3), [0.5 / 255, 127.5 / 255, 2.5 / 255], np.float32)
    result = perceptual(
        SCORE_MEAN, images, mse, multipliers=[0.0], steps=1, step_size=0.0, initial_noise=0.0, key=jax.random.key(0)
    )
    np.testing.assert_allclose(255 * np.asarray(result.images)[0, 0, 0, 0], [0, 128, 2], atol=1e-4)
    assert result.max_change[0, 0] > 0


SCORE_MEAN = Partial(lambda images: jnp.mean(images, axis=(1, 2, 3)))


@pytest.mark.slow
def test_euclidean_steps_as_printed_do_not_survive_rounding():
    images = photographs(1, 64, 64) * np.float32(0.5) + np.float32(0.25)
    images = np.round(255 * images) / np.float32(255)
    problem = {"multipliers": [np.inf], "key": jax.random.key(0)}
    printed = perceptual(SCORE_MEAN, images, mse, norm="l2", steps=200, step_size=1e-3, **problem)
    noise = perceptual(SCORE_MEAN, images, mse, steps=1, step_size=0.0, **problem)
    assert np.mean(np.asarray(printed.images) == np.asarray(noise.images)) > 0.999
    assert np.max(np.abs(printed.after_unquantized - noise.after)) > 1e-3
    signs = perceptual(SCORE_MEAN, images, mse, steps=200, step_size=1e-3, **problem)
    assert np.all(np.abs(signs.after - signs.before) > 0.1)


# How it is called


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "at_once"), [(1, 3), (2, 4), (2, 100)])  # the first fills up its last chunk
def test_chunks_change_nothing(batch, at_once):
    images = photographs(batch)
    options = {"multipliers": np.geomspace(0.01, 10, 7), "steps": 5, "key": jax.random.key(0)}
    together = perceptual(SCORE, images, mse, **options)
    assert_same(together, perceptual(SCORE, images, mse, at_once=at_once, **options))


@pytest.mark.slow
def test_a_candidate_does_not_depend_on_the_others():
    images, key = photographs(), jax.random.key(0)
    all_of_them = perceptual(SCORE, images, mse, multipliers=[0.01, 0.3, 5.0], steps=5, key=key)
    first = perceptual(SCORE, images[:1], mse, multipliers=[0.01, 0.3], steps=5, key=key)
    np.testing.assert_allclose(all_of_them.images[:2, :1], first.images, atol=1e-6)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(2))
    second = perceptual(SCORE, images[1:], mse, multipliers=[0.01], steps=5, key=keys[1:])
    np.testing.assert_allclose(all_of_them.images[:1, 1:], second.images, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "at_once"), [(4, None), (4, 2), (20, None)])
def test_jit_and_vmap_give_the_same(steps, at_once):
    images, multipliers = photographs(), jnp.array([0.0, 0.01, jnp.inf])

    def attack(score_fn, images, multipliers):
        return perceptual(
            score_fn, images, mse, multipliers=multipliers, steps=steps, at_once=at_once, key=jax.random.key(0)
        )

    eager = attack(SCORE, images, multipliers)
    assert_same(eager, jax.jit(attack)(SCORE, images, multipliers), 1e-5)
    mapped = jax.jit(jax.vmap(attack, in_axes=(None, 0, None)))(SCORE, np.stack([images, images[::-1]]), multipliers)
    assert_same(eager, jax.tree.map(lambda leaf: leaf[0], mapped), 1e-5)


def test_result_is_a_constant_and_compiles_once():
    traces = []

    def counted(weight, images):
        traces.append(1)
        return weight * jnp.mean(images, axis=(1, 2, 3))

    images = photographs()
    for weight in (1.0, 2.0):
        score_fn = Partial(counted, jnp.float32(weight))
        perceptual(score_fn, images, mse, multipliers=[0.1, weight], step_size=0.001, steps=3, key=jax.random.key(0))
    assert len(traces) == 3  # the clean scores, the step, the scores of the candidates

    def total(images):
        result = perceptual(SCORE_MEAN, images, mse, multipliers=[0.1, 1.0], steps=3, key=jax.random.key(0))
        return sum(jnp.sum(leaf) for leaf in result)

    np.testing.assert_array_equal(jax.grad(total)(images), np.zeros_like(images))


def test_constant_score_is_reported_although_the_distance_has_a_gradient():
    images = photographs()
    with pytest.warns(UserWarning, match="no gradient"):
        result = perceptual(
            lambda x: jnp.zeros(x.shape[0]) + 5, images, mse, multipliers=[0.0, 1.0, np.inf], key=jax.random.key(0)
        )
    np.testing.assert_array_equal(result.zero_gradient_fraction, np.ones((3, 2)))
    np.testing.assert_array_equal(result.after, np.full((3, 2), 5))


def test_gradients_that_are_not_numbers_do_not_spoil_images():
    def broken(images):
        return jnp.sum(images, axis=(1, 2, 3)) + jnp.sum(jnp.sqrt(0.0 * images[:, :2]), axis=(1, 2, 3))

    def broken_distance(images, references):  # infinite slope at equal values
        return jnp.sum(jnp.sqrt(jnp.abs(images - references)), axis=(1, 2, 3))

    for norm in ("linf", "l2"):
        result = perceptual(
            broken, photographs(), broken_distance, multipliers=[0.1, np.inf], steps=3, norm=norm, key=jax.random.key(0)
        )
        assert np.all(np.isfinite(result.images)) and np.all(np.isfinite(result.after))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((6, 5, 3), np.float32)}, "batch, height, width"),
        ({"multipliers": []}, r"multipliers must be a list of at least one number, got shape \(0,\)"),
        ({"multipliers": 3.0}, r"multipliers must be a list.*shape \(\)"),
        ({"multipliers": [-1.0]}, "multipliers must be at least 0"),
        ({"multipliers": [np.nan]}, "multipliers must be at least 0"),
        ({"step_size": [0.1, 0.2, 0.3]}, r"one number or one for each of 2 multipliers, got shape \(3,\)"),
        ({"step_size": -0.1}, "step_size must be finite and at least 0"),
        ({"step_size": np.inf}, "step_size must be finite"),
        ({"norm": "l1"}, "norm must be 'linf' or 'l2', got 'l1'"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"at_once": 0}, "at_once must be a whole number"),
        ({"initial_noise": 1.5}, "initial_noise"),
        ({"distance": lambda x, y: jnp.mean(x - y)}, r"distance must return one float per image.*shape \(\)"),
        ({"score_fn": lambda x: x}, "score_fn must return one float per image"),
        ({"direction": lambda s, c: jnp.sum(s)}, "direction must return one float per image"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "key must be one"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {
        "score_fn": SCORE_MEAN,
        "images": photographs(),
        "distance": mse,
        "multipliers": [0.1, 1.0],
        "key": jax.random.key(0),
    } | change
    with pytest.raises(ValueError, match=message):
        perceptual(arguments.pop("score_fn"), arguments.pop("images"), arguments.pop("distance"), **arguments)


# Which candidate is the counterexample


def random_result(seed=0, count=5, batch=4):
    rng = np.random.default_rng(seed)
    table = {name: rng.random((count, batch)).astype(np.float32) for name in PerceptualResult._fields}
    table["images"] = rng.random((count, batch, 2, 2, 3)).astype(np.float32)
    return PerceptualResult(**table)._replace(multipliers=np.arange(count, dtype=np.float32))


@pytest.mark.parametrize("threshold", [0.5, [0.1, 0.9, 0.5, 0.0], np.inf])
def test_selection_equals_a_search_by_hand(threshold):
    result = random_result()
    verdicts = np.random.default_rng(1).random((5, 4)) < 0.6
    for imperceptible in (None, verdicts):
        picked = select_counterexample(result, threshold, imperceptible=imperceptible)
        for b, limit in enumerate(np.broadcast_to(threshold, 4)):
            allowed = [
                m for m in range(5) if result.distances[m, b] <= limit and (imperceptible is None or verdicts[m, b])
            ]
            best = max(allowed, key=lambda m, b=b: abs(result.after[m, b] - result.before[m, b]), default=None)
            assert picked.found[b] == (best is not None)
            best = np.argmin(result.distances[:, b]) if best is None else best
            assert picked.candidates[b] == best
            np.testing.assert_array_equal(picked.images[b], result.images[best, b])
            for name in ("before", "after", "distances"):
                assert getattr(picked, name)[b] == getattr(result, name)[best, b]


def test_selection_under_vmap_and_with_scores_that_are_not_numbers():
    results = jax.tree.map(lambda *leaves: np.stack(leaves), random_result(0), random_result(1))
    mapped = jax.jit(jax.vmap(select_counterexample, in_axes=(0, None)))(results, 0.5)
    alone = select_counterexample(random_result(1), 0.5)
    assert_same(alone, jax.tree.map(lambda leaf: leaf[1], mapped), 0)
    result = random_result()
    result.after[0] = np.nan
    assert np.all(select_counterexample(result, np.inf).candidates > 0)


@pytest.mark.parametrize(
    ("threshold", "imperceptible", "message"),
    [
        (np.nan, None, "threshold must be numbers, got nan"),
        ([0.1, 0.2], None, r"threshold must be one number or one per image: got shape \(2,\) for 4 images"),
        (0.1, np.ones((4, 5), bool), r"bool of shape \(5, 4\)"),
        (0.1, np.ones((5, 4)), "bool of shape"),
    ],
)
def test_mistakes_in_selection_are_named(threshold, imperceptible, message):
    with pytest.raises(ValueError, match=message):
        select_counterexample(random_result(), threshold, imperceptible=imperceptible)
