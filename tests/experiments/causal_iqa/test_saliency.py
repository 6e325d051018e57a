"""Saliency maps against closed forms, finite differences and symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax.experiments.causal_iqa.saliency import saliency

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.uniform(0, 1, (3, 6, 5, 3)).astype(np.float32)
WEIGHTS = GENERATOR.normal(size=IMAGES.shape[1:]).astype(np.float32)


def linear_score(images):
    return jnp.sum(images * WEIGHTS[None], axis=(1, 2, 3))


def energy_score(images):
    return jnp.sum(0.5 * WEIGHTS[None] * images**2, axis=(1, 2, 3))


def contrast_score(images):
    """Not linear, not the same everywhere, and differentiable at flat images."""
    deviations = images - jnp.mean(images, axis=(1, 2), keepdims=True)
    return 20 * jnp.sum(jnp.log(jnp.mean(deviations**2, axis=(1, 2)) + 0.01), axis=-1)


def test_of_a_linear_score_the_map_is_the_largest_weight_of_each_pixel():
    expected = np.broadcast_to(np.abs(WEIGHTS).max(-1), (3, 6, 5))
    np.testing.assert_array_equal(saliency(linear_score, IMAGES), expected)


def test_equals_finite_differences_in_float64():
    with jax.enable_x64(True):
        image = IMAGES[0].astype(np.float64) * 0.9 + 0.05
        step = 1e-6
        shifts = step * np.eye(image.size).reshape(-1, *image.shape)
        score = jax.jit(contrast_score)
        slopes = (score(image + shifts) - score(image - shifts)) / (2 * step)
        expected = np.abs(np.asarray(slopes).reshape(image.shape)).max(-1)
        found = saliency(contrast_score, image[None])
        assert found.dtype == np.float64
        np.testing.assert_allclose(saliency(energy_score, image[None])[0], np.abs(WEIGHTS * image).max(-1), rtol=1e-12)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6, atol=1e-6)


def test_maps_turn_with_the_image():
    found = saliency(contrast_score, IMAGES)
    np.testing.assert_allclose(saliency(contrast_score, IMAGES[:, ::-1]), found[:, ::-1], rtol=1e-5)
    np.testing.assert_allclose(saliency(contrast_score, IMAGES.swapaxes(1, 2)), found.swapaxes(1, 2), rtol=1e-5)
    np.testing.assert_allclose(saliency(contrast_score, IMAGES[..., ::-1]), found, rtol=1e-5)  # channels, too
    np.testing.assert_allclose(saliency(lambda images: -contrast_score(images), IMAGES), found, rtol=1e-5)


def test_images_are_independent_and_transforms_change_nothing():
    found = saliency(contrast_score, IMAGES)
    assert found.shape == (3, 6, 5) and found.dtype == np.float32
    np.testing.assert_allclose(saliency(contrast_score, IMAGES[2:]), found[2:], rtol=1e-6)
    mapped = jax.jit(jax.vmap(lambda image: saliency(contrast_score, image[None])[0]))(IMAGES)
    np.testing.assert_allclose(mapped, found, rtol=1e-5)


def test_flat_images_have_finite_maps():
    flat = np.stack([np.full((6, 5, 3), value, np.float32) for value in (0, 0.5, 1)])
    assert (np.asarray(saliency(contrast_score, flat)) < 1e-4).all()
    # The square root has no gradient at 0: none is shown.
    np.testing.assert_array_equal(saliency(lambda images: jnp.std(images, axis=(1, 2, 3)), flat), 0)


def test_the_map_is_constant_for_differentiation():
    gradient = jax.grad(lambda images: jnp.sum(saliency(energy_score, images)))(IMAGES)
    np.testing.assert_array_equal(gradient, 0)


def test_a_score_function_with_other_weights_compiles_nothing():
    traces = []

    def score(weights, images):
        traces.append(0)
        return jnp.sum(images * weights[None], axis=(1, 2, 3))

    saliency(Partial(score, WEIGHTS), IMAGES)
    first = len(traces)
    found = saliency(Partial(score, 2 * WEIGHTS), IMAGES)
    assert len(traces) == first
    np.testing.assert_allclose(found[0], 2 * np.abs(WEIGHTS).max(-1), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((linear_score, IMAGES[0]), "must be .batch, height, width, 3."),
        ((linear_score, 2 * IMAGES), "must be in .0, 1."),
        ((lambda images: jnp.sum(images), IMAGES), "one float per image"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        saliency(*arguments)
