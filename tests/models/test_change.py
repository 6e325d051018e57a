"""What a method changes in a network: every place of every network, the variables that it adds, and its randomness."""

import dataclasses

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.config import defaults as config_lib
from cprl_jax.methods import METHODS
from cprl_jax.models.change import NetworkChange
from cprl_jax.models.common import example_keys
from cprl_jax.runtime.errors import UserError
from cprl_jax.training import setup


@dataclasses.dataclass(frozen=True)
class Darker(NetworkChange):
    """Halves the images."""

    def images(self, images):
        return 0.5 * images


@dataclasses.dataclass(frozen=True)
class Zero(NetworkChange):
    """Zeros in one place."""

    place: str

    def conv_input(self, module, x, place):
        return jnp.zeros_like(x) if self.place == "conv_input" else x

    def stage_output(self, module, x, place):
        return jnp.zeros_like(x) if self.place == "stage_output" else x


@dataclasses.dataclass(frozen=True)
class Scaled(NetworkChange):
    """The activation, times a learned number."""

    def activation(self, module, x, default, place):
        return module.param(f"{place.name}_scale", nn.initializers.constant(2.0), ()) * default(x)


@dataclasses.dataclass(frozen=True)
class Noisy(NetworkChange):
    """Noise on the end of each stage, at test too."""

    draws = 3

    def stage_output(self, module, x, place):
        keys = example_keys(module, "change", x.shape[0], place.axis_name)
        return x + jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)


def score(module, variables, size, seed=0):
    images = np.random.default_rng(seed).random((2, size, size, 3), np.float32)
    return np.asarray(jax.jit(models.score_fn(module, variables))(images))


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["compact", "squeezenet", "ma19"])
def test_the_network_sees_the_changed_images_alone(name, config_model, random_variables):
    config = config_model(name, backbone="")
    plain, darker = models.create(config), models.create(config, change=Darker())
    variables, images = random_variables(plain, 64), np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    scored = jax.jit(lambda score_fn, images: score_fn(images))
    seen = scored(models.score_fn(darker, variables), images)
    np.testing.assert_allclose(seen, scored(models.score_fn(plain, variables), 0.5 * images), rtol=1e-5)


@pytest.mark.parametrize("place", ["conv_input", "stage_output"])
def test_zeros_in_every_such_place_hide_the_image(place, config_model, random_variables):
    module = models.create(config_model("squeezenet", backbone=""), change=Zero(place))
    variables = random_variables(module, 64)
    np.testing.assert_array_equal(score(module, variables, 64, seed=0), score(module, variables, 64, seed=1))


LARGE = ("dbcnn", "metaiqa", "mobilenet_v2", "nima", "paq2piq", "unique")  # their trunks take seconds to trace
REPLACEABLE = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE))
    for name in models.NETWORKS
    if name not in ("ma19", "cnniqa", "hyperiqa") and models.NETWORKS[name].fit is None
]


@pytest.mark.sampled
@pytest.mark.parametrize("name", REPLACEABLE)
def test_every_activation_of_a_trunk_can_be_replaced(name, config_model, monkeypatch):
    """Ma19 and CNNIQA have none; what is called beside the change acts on vectors, in heads. HyperIQA has ResNet's."""
    called = []
    for activation in ("relu", "relu6", "silu", "gelu", "leaky_relu"):
        monkeypatch.setattr(nn, activation, lambda x: called.append(x.ndim) or x)

    @dataclasses.dataclass(frozen=True)
    class Identity(Scaled):
        def activation(self, module, x, default, place):
            return super().activation(module, x, lambda x: x, place)

    module = models.create(config_model(name, backbone=""), change=Identity())
    variables = jax.eval_shape(lambda: models.initialize(module, jax.random.key(0), 64))
    added = [path for path in flax.traverse_util.flatten_dict(variables["params"]) if path[-1].endswith("_scale")]
    assert added and all(path[0] == "backbone" for path in added)
    assert 4 not in called


def test_a_network_without_such_a_place_is_refused(config_model):
    module = models.create(config_model("ma19", backbone=""), change=Scaled())
    with pytest.raises(UserError, match="Ma19 has no activations that can be replaced"):
        models.initialize(module, jax.random.key(0), 32)


@dataclasses.dataclass(frozen=True)
class Ended(NetworkChange):
    """Nothing, at the ends of some stages."""

    stages: tuple = ()

    def stage_output(self, module, x, place):
        return x


def test_a_stage_that_the_network_lacks_is_refused(config_model):
    config = config_model("compact", backbone="")
    models.initialize(models.create(config, change=Ended((1, 3))), jax.random.key(0), 16)
    with pytest.raises(UserError, match="name 0, 4; those of CompactScore .* are 1, 2, 3"):
        models.initialize(models.create(config, change=Ended((0, 2, 4))), jax.random.key(0), 16)


@pytest.mark.slow
def test_a_random_network_scores_by_the_mean_of_its_draws(config_model):
    module = models.create(config_model("compact", backbone=""), change=Noisy())
    variables = models.initialize(module, jax.random.key(0), 16)
    images, key = np.random.default_rng(0).random((2, 16, 16, 3), np.float32), jax.random.key(5)
    scored = jax.jit(lambda score_fn, images: score_fn(images))
    drawn = jax.jit(lambda key: module.apply(variables, images, rngs={"change": key}))
    draws = [drawn(each) for each in jax.random.split(key, 3)]
    np.testing.assert_allclose(
        scored(models.score_fn(module, variables, key=key), images), np.mean(draws, axis=0), rtol=1e-4
    )
    first, again = (scored(models.score_fn(module, variables), images) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    alone = scored(models.score_fn(module, variables), images[:1])  # an example's draws are its own
    np.testing.assert_allclose(alone, first[:1], rtol=1e-4)


def test_what_a_method_adds_is_random_and_the_rest_from_the_weights(monkeypatch, tmp_path):
    config = config_lib.default()
    config.model.name, config.model.backbone, config.train.crop_size = "compact", "", 16
    plain = setup.start_variables(config, "plain", seed=1)
    models.save_weights(tmp_path / "weights.npz", plain)
    config.model.weights = str(tmp_path / "weights.npz")
    monkeypatch.setitem(METHODS, "at", dataclasses.replace(METHODS["at"], network=lambda settings: Scaled()))
    changed = flax.traverse_util.flatten_dict(setup.start_variables(config, "at", seed=2)["params"], sep="/")
    for name, value in flax.traverse_util.flatten_dict(plain["params"], sep="/").items():
        np.testing.assert_array_equal(changed.pop(name), value)
    assert {name.rpartition("_")[2] for name in changed} == {"scale"} and len(changed) == 6
