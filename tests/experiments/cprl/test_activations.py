"""Mean activations of a trunk's channels, against a trunk whose channels are known."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.cprl import activations
from cprl_jax.models.common import global_mean
from cprl_jax.training.setup import create_model

CROPS = np.random.default_rng(0).integers(20, 200, (5, 1, 8, 6, 3), np.uint8)
MOS = np.array([10.0, 80.0, 55.0, 30.0, 95.0], np.float32)


class Trunk(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return images, jnp.concatenate([images, 2 * images[..., :1]], axis=-1)


class Brightness(nn.Module):
    """100 times the mean colour; the trunk's last map has a fourth channel, twice the red one."""

    @nn.compact
    def __call__(self, images, train=False):
        return 100 * jnp.mean(global_mean(Trunk(name="backbone")(images, train)[-1])[:, :3], axis=1)


class Headless(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return jnp.mean(images, axis=(1, 2, 3))


@pytest.fixture
def config():
    config = config_lib.default()
    config.evaluation.trust_images, config.evaluation.pgd_steps, config.evaluation.trust_radius = 5, 2, 4.0
    return config


def test_the_last_map_of_the_trunk_is_averaged_over_images_and_places():
    images = CROPS[:, 0] / np.float32(255)
    red, green, blue = images.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(activations.channel_means(Brightness(), {}, images), [red, green, blue, 2 * red], 1e-5)
    assert activations.channel_means(Headless(), {}, images).size == 0


def test_attacked_images_move_the_channels_and_the_result_is_kept(config, tmp_path, monkeypatch):
    def run(network=Brightness(), mos=MOS):  # noqa: B008
        cache = tmp_path / "activations.npz"
        return activations.activations(config, (network, {}), CROPS, mos, cache=cache)

    low = np.zeros(5, np.float32)  # all scores are pushed up: every value by the whole radius
    found = run(mos=low)
    np.testing.assert_allclose(found["attacked"] - found["clean"], np.array([1, 1, 1, 2]) * 4 / 255, rtol=1e-4)
    assert found["radius"] == 4.0
    with monkeypatch.context() as patch:
        patch.setattr(activations.attacks, "pgd", None)
        again = run(mos=low)
        np.testing.assert_array_equal(again["attacked"], found["attacked"])
        with pytest.raises(TypeError):
            run()
    assert run(network=Headless()) == {}
    config.evaluation.trust_images = 0
    assert run() == {}


@pytest.mark.sampled
@pytest.mark.parametrize("name", models.NETWORKS)
def test_of_every_network_with_a_trunk_a_late_map_is_taken(name):
    config = config_lib.default()
    config.model.name = name
    module = create_model(config, "plain")
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(images.shape)))
    last = jax.eval_shape(functools.partial(models.last_map, module), variables, images)
    if "backbone" in variables["params"]:
        assert last.ndim > 1 and last.shape[-1] >= 16 and math.prod(last.shape[1:-1]) <= 28**2
