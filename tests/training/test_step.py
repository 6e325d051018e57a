"""The training step of each method: against a step written out by hand, and the same on one device and on two."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cprl_jax.config import defaults as config_lib
from cprl_jax.layers.sort_mask import SortMaskConv
from cprl_jax.runtime import parallel
from cprl_jax.training.step import create_state, evaluation_variables, make_optimizer, make_step


class Tiny(nn.Module):
    """A convolution with random masks, batch normalisation and a linear head, named as the networks of the package."""

    axis_name: str | None = None
    rate: float = 0.2

    @nn.compact
    def __call__(self, images, train=False):
        x = SortMaskConv(4, (3, 3), use_bias=False, rate=self.rate, axis_name=self.axis_name, name="backbone")(
            images, train
        )
        x = nn.BatchNorm(not train, axis_name=self.axis_name, use_fast_variance=False, name="norm")(x)
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
    return create_state(variables, optimizer), optimizer


@pytest.mark.parametrize(
    "method", [pytest.param("plain", marks=pytest.mark.slow), "cprl", pytest.param("at", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("direction_steps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_devices_give_the_losses_of_one(config, method, direction_steps):
    if method != "cprl" and direction_steps == 2:
        pytest.skip("only cprl has directions")
    config.cprl.direction_steps = direction_steps
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


def test_averaged_parameters_follow_the_decay(config):
    config.train.ema_decay = 0.9
    module = Tiny()
    state, optimizer = initial(config, module)
    new, _ = jax.jit(make_step(module, optimizer, config, method="plain"))(state, batch())
    kernel = [tree["head"]["kernel"] for tree in (state.params, new.params, evaluation_variables(new)["params"])]
    np.testing.assert_allclose(kernel[2], 0.9 * kernel[0] + 0.1 * kernel[1], rtol=1e-6)


def test_without_averaging_the_parameters_themselves_are_evaluated(config):
    module = Tiny()
    state, optimizer = initial(config, module)
    new, _ = jax.jit(make_step(module, optimizer, config, method="plain"))(state, batch())
    jax.tree.map(np.testing.assert_array_equal, evaluation_variables(new)["params"], new.params)
