import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from cprl_jax import attacks


def linear(weights, images):
    return jnp.einsum("bhwc,hwc->b", images, weights)


WEIGHTS = np.random.default_rng(0).normal(size=(6, 8, 3)).astype(np.float32)
SCORE = Partial(linear, WEIGHTS)
IMAGES = np.random.default_rng(1).random((4, 6, 8, 3)).astype(np.float32)
KEY = jax.random.key(0)


def attack(score_fn=SCORE, images=IMAGES, **options):
    options = dict(radius=0.05, direction=attacks.up(), queries=20, key=KEY) | options
    return attacks.square(score_fn, images, **options)


def assert_same(first, second, tolerance=1e-5):
    for name, a, b in zip(first._fields[:-1], first[:-1], second[:-1], strict=True):
        np.testing.assert_allclose(np.ravel(a), np.ravel(b), rtol=tolerance, atol=tolerance, err_msg=name)


def test_comes_near_the_optimum_of_a_linear_score():
    best = np.clip(IMAGES + 0.05 * np.sign(WEIGHTS), 0, 1)
    gain = np.sum((best - IMAGES) * WEIGHTS, axis=(1, 2, 3))
    result = attack(queries=800)
    assert np.all(result.after - result.before > 0.8 * gain)
    np.testing.assert_allclose(result.after, SCORE(result.images), rtol=1e-5)
    np.testing.assert_allclose(result.before, SCORE(IMAGES), rtol=1e-5)


def test_sees_through_rounding_and_stopped_gradients():
    def masked(images):
        return jax.lax.stop_gradient(jnp.floor(linear(WEIGHTS, images) / 0.05))

    result = attack(masked, queries=200)
    assert np.all(result.after > result.before + 5)
    assert result.zero_gradient_fraction is None


def test_keeps_only_what_helps():
    for direction in (attacks.away(), attacks.towards(3.0)):
        result = attack(direction=direction)
        old, new = direction(result.before, result.before), direction(result.after, result.before)
        assert np.all(new >= old)
    gray = np.full((2, 4, 4, 3), 0.5, np.float32)
    result = attack(hopeless, gray)
    np.testing.assert_array_equal(result.images, gray)
    np.testing.assert_array_equal(result.after, result.before)


def hopeless(images):
    """Falls with any change of a grey image."""
    return -jnp.max(jnp.abs(images - 0.5), axis=(1, 2, 3))


def proposals(queries, batch=1, height=20, width=20, radius=0.05, score=hopeless, **options):
    """The changes of a grey image that a score function was asked about, in order."""
    asked = []

    def listening(images):
        jax.debug.callback(lambda images: asked.append(np.asarray(images)), images, ordered=True)
        return score(images)

    images = np.full((batch, height, width, 3), 0.5, np.float32)
    options = dict(radius=radius, direction=attacks.up(), queries=queries, key=KEY) | options
    result = attacks.square(listening, images, **options)
    jax.block_until_ready(result)
    jax.effects_barrier()
    return [image - 0.5 for image in asked]


