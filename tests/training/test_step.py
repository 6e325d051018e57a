"""The training step of each method: against a step written out by hand, and the same on one device and on two."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cprl_jax.config import defaults as config_lib
from cprl_jax.layers.sort_mask import SortMaskConv
from cprl_jax.losses import magnitudes
from cprl_jax.methods import METHODS
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.training.optimizers import check_frozen, make_optimizer
from cprl_jax.training.state import create_state, evaluation_variables
from cprl_jax.training.step import make_step


class Tiny(nn.Module):
    """A convolution with random masks, batch normalisation and a linear head, named as the networks of the package."""

    axis_name: str | None = None
    rate: float = 0.2

    @nn.compact
    def __call__(self, images, train=False):
        x = SortMaskConv(4, (3, 3), use_bias=False, rate=self.rate, axis_name=self.axis_name, name="backbone")(
            images, train
        )
        x = nn.BatchNorm(axis_name=self.axis_name, momentum=0.9, use_fast_variance=False, name="norm")(x, not train)
        x = jnp.mean(nn.softplus(x), axis=(1, 2))
        return 50 + 20 * nn.Dense(1, name="head")(x)[:, 0]


@pytest.fixture
def config():
    config = config_lib.default()
    config.train.batch_size = 8
    config.train.correlation_weight = 5.0
    config.train.backbone_learning_rate = config.train.head_learning_rate = 1e-2
    config.cprl.relative = True
    config.cprl.epsilon = config.at.epsilon = 8.0
    return config


def batch(seed=0):
    generator = np.random.default_rng(seed)
    return {
        "image": generator.integers(0, 256, (8, 10, 10, 3), np.uint8),
        "mos": generator.uniform(0, 100, 8).astype(np.float32),
    }


def initial(config, module):
    optimizer = make_optimizer(config.train, steps=20)
    variables = module.init(jax.random.key(1), jnp.zeros((1, 10, 10, 3)))
    averaged = config.train.ema_decay > 0
    return create_state(variables, optimizer.init(variables["params"]), averaged=averaged), optimizer


@pytest.mark.parametrize(
    "method", [pytest.param("plain", marks=pytest.mark.slow), "cprl", pytest.param("at", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("batch_norm", ["deployed", pytest.param("batch", marks=pytest.mark.slow)])
@pytest.mark.parametrize("direction_steps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_devices_give_the_losses_of_one(config, method, direction_steps, batch_norm):
    if method != "cprl" and direction_steps == 2:
        pytest.skip("only cprl has directions")
    config.cprl.direction_steps, config[method].batch_norm = direction_steps, batch_norm
    alone, shared = Tiny(), Tiny(axis_name=parallel.AXIS)
    state, optimizer = initial(config, alone)
    one = jax.jit(make_step(alone, optimizer, config, method=method))
    two = parallel.map_step(make_step(shared, optimizer, config, method=method, axis_name=parallel.AXIS))
    assert parallel.local_device_count() == 2
    state_one, state_two = state, parallel.replicate(state)
    for step in range(5):
        state_one, metrics_one = one(state_one, batch(step))
        state_two, metrics_two = two(state_two, parallel.shard(batch(step)))
        for name in metrics_one:
            np.testing.assert_allclose(metrics_two[name], metrics_one[name], rtol=2e-5, atol=1e-5, err_msg=name)


def test_the_plain_step_is_adam_on_the_mos_loss(config):
    config.train.correlation_weight = 0.0
    module = Tiny(rate=0.0)
    state, optimizer = initial(config, module)
    new, metrics = jax.jit(make_step(module, optimizer, config, method="plain"))(state, batch())

    images, mos = batch()["image"] / np.float32(255), batch()["mos"]

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        scores, _ = module.apply(variables, images, True, mutable=["batch_stats"])
        return jnp.mean(jnp.abs(scores - mos))

    value, gradients = jax.value_and_grad(loss)(state.params)
    adam = optax.adam(1e-2)
    updates, _ = adam.update(gradients, adam.init(state.params))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    expected = optax.apply_updates(state.params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), new.params, expected)


@pytest.mark.parametrize("method", ["plain", "cprl"])
def test_frozen_parameters_stay_and_the_others_move_as_they_would(config, method):
    config.train.correlation_weight = 0.0
    module = Tiny(rate=0.0)
    state, optimizer = initial(config, module)
    free, _ = jax.jit(make_step(module, optimizer, config, method=method))(state, batch())
    config.train.frozen = ("backbone.kernel",)
    config.train.weight_decay = 1.0
    state, optimizer = initial(config, module)
    held, _ = jax.jit(make_step(module, optimizer, config, method=method))(state, batch())
    np.testing.assert_array_equal(held.params["backbone"]["kernel"], state.params["backbone"]["kernel"])
    assert not np.array_equal(free.params["backbone"]["kernel"], state.params["backbone"]["kernel"])
    config.train.weight_decay = 0.0
    state, optimizer = initial(config, module)
    held, _ = jax.jit(make_step(module, optimizer, config, method=method))(state, batch())
    for name in ("norm", "head"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), held.params[name], free.params[name])


def test_frozen_parameters_that_there_are_none_of(config):
    state, _ = initial(config, Tiny())
    with pytest.raises(UserError, match=r"config.train.frozen: no parameter of this network has 'stem' in its name"):
        check_frozen(state.params, ("kernel", "stem"))
    with pytest.raises(UserError, match="holds every parameter"):
        check_frozen(state.params, ("kernel", "bias", "scale"))


def test_cprl_loss_is_the_sum_of_its_parts(config):
    module = Tiny()
    state, optimizer = initial(config, module)
    config.cprl.weight = 3.0
    _, metrics = jax.jit(make_step(module, optimizer, config, method="cprl"))(state, batch())
    np.testing.assert_allclose(metrics["loss"], metrics["mos_loss"] + 3 * metrics["invariance_loss"], rtol=1e-6)
    assert metrics["invariance_loss"] > 0


def test_warm_up_starts_from_almost_nothing(config):
    module = Tiny(rate=0.0)
    state, optimizer = initial(config, module)
    config.cprl.warmup_steps = 1000
    _, metrics = jax.jit(make_step(module, optimizer, config, method="cprl"))(state, batch())
    np.testing.assert_allclose(metrics["loss"], metrics["mos_loss"], rtol=1e-3)


def test_learning_rate_groups_and_their_schedule(config):
    config.train.backbone_learning_rate, config.train.head_learning_rate = 1e-3, 1e-1
    config.train.schedule, config.train.warmup_steps = "cosine", 4
    optimizer = make_optimizer(config.train, steps=20)
    params = {"backbone": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}}
    state, sizes = optimizer.init(params), []
    for _ in range(20):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        sizes.append([-float(updates[name]["kernel"][0]) for name in ("backbone", "head")])
    sizes = np.array(sizes)
    np.testing.assert_allclose(sizes[:, 1] / sizes[:, 0], 100, rtol=1e-4)
    np.testing.assert_allclose(sizes[:4, 0], [2.5e-4, 4.375e-4, 6.25e-4, 8.125e-4], rtol=1e-4)  # linear warm-up
    np.testing.assert_allclose(sizes[4, 0], 1e-3, rtol=1e-4)
    assert np.all(np.diff(sizes[4:, 0]) < 0)


def test_averaged_parameters_and_statistics_follow_the_decay(config):
    config.train.ema_decay = 0.9
    module = Tiny()
    state, optimizer = initial(config, module)
    new, _ = jax.jit(make_step(module, optimizer, config, method="plain"))(state, batch())
    for before, after, average in (
        (state.params["head"]["kernel"], new.params["head"]["kernel"], new.averaged["params"]["head"]["kernel"]),
        (state.batch_stats["norm"]["var"], new.batch_stats["norm"]["var"], new.averaged["batch_stats"]["norm"]["var"]),
    ):
        assert np.abs(after - before).max() > 1e-3
        np.testing.assert_allclose(average, 0.9 * before + 0.1 * after, rtol=1e-6)
    assert evaluation_variables(new) == new.averaged


def test_without_averaging_the_parameters_themselves_are_evaluated(config):
    module = Tiny()
    state, optimizer = initial(config, module)
    new, _ = jax.jit(make_step(module, optimizer, config, method="plain"))(state, batch())
    jax.tree.map(np.testing.assert_array_equal, evaluation_variables(new)["params"], new.params)


class Counting(nn.Module):
    """Adds to a variable of 'batch_stats' how many images it saw while that may change."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        seen = self.variable("batch_stats", "seen", jnp.zeros, ())
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            seen.value = seen.value + images.shape[0]
        return Tiny(self.axis_name, name="backbone")(images, train)


