"""MeanSparse: its gate against the published rule, its statistics, its sweep, and what it leaves as it was."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.config import defaults as config_lib
from cprl_jax.methods import METHODS, meansparse, title
from cprl_jax.methods.meansparse import MeanSparse, Sparsified
from cprl_jax.training import setup
from cprl_jax.training.optimizers import make_optimizer
from cprl_jax.training.state import create_state, evaluation_variables
from cprl_jax.training.step import make_step

METHOD = METHODS["meansparse"]


def maps(seed, batch=3):
    scales = np.array([0.1, 1.0, 5.0, 0.0], np.float32)
    values = np.random.default_rng(seed).normal(size=(batch, 5, 6, 4)) * scales + np.arange(4)
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def collected():
    """A gate after two batches."""
    gate = Sparsified()
    variables = gate.init(jax.random.key(0), maps(0))
    for seed in (0, 1):
        _, variables = gate.apply(variables, maps(seed), mutable=["batch_stats"])
    return gate, variables


def test_the_statistics_are_those_of_all_batches_together(collected):
    stats, together = collected[1]["batch_stats"], np.concatenate([maps(0), maps(1)]).reshape(-1, 4)
    np.testing.assert_allclose(stats["mean"], together.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["variance"], together.var(0), rtol=1e-4, atol=1e-6)
    assert stats["count"] == 2


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("straight_through", [False, True])
def test_values_near_the_mean_become_the_mean(collected, threshold, straight_through):
    gate, stats = Sparsified(straight_through), jax.tree.map(np.asarray, dict(collected[1]["batch_stats"]))
    variables, x = {"batch_stats": stats | {"threshold": jnp.float32(threshold)}}, maps(2)
    near = np.abs(x - stats["mean"]) < threshold * np.sqrt(stats["variance"])
    values = gate.apply(variables, x)
    np.testing.assert_allclose(values, np.where(near, stats["mean"], x), rtol=1e-6, atol=1e-6)
    if threshold == 0:
        np.testing.assert_array_equal(values, x)
    gradient = jax.grad(lambda x: gate.apply(variables, x).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, np.ones_like(x) if straight_through else np.where(near, 0.0, 1.0))


@pytest.fixture(scope="module")
def config():
    config = config_lib.default()
    config.model.name, config.train.crop_size, config.train.weight_decay = "compact", 16, 0.1
    return config


@jax.jit
def value_and_gradient(score_fn, images):
    return jax.value_and_grad(lambda x: score_fn(x).sum())(images)


@pytest.fixture(scope="module")
def trained(config):
    """Variables of the plain network, and those of the method after two steps from them, without a threshold."""
    plain = setup.start_variables(config, "plain", seed=0)
    module, optimizer = setup.create_model(config, "meansparse"), make_optimizer(config.train, steps=2)
    shapes = jax.eval_shape(lambda: models.initialize(module, jax.random.key(0), 16))
    variables = setup.with_values_of(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), plain)
    state = create_state(variables, optimizer.init(variables["params"]))
    step = jax.jit(make_step(module, optimizer, config, method="meansparse"))
    for seed in (0, 1):
        images = np.random.default_rng(seed).integers(0, 256, (4, 16, 16, 3), np.uint8)
        state, metrics = step(state, {"image": images, "mos": np.float32([10, 30, 60, 90])})
        assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] == 0
    return module, plain, evaluation_variables(state)


def test_nothing_of_the_network_changes_but_the_statistics(trained):
    module, plain, variables = trained
    before, after = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (plain, variables))
    for name, value in before.items():
        np.testing.assert_array_equal(after.pop(name), value, err_msg=name)
    assert len(after) == 6 * 4 and all("_meansparse/" in name for name in after)
    assert all(value == 2 for name, value in after.items() if name.endswith("count"))


@pytest.mark.slow
def test_it_is_the_plain_network_without_a_threshold_and_another_one_with_it(trained, config):
    module, plain, variables = trained
    images = np.random.default_rng(5).random((2, 16, 16, 3), np.float32)
    gated = meansparse.with_threshold(variables, 0.5)
    expected, without, found, adaptive = (
        value_and_gradient(score_fn, images)
        for score_fn in (
            models.score_fn(setup.create_model(config, "plain"), plain),
            models.score_fn(module, variables),
            models.score_fn(module, gated),
            METHOD.adaptive(module, gated),
        )
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), without, expected)
    assert np.abs(found[0] - expected[0]) > 1e-3
    np.testing.assert_allclose(adaptive[0], found[0], rtol=1e-5)
    assert np.isfinite(found[1]).all() and np.abs(found[1] - adaptive[1]).max() > 1e-4


@pytest.mark.parametrize(("tolerance", "threshold"), [(0.0, 0.1), (0.05, 0.3), (1.0, 0.4), (-1.0, 0.0)])
def test_the_sweep_takes_the_last_threshold_before_the_ranking_suffers(tolerance, threshold):
    variables = {"batch_stats": {"relu_meansparse": {"threshold": jnp.zeros(())}, "other": {"threshold": jnp.ones(())}}}
    srcc = {0.0: 0.8, 0.1: 0.81, 0.2: 0.77, 0.3: 0.75, 0.4: 0.5}

    def measure(variables):
        assert variables["batch_stats"]["other"]["threshold"] == 1
        return srcc[round(float(variables["batch_stats"]["relu_meansparse"]["threshold"]), 2)]

    settings = ml_collections.ConfigDict({"thresholds": (0.4, 0.2, 0.1, 0.3), "tolerance": tolerance})
    chosen, numbers = meansparse.sweep(variables, measure, settings)
    assert numbers == {"threshold": threshold, "srcc_without": 0.8}
    np.testing.assert_allclose(chosen["batch_stats"]["relu_meansparse"]["threshold"], threshold)


def test_a_row_says_what_ran():
    assert (
        title("meansparse", config_lib.default().meansparse) == "MeanSparse (at most 0.01 of clean SRCC, after plain)"
    )
    assert dataclasses.replace(MeanSparse()) == MeanSparse()  # equal changes share compiled code