def test_draws_stripes_first_and_then_shrinking_squares():
    clean, stripes, *squares = proposals(100, batch=2)
    assert len(squares) == 99 and not clean.any()
    np.testing.assert_allclose(np.abs(stripes), np.full_like(stripes, 0.05), rtol=1e-5)
    np.testing.assert_array_equal(stripes, np.broadcast_to(stripes[:, :1], stripes.shape))
    assert np.any(stripes[:, :, :-1] != stripes[:, :, 1:]) and np.any(stripes[0] != stripes[1])
    corners = []
    for index, change in enumerate(squares, start=1):
        # The published schedule: an image of 400 pixels, 5 % of them, halved at given shares of the queries.
        halved = np.searchsorted([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000], index * 100)
        side = max(1, round(np.sqrt(0.05 * 400 / 2**halved)))
        for one in change:
            rows, columns, _ = np.nonzero(one)
            assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == side
            window = one[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            np.testing.assert_allclose(np.abs(window), np.full((side, side, 3), 0.05), rtol=1e-5)
            np.testing.assert_array_equal(window, np.broadcast_to(window[:1, :1], window.shape))
            corners.append((rows.min(), columns.min()))
    assert {0, 19} <= {corner[0] for corner in corners} and {0, 19} <= {corner[1] for corner in corners}


def test_costs_one_evaluation_per_query_and_one_for_the_clean_score():
    assert len(proposals(7)) == 8


def test_whole_image_patches_and_small_images():
    for change in proposals(3, height=4, width=6, patch_fraction=1.0)[2:]:
        rows, columns, _ = np.nonzero(change[0])
        assert np.ptp(rows) + 1 <= 4 and np.ptp(columns) + 1 <= 4
    one_pixel = attack(lambda x: jnp.mean(x, axis=(1, 2, 3)), np.full((2, 1, 1, 3), 0.5, np.float32))
    np.testing.assert_allclose(one_pixel.after, [0.55, 0.55], rtol=1e-5)


def test_no_query_repeats_the_image_at_hand():
    """Once the stripes have been kept, one of the 8 proposals for a single pixel is the pixel itself."""
    clean, kept, *asked = proposals(
        30, batch=4, height=1, width=1, score=lambda x: jnp.any(x != 0.5, axis=(1, 2, 3)).astype(jnp.float32)
    )
    assert not clean.any() and all(np.all(np.any(change != kept, axis=(1, 2, 3))) for change in asked)


def test_radius_zero_gives_the_images_back_bit_for_bit():
    images = IMAGES.copy()
    images[0, 1, 1] = [-0.0, 1e-40, np.nextafter(np.float32(1), np.float32(0))]
    result = attack(images=images, radius=0)
    assert np.asarray(result.images).tobytes() == images.tobytes()
    np.testing.assert_array_equal(result.before, result.after)


def test_radius_and_range_hold_in_exact_arithmetic():
    for radius in (1 / 255, 1 / 3, np.array([0.01, 0.02, 0.1, 1.0])):
        attacked = np.asarray(attack(radius=radius).images, np.float64)
        assert np.all(np.abs(attacked - IMAGES.astype(np.float64)).max(axis=(1, 2, 3)) <= radius)
        assert attacked.min() >= 0 and attacked.max() <= 1


def test_draws_of_an_image_depend_on_its_key_only():
    keys = jax.random.split(KEY, 4)
    together = attack(key=keys)
    for i in range(4):
        alone = attack(images=IMAGES[i : i + 1], key=keys[i : i + 1])
        np.testing.assert_array_equal(together.images[i], alone.images[0])
    assert_same(together, attack(key=keys), 0)
    assert np.any(np.asarray(attack(key=jax.random.key(1)).images) != np.asarray(together.images))


@pytest.mark.parametrize("queries", [2, 20])
def test_jit_vmap_and_grad(queries):
    eager = attack(queries=queries)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    assert_same(eager, jax.jit(lambda f, x: attack(f, x, queries=queries))(SCORE, IMAGES))
    mapped = jax.vmap(lambda x, key: attack(images=x[None], key=key[None], queries=queries))(IMAGES, keys)
    assert_same(eager, mapped)
    gradient = jax.grad(lambda x: jnp.sum(attack(images=x, queries=queries).after))(IMAGES)
    np.testing.assert_array_equal(gradient, np.zeros_like(IMAGES))


@pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize("spec", [P("batch"), P()])
def test_two_devices(spec):
    keys = jax.random.split(KEY, 4)
    mesh = Mesh(np.array(jax.local_devices()[:2]), ("batch",))
    mapped = jax.shard_map(
        lambda f, x, key: attack(f, x, key=key, queries=18), mesh=mesh, in_specs=(P(), spec, spec), out_specs=spec
    )
    assert_same(attack(key=keys, queries=18), jax.jit(mapped)(SCORE, IMAGES, keys))
    if spec == P("batch"):
        halves = jax.pmap(lambda x, key: attack(images=x, key=key, queries=2), devices=jax.local_devices()[:2])(
            IMAGES.reshape(2, 2, 6, 8, 3), keys.reshape(2, 2)
        )
        assert_same(attack(key=keys, queries=2), halves)


def test_progress(capfd):
    attack(queries=3, progress=True)
    assert "square" in (bar := capfd.readouterr().err) and "3/3" in bar


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": 0}, "queries must be a whole number of at least 1"),
        ({"patch_fraction": 0}, r"patch_fraction must be in \(0, 1\], got 0"),
        ({"patch_fraction": 1.5}, r"got 1.5"),
        ({"radius": 4}, "4/255"),
        ({"key": jax.random.split(KEY, 3)}, "one per image"),
        ({"direction": lambda s, c: jnp.sum(s)}, "direction must return one float per image"),
        ({"score_fn": lambda x: x}, "score_fn must return one float per image"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        attack(**change)