def test_a_method_that_does_not_train_sees_images_in_evaluation_mode_and_changes_no_more_than_it_collects(
    config, monkeypatch
):
    monkeypatch.setitem(METHODS, "at", dataclasses.replace(METHODS["plain"], name="at", trains=False))
    config.train.weight_decay, config.train.ema_decay, config.train.correlation_weight = 0.1, 0.9, 0.0
    module = Counting()
    state, optimizer = initial(config, module)
    new, metrics = jax.jit(make_step(module, optimizer, config, method="at"))(state, batch())
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    scores = module.apply(variables, batch()["image"] / np.float32(255))
    np.testing.assert_allclose(metrics["loss"], np.abs(scores - batch()["mos"]).mean(), rtol=1e-5)
    assert new.step == 1 and metrics["gradient_norm"] == 0
    for before, after in ((state.params, new.params), (state.batch_stats["backbone"], new.batch_stats["backbone"])):
        jax.tree.map(np.testing.assert_array_equal, before, after)
    assert evaluation_variables(new)["batch_stats"]["seen"] == 8


# -------------------------------------------------------------- what an intervention and an attack see of the network


class Shifted(nn.Module):
    """Batch normalisation, then a linear head: by a batch's own statistics, the sum of the scores is a constant."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(5, name="backbone")(images.reshape(images.shape[0], -1))
        x = nn.BatchNorm(axis_name=self.axis_name, momentum=0.9, use_fast_variance=False, name="norm")(x, not train)
        return 50 + 20 * nn.Dense(1, name="head")(x)[:, 0]


@pytest.mark.sampled
@pytest.mark.parametrize("method", ["cprl", "at"])
def test_interventions_see_the_statistics_of_the_deployed_model(config, method):
    module, found = Shifted(), {}
    config.cprl.alpha_law = "edge"
    for batch_norm in ("deployed", "batch"):
        config[method].batch_norm = batch_norm
        state, optimizer = initial(config, module)
        _, found[batch_norm] = jax.jit(make_step(module, optimizer, config, method=method))(state, batch())
    assert found["deployed"]["direction_agreement"] == 1
    assert found["batch"]["direction_agreement"] < 1
    if method == "cprl":
        # By the batch's own statistics the gradient of the summed scores is 0 but for rounding: its signs are chance.
        assert found["batch"]["direction_agreement"] < 0.8
        assert found["deployed"]["invariance_loss"] > 10 * found["batch"]["invariance_loss"]


@pytest.mark.sampled
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_agreement_of_directions_is_measured_where_training_is_random(config, rate):
    module = Tiny(rate=rate)
    state, optimizer = initial(config, module)
    _, metrics = jax.jit(make_step(module, optimizer, config, method="cprl"))(state, batch())
    assert (metrics["direction_agreement"] == 1) == (rate == 0), metrics


def test_running_averages_follow_the_clean_images_in_both_modes(config):
    module, after = Tiny(rate=0.0), {}
    for batch_norm in ("deployed", "batch"):
        config.cprl.batch_norm = batch_norm
        state, optimizer = initial(config, module)
        state = state.replace(step=jnp.int32(50))  # past the first steps, in which the averages move faster
        new, _ = jax.jit(make_step(module, optimizer, config, method="cprl"))(state, batch())
        after[batch_norm] = new.batch_stats
    assert np.abs(after["batch"]["norm"]["var"] - state.batch_stats["norm"]["var"]).max() > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after["deployed"], after["batch"])


# -------------------------------------------------------------- the steps of CPRL and AT, transcribed in float64


class TwoLayers(nn.Module):
    """score = 50 + 10 (tanh(x U + u) V + v)."""

    @nn.compact
    def __call__(self, images, train=False):
        hidden = jnp.tanh(nn.Dense(6, name="backbone")(images.reshape(images.shape[0], -1)))
        return 50 + 10 * nn.Dense(1, name="head")(hidden)[:, 0]


class Literal:
    """The same network in NumPy and float64, with its gradients by hand."""

    def __init__(self, params):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        self.weights = [params[layer][name] for layer in ("backbone", "head") for name in ("kernel", "bias")]

    def scores(self, x):
        hidden = np.tanh(x @ self.weights[0] + self.weights[1])
        return 50 + 10 * (hidden @ self.weights[2] + self.weights[3])[:, 0]

    def image_gradient(self, x):
        slope = 1 - np.tanh(x @ self.weights[0] + self.weights[1]) ** 2
        return 10 * (slope * self.weights[2][:, 0]) @ self.weights[0].T

    def weight_gradient(self, x, of_scores):
        """Of sum(of_scores * scores(x))."""
        hidden, slope = np.tanh(x @ self.weights[0] + self.weights[1]), 10 * of_scores[:, None]
        before = slope * self.weights[2].T * (1 - hidden**2)
        return [x.T @ before, before.sum(0), hidden.T @ slope, slope.sum(0)]


def assert_step(config, method, loss, gradients):
    module = TwoLayers()
    state, optimizer = initial(config, module)
    new, metrics = jax.jit(make_step(module, optimizer, config, method=method))(state, batch())
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(sum((g**2).sum() for g in gradients)), rtol=1e-4)
    for layer, name, gradient in zip(
        ("backbone", "backbone", "head", "head"), ("kernel", "bias") * 2, gradients, strict=True
    ):
        moved = np.asarray(new.params[layer][name], np.float64) - np.asarray(state.params[layer][name], np.float64)
        clear = np.abs(gradient) > 1e-3 * np.abs(gradient).max()  # Adam's first step has the gradient's sign
        np.testing.assert_allclose(moved[clear], -1e-2 * np.sign(gradient[clear]), rtol=1e-3)


def test_a_cprl_step_is_its_transcription(config):
    config.train.correlation_weight, config.cprl.relative, config.cprl.weight = 0.0, False, 2.5
    state, _ = initial(config, TwoLayers())
    network = Literal(state.params)
    data = batch()
    x, y = data["image"].reshape(8, -1) / 255.0, data["mos"].astype(np.float64)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(jax.random.key(0), 0), jnp.arange(8))
    alphas = np.asarray(magnitudes(jax.vmap(jax.random.fold_in, (0, None))(keys, 1), count=2), np.float64)
    delta = 8 / 255 * np.sign(network.image_gradient(x))
    clean = network.scores(x)
    loss = np.abs(clean - y).mean()
    gradients = network.weight_gradient(x, np.sign(clean - y) / 8)
    for alpha in alphas:
        moved = np.clip(x + alpha[:, None] * delta, 0, 1)
        change = network.scores(moved) - clean
        loss += 2.5 * np.abs(change).mean() / 2
        share = 2.5 * np.sign(change) / 16
        for total, plus, minus in zip(
            gradients, network.weight_gradient(moved, share), network.weight_gradient(x, share), strict=True
        ):
            total += plus - minus
    assert_step(config, "cprl", loss, gradients)


def test_a_step_of_adversarial_training_is_its_transcription(config):
    config.train.correlation_weight, config.at.weight, config.evaluation.mid = 0.0, 0.3, 40.0
    state, _ = initial(config, TwoLayers())
    network = Literal(state.params)
    data = batch()
    x, y = data["image"].reshape(8, -1) / 255.0, data["mos"].astype(np.float64)
    push = np.where(y > 40, -1.0, 1.0)[:, None]
    attacked = np.clip(x + 8 / 255 * push * np.sign(network.image_gradient(x)), 0, 1)
    loss, gradients = 0.0, [np.zeros_like(weight) for weight in network.weights]
    for images, weight in ((x, 0.7), (attacked, 0.3)):
        error = network.scores(images) - y
        loss += weight * np.abs(error).mean()
        for total, part in zip(gradients, network.weight_gradient(images, weight * np.sign(error) / 8), strict=True):
            total += part
    assert_step(config, "at", loss, gradients)


@pytest.mark.sampled
@pytest.mark.parametrize("method", [name for name in METHODS if name != "emd"])  # it needs a distribution
def test_steps_take_strict_types(config, method):
    """Traced only: where types would be promoted is known before anything is computed."""
    module = Tiny()
    optimizer = make_optimizer(config.train, steps=20)

    def one_step(images):
        variables = module.init(jax.random.key(1), jnp.zeros((1, 10, 10, 3)))
        averaged = config.train.ema_decay > 0
        state = create_state(variables, optimizer.init(variables["params"]), averaged=averaged)
        return make_step(module, optimizer, config, method=method)(state, {**batch(), "image": images})

    with jax.numpy_dtype_promotion("strict"):
        state, metrics = jax.eval_shape(one_step, jax.ShapeDtypeStruct((8, 10, 10, 3), jnp.uint8))
    assert state.step.dtype == jnp.int32 and metrics["loss"].dtype == jnp.float32
