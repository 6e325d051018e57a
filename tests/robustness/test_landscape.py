import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax import attacks
from cprl_jax.robustness.landscape import landscape

WEIGHTS = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)


def linear(weights, images):
    return 50 + jnp.einsum("bhwc,hwc->b", images, weights)


def wave(images):
    return jnp.sum(jnp.sin(7 * images), axis=(1, 2, 3))


def image_between(lowest, highest, seed=1):
    return np.random.default_rng(seed).uniform(lowest, highest, (6, 5, 3)).astype(np.float32)


def test_of_a_linear_score_is_a_plane():
    image, key = image_between(0.2, 0.8), jax.random.key(3)
    found = landscape(Partial(linear, WEIGHTS), image, extent=4 / 255, points=5, key=key)
    sign = np.asarray(jax.random.rademacher(key, (1, 6, 5, 3), np.float32))[0]
    a, b = np.meshgrid(found.along_gradient, found.along_random, indexing="ij")
    expected = 50 + np.sum(image * WEIGHTS) + a * np.abs(WEIGHTS).sum() + b * np.sum(sign * WEIGHTS)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)
    np.testing.assert_allclose(found.along_gradient, 4 / 255 * np.array([-1, -0.5, 0, 0.5, 1]), rtol=1e-6)
    assert found.zero_gradient_fraction == 0


def test_middle_is_the_image_and_the_axis_is_fgsm():
    image = image_between(0.2, 0.8)
    for direction in (attacks.up(), attacks.down()):
        found = landscape(wave, image, extent=0.05, points=7, direction=direction, key=jax.random.key(0))
        fgsm = attacks.fgsm(wave, image[None], radius=0.05, direction=direction)
        np.testing.assert_allclose(found.scores[3, 3], wave(image[None])[0], rtol=1e-6)
        np.testing.assert_allclose(found.scores[6, 3], fgsm.after[0], rtol=1e-4)
    default = landscape(wave, image, extent=0.05, points=7, key=jax.random.key(0))
    np.testing.assert_allclose(default.scores[::-1], found.scores, rtol=1e-5)


def test_every_point_is_an_image():
    image, key = image_between(0, 1), jax.random.key(5)
    lowest = Partial(lambda images: jnp.min(images, axis=(1, 2, 3)))
    highest = Partial(lambda images: jnp.max(images, axis=(1, 2, 3)))
    assert np.min(landscape(lowest, image, extent=0.9, points=3, key=key).scores) == 0
    assert np.max(landscape(highest, image, extent=0.9, points=3, key=key).scores) == 1
    gradient, random = np.sign(np.cos(7 * image)), np.asarray(jax.random.rademacher(key, (1, 6, 5, 3)))[0]
    moved = np.clip(image - 0.9 * gradient + 0.9 * random, 0, 1)
    found = landscape(wave, image, extent=0.9, points=3, key=key)
    np.testing.assert_allclose(found.scores[0, 2], np.sin(7 * moved).sum(), rtol=1e-4)


def test_models_share_the_random_direction(getkey):
    image, key = image_between(0.2, 0.8), getkey()
    one, two = (landscape(Partial(linear, scale * WEIGHTS), image, extent=0.1, points=3, key=key) for scale in (1, 2))
    np.testing.assert_allclose(two.scores - 50, 2 * (one.scores - 50), rtol=1e-4)
    other = landscape(Partial(linear, WEIGHTS), image, extent=0.1, points=3, key=getkey())
    assert np.abs(other.scores - one.scores).max() > 0.1
    np.testing.assert_allclose(other.scores[:, 1], one.scores[:, 1], rtol=1e-6)


def test_without_a_gradient_there_is_no_axis():
    found = landscape(
        lambda images: jnp.round(10 * wave(images)) / 10,
        image_between(0.2, 0.8),
        extent=0.1,
        points=3,
        key=jax.random.key(0),
    )
    assert found.zero_gradient_fraction == 1
    np.testing.assert_array_equal(found.scores[0], found.scores[2])
    masked = landscape(
        lambda images: wave(images[:, :3]), image_between(0.2, 0.8), extent=0.1, points=3, key=jax.random.key(0)
    )
    assert masked.zero_gradient_fraction == 0.5


@pytest.mark.parametrize("points", [5, 21])
def test_under_jit_and_vmap(points):
    images = np.stack([image_between(0, 1, seed) for seed in (1, 2)])

    def one(image, key):
        return landscape(wave, image, extent=0.05, points=points, key=key)

    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(one))(images, keys)
    for i in range(2):
        for batched, alone in zip(together, one(images[i], keys[i]), strict=True):
            np.testing.assert_allclose(batched[i], alone, rtol=1e-4, atol=1e-4)


def test_is_constant_for_differentiation():
    def total(image):
        return jnp.sum(landscape(wave, image, extent=0.05, points=3, key=jax.random.key(0)).scores)

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(image_between(0, 1))), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((1, 4, 4, 3), np.float32)}, r"image must be \[height, width, 3\].*\(1, 4, 4, 3\)"),
        ({"image": np.full((4, 4, 3), 2, np.float32)}, r"must be in \[0, 1\]"),
        ({"points": 4}, "points must be odd and at least 3.*got 4"),
        ({"points": 1}, "points must be odd"),
        ({"extent": 0.0}, r"extent must be in \(0, 1\]"),
        ({"score_fn": lambda images: jnp.sum(images)}, r"score_fn must return one float per image"),
    ],
)
def test_arguments_are_checked(change, message):
    arguments = {"score_fn": wave, "image": image_between(0, 1), "extent": 0.1, "points": 3} | change
    with pytest.raises(ValueError, match=message):
        landscape(arguments.pop("score_fn"), arguments.pop("image"), **arguments, key=jax.random.key(0))
