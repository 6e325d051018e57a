"""Features of backbones: of which maps, of which part of an image, and whose they are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.causal_iqa.features import backbone_features, middle_square


class Trunk(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x, jnp.concatenate([2 * x, x * x], axis=-1)


class Network(nn.Module):
    trunk: bool = True

    @nn.compact
    def __call__(self, images, train=False):
        return jnp.mean((Trunk(name="backbone") if self.trunk else Trunk(name="other"))(images)[-1], axis=(1, 2, 3))


def pictures(count=5, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (8 + i % 2, 8, 3), np.uint8) for i in range(count)]


def test_the_last_maps_are_averaged_and_a_short_batch_is_filled_up():
    images = pictures()
    features = backbone_features(Network(), {}, images, image_size=8, batch_size=2)
    squares = np.stack([image[:8] for image in images]) / 255  # of 9 rows the odd one is left out at the bottom
    expected = np.concatenate([2 * squares, squares**2], axis=-1).mean(axis=(1, 2))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-5)


def test_images_are_cut_in_the_middle_and_scaled():
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = 255
    assert middle_square(image, 20).shape == (20, 20, 3) and (middle_square(image, 20) == 255).all()
    assert middle_square(image, 64).shape == (64, 64, 3)


def test_a_network_of_the_package():
    config = config_lib.default().model
    config.name = "compact"
    module = models.create(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)
    features = backbone_features(module, variables, pictures(3), image_size=16, batch_size=3)
    assert features.shape == (3, 96) and np.isfinite(features).all()


def test_a_network_without_a_backbone():
    with pytest.raises(ValueError, match="Network has no submodule 'backbone'"):
        backbone_features(Network(trunk=False), {}, pictures(1), image_size=8, batch_size=1)
