"""Optimisers of meta-learning: the direction of the meta step, and learning rates by group."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cprl_jax.experiments.causal_iqa.optimizers import inner_optimizer, interpolation, pseudo_gradient_adam


@pytest.mark.parametrize("meta", [interpolation(0.1), interpolation(1.0), pseudo_gradient_adam(0.1)])
def test_theta_moves_towards_phi(meta):
    theta, phi = {"w": jnp.array([1.0, -2.0, 3.0])}, {"w": jnp.array([1.5, -2.1, 3.0])}
    new, _ = meta.update(theta, phi, meta.init(theta))
    np.testing.assert_array_equal(np.sign(new["w"] - theta["w"]), [1, -1, 0])


def test_adam_moves_by_its_rate_and_interpolation_by_a_share_of_the_way():
    theta, phi = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([1.5, -2.1])}
    moved = {
        name: np.asarray(meta.update(theta, phi, meta.init(theta))[0]["w"] - theta["w"])
        for name, meta in (("adam", pseudo_gradient_adam(0.01)), ("interpolation", interpolation(0.01)))
    }
    np.testing.assert_allclose(moved["adam"], [0.01, -0.01], rtol=1e-3)
    np.testing.assert_allclose(moved["interpolation"], [0.005, -0.001], rtol=1e-3)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_learning_rates_of_backbone_and_head(kind):
    params = {"backbone": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}, "head_norm": jnp.ones(1)}
    optimizer = inner_optimizer(kind, backbone_learning_rate=1e-3, head_learning_rate=1e-1)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    sizes = [
        -float(updates["backbone"]["kernel"][0]),
        -float(updates["head"]["kernel"][0]),
        -float(updates["head_norm"][0]),
    ]
    np.testing.assert_allclose(sizes, [1e-3, 1e-1, 1e-1], rtol=1e-3)


def test_weight_decay_and_clipping_come_before_the_learning_rate():
    params, gradients = {"head": jnp.array([2.0])}, {"head": jnp.array([30.0])}
    options = dict(backbone_learning_rate=1.0, head_learning_rate=0.1)
    for extra, expected in (({"weight_decay": 0.5}, 3.1), ({"clip_norm": 4.0}, 0.4)):
        optimizer = inner_optimizer("sgd", **options, **extra)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_allclose(optax.apply_updates(params, updates)["head"], 2 - expected, rtol=1e-5)


def test_options_that_are_not_allowed():
    for wrong, message in (
        (lambda: interpolation(1.5), "rate is 1.5"),
        (lambda: interpolation(0.0), "rate is 0.0"),
        (lambda: pseudo_gradient_adam(0.0), "rate is 0.0"),
        (lambda: inner_optimizer("lamb", backbone_learning_rate=1, head_learning_rate=1), "allowed: adam, sgd"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
