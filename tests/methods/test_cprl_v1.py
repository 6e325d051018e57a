"""CPRL's first version, as read here: its gates keep the strongest channels, and its loss is the worst found change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cprl_jax.config import defaults as config_lib
from cprl_jax.methods import METHODS, Batch, Forward, title
from cprl_jax.methods.cprl_v1 import RankedChannels, channel_gates
from cprl_jax.models.change import Place

STRENGTHS = np.float32([0.1, 3.0, 0.5, 2.0, 1.0, 0.2, 0.9, 4.0, 0.7, 1.5])


def maps(strengths=STRENGTHS, seed=0):
    """Channels of these mean absolute values."""
    x = np.random.default_rng(seed).normal(size=(2, 6, 5, len(strengths))).astype(np.float32)
    return jnp.asarray(x / np.abs(x).mean((1, 2), keepdims=True) * strengths)


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_the_strongest_channels_are_kept(keep):
    gates = np.asarray(channel_gates(maps(), keep=keep, temperature=1e-3))
    count = round(keep * len(STRENGTHS))
    for row in gates:
        assert set(np.argsort(row)[-count:]) == set(np.argsort(STRENGTHS)[-count:])
        kept = row[np.argsort(STRENGTHS)]
        assert kept[-count:].min() > 0.7 and kept[:-count].max() < 0.3 and np.all(np.diff(kept) > -1e-6)


def test_the_gates_do_not_depend_on_the_scale_or_on_the_other_images():
    options = dict(keep=0.5, temperature=0.3)
    gates = channel_gates(maps(), **options)
    np.testing.assert_allclose(channel_gates(100 * maps(), **options), gates, rtol=1e-3)
    np.testing.assert_allclose(channel_gates(maps()[:1], **options), gates[:1], rtol=1e-5)
    order = np.random.default_rng(1).permutation(len(STRENGTHS))
    np.testing.assert_allclose(channel_gates(maps()[..., order], **options), gates[:, order], rtol=1e-4)


@pytest.mark.sampled
@pytest.mark.parametrize("x", [jnp.zeros((1, 3, 3, 4)), jnp.ones((1, 3, 3, 4)), jnp.full((1, 1, 1, 1), -2.0)])
def test_gates_and_gradients_are_finite_for_channels_that_are_all_alike(x):
    def total(x):
        return jnp.sum(x * channel_gates(x, keep=0.5, temperature=0.1)[:, None, None])

    values = jax.value_and_grad(total)(x)
    assert all(np.isfinite(leaf).all() for leaf in values)


def test_other_stages_have_the_activation_of_the_network():
    change, x = RankedChannels(stages=(2,), keep=0.5, temperature=0.1), maps()
    here = dict(train=False, dtype=jnp.float32, axis_name=None)
    np.testing.assert_array_equal(change.activation(None, x, jax.nn.relu, Place("relu", 1, **here)), jax.nn.relu(x))
    gated = change.activation(None, x, jax.nn.relu, Place("relu", 2, **here))
    gates = channel_gates(jax.nn.relu(x), keep=0.5, temperature=0.1)
    np.testing.assert_allclose(gated, jax.nn.relu(x) * gates[:, None, None], rtol=1e-6)


@pytest.mark.parametrize("relative", [False, True])
def test_the_loss_has_the_largest_change_of_a_linear_score(relative):
    """Of which the largest change in the ball is epsilon times the l1 norm of its weights, and the ascent finds it."""
    weights = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
    images = np.random.default_rng(1).uniform(0.3, 0.7, (3, 4, 4, 3)).astype(np.float32)
    settings = config_lib.default().cprl_v1
    settings.weight, settings.epsilon, settings.relative = 2.0, 8.0, relative

    def scores(x):
        return jnp.sum(x * weights[None], axis=(1, 2, 3))

    forward = Forward(scores, scores, scores, True, lambda x: x, lambda scores: jnp.mean((scores - 1.0) ** 2), {})
    keys = jax.random.split(jax.random.key(0), 3)
    batch = Batch(jnp.asarray(images), jnp.ones(3), keys, step=jnp.int32(0), mid=50.0)
    loss, metrics = METHODS["cprl_v1"].loss(batch, forward, settings)
    clean = (images * weights).sum((1, 2, 3))
    largest = 8 / 255 * np.abs(weights).sum() / (np.sqrt(clean.var() + 0.01) if relative else 1.0)
    np.testing.assert_allclose(metrics["necessity_loss"], largest, rtol=0.02)
    np.testing.assert_allclose(loss, np.mean((clean - 1) ** 2) + 2 * metrics["necessity_loss"], rtol=1e-5)


@pytest.mark.slow
def test_a_step_on_the_compact_network(one_step):
    before, after, metrics = one_step("cprl_v1", direction_steps=1)
    assert metrics["necessity_loss"] > 0 and np.isfinite(metrics["direction_agreement"])
    trunks = (flatten_dict(state.params["backbone"], sep="/") for state in (before, after))
    for (name, old), new in zip(next(trunks).items(), next(trunks).values(), strict=True):
        assert "kernel" not in name or np.abs(old - new).max() > 0, name


def test_a_row_says_that_it_is_a_reading():
    expected = "CPRL, first version, a reading (0.9 of the channels, 3 steps at 2/255)"
    assert title("cprl_v1", config_lib.default().cprl_v1) == expected
