"""Competition of neighbouring channels: who wins how often, what is left, and whose chance it is."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cprl_jax import methods, models
from cprl_jax.config import defaults as config_lib
from cprl_jax.methods import METHODS
from cprl_jax.methods.local_winner_takes_all import WinnerTakesAll, compete
from cprl_jax.models.change import Place
from cprl_jax.training import setup


class Activation(nn.Module):
    """One place of an activation."""

    change: WinnerTakesAll = WinnerTakesAll()
    stage: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        place = Place("relu", self.stage, train, x.dtype, self.axis_name)
        return self.change.activation(self, x, nn.relu, place)


def applied(x, key, *, train=False, **options):
    return Activation(**options).apply({}, x, train, rngs={"change": key})


def test_a_soft_sample_is_gumbel_softmax_in_torch(getkey):
    x = np.asarray(jax.random.normal(getkey(), (2, 3, 4, 6)), np.float64)
    gumbel = np.asarray(jax.random.gumbel(getkey(), (2, 3, 4, 3, 2)), np.float64)
    ours = compete(jnp.float32(x), jnp.float32(gumbel[..., 0] - gumbel[..., 1]), 0.67)
    paired = torch.tensor(x).reshape(2, 3, 4, 3, 2)
    theirs = paired * torch.softmax((paired + torch.tensor(gumbel)) / 0.67, dim=-1)
    np.testing.assert_allclose(ours, theirs.reshape(2, 3, 4, 6), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("values", [(1.0, 1.0), (2.0, 0.5), (-1.0, 0.25)], ids=str)
def test_a_channel_wins_as_often_as_the_softmax_says(getkey, values):
    count = 40_000
    won = applied(jnp.broadcast_to(jnp.array(values), (1, 200, count // 200, 2)), getkey())
    share = np.mean(np.asarray(won[..., 0]) / values[0] > 0.5)
    expected = np.exp(values[0]) / np.exp(values).sum()
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_the_shares_of_a_pair_add_up_and_a_low_temperature_leaves_one(getkey):
    x = jax.random.uniform(getkey(), (2, 20, 20, 6), minval=0.5, maxval=2.0)
    for temperature, soft in ((0.01, (0.0, 0.05)), (0.67, (0.5, 1.0)), (1e4, (1.0, 1.0))):
        shares = np.asarray(applied(x, getkey(), change=WinnerTakesAll(test_temperature=temperature)) / x)
        assert np.all((shares >= 0) & (shares <= 1 + 1e-6))
        np.testing.assert_allclose(shares[..., ::2] + shares[..., 1::2], 1.0, rtol=1e-5)
        between = np.mean((shares > 0.02) & (shares < 0.98))
        assert soft[0] <= between <= soft[1], (temperature, between)
    np.testing.assert_allclose(shares, 0.5, atol=1e-3)


@pytest.mark.sampled
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_the_last_of_an_odd_number_of_channels_stays(getkey, channels):
    x = jax.random.normal(getkey(), (2, 5, 4, channels))
    won = applied(x, getkey())
    np.testing.assert_array_equal(won[..., -1], x[..., -1])
    assert channels == 1 or not np.array_equal(won[..., :-1], x[..., :-1])


def test_training_and_test_have_their_temperatures(getkey):
    x, key = jax.random.normal(getkey(), (2, 5, 4, 6)), getkey()
    values = [applied(x, key, train=train, change=WinnerTakesAll()) for train in (True, False)]
    expected = [
        applied(x, key, train=True, change=WinnerTakesAll(temperature=0.67, test_temperature=9.0)),
        applied(x, key, train=False, change=WinnerTakesAll(temperature=9.0, test_temperature=0.01)),
    ]
    for found, wanted, other in zip(values, expected, expected[::-1], strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert not np.allclose(found, other)


def test_in_front_of_an_activation_this_stays_and_the_stem_does_not_compete(getkey):
    x, key = jax.random.normal(getkey(), (2, 5, 4, 6)), getkey()
    change = WinnerTakesAll(replaces=False)
    np.testing.assert_array_equal(applied(x, key, change=change), nn.relu(applied(x, key)))
    np.testing.assert_array_equal(
        Activation(change=change, stage=0).apply({}, x), nn.relu(x)
    )  # no random numbers either


def test_in_training_the_noise_of_an_example_is_its_own_on_any_device(getkey):
    x, key = jnp.repeat(jax.random.normal(getkey(), (1, 5, 4, 6)), 4, axis=0), getkey()
    together = applied(x, key, train=True)
    assert not any(np.allclose(together[i], together[j]) for i in range(4) for j in range(i))
    np.testing.assert_allclose(applied(x[:2], key, train=True), together[:2], rtol=1e-6)
    on_two = jax.vmap(lambda x: applied(x, key, train=True, axis_name="devices"), axis_name="devices")
    np.testing.assert_allclose(on_two(x.reshape(2, 2, 5, 4, 6)).reshape(x.shape), together, rtol=1e-6)


def test_at_test_the_value_of_an_example_depends_on_nothing_but_it(getkey):
    x, key = jax.random.normal(getkey(), (4, 5, 4, 6)), getkey()
    together = applied(x, key)
    np.testing.assert_allclose(applied(x[2:3], key), together[2:3], rtol=1e-6)
    on_two = jax.vmap(lambda x: applied(x, key, axis_name="devices"), axis_name="devices")
    np.testing.assert_allclose(on_two(x.reshape(2, 2, 5, 4, 6)).reshape(x.shape), together, rtol=1e-6)
    assert not np.allclose(applied(x, getkey()), together)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_finite_where_values_tie_and_where_they_are_large(getkey, dtype):
    x, key = jnp.array([[[[0.0, 0.0, 1e4, -1e4, 3.0, 3.0]]]], dtype), getkey()
    with jax.numpy_dtype_promotion("strict"):
        value, gradient = jax.value_and_grad(lambda x: jnp.sum(applied(x, key)))(x)
    assert np.isfinite(value) and gradient.dtype == x.dtype and np.all(np.isfinite(gradient.astype(np.float32)))


@pytest.fixture(scope="module")
def network():
    """(module, variables, images) of the compact network."""
    config = config_lib.default()
    config.model.name, config.model.backbone, config.lwta.draws = "compact", "", 3
    module = setup.create_model(config, "lwta")
    variables = models.initialize(module, jax.random.key(0), 16)
    return module, variables, np.random.default_rng(0).random((2, 16, 16, 3), np.float32)


def test_a_score_is_a_repeatable_mean_of_draws(network):
    module, variables, images = network
    score = jax.jit(lambda key, images: models.score_fn(module, variables, key=key)(images))
    scores = score(jax.random.key(0), images)
    np.testing.assert_array_equal(score(jax.random.key(0), images), scores)
    assert not np.allclose(score(jax.random.key(1), images), scores, rtol=1e-3)


def test_the_adaptive_score_is_the_mean_of_more_draws_at_the_temperature_of_training(network):
    module, variables, _ = network
    adaptive = METHODS["lwta"].adaptive(module, variables)
    at_training = module.clone(change=dataclasses.replace(module.change, test_temperature=0.67, draws=12))
    expected = models.score_fn(at_training, variables, masks="straight_through", key=adaptive.args[1])
    assert adaptive.func is expected.func  # compiled functions of equal networks are shared
    assert adaptive.args[1] != models.score_fn(module, variables).args[1]  # other draws than those that judge


@pytest.mark.slow
def test_a_step_on_a_network(one_step):
    one_step("lwta")


def test_its_network_is_what_the_settings_say():
    config = config_lib.default()
    config.lwta.update({"place": "before", "temperature": 0.5, "test_temperature": 0.02, "draws": 9})
    change = METHODS["lwta"].network(config.lwta)
    assert change == WinnerTakesAll(replaces=False, temperature=0.5, test_temperature=0.02, draws=9)


def test_its_row_names_the_draws_the_place_and_the_attack():
    config = config_lib.default()
    assert methods.title("lwta", config.lwta) == "stochastic winner-takes-all (mean of 4 draws, clean images alone)"
    config.lwta.update({"place": "before", "draws": 1, "attack_steps": 3})
    parts = "in front of activations, one draw, PGD of 3 steps at 2/255"
    assert methods.title("lwta", config.lwta) == f"stochastic winner-takes-all ({parts})"
