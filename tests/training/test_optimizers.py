"""Optimisers with two learning rates: which parameters each is for, and what comes before them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cprl_jax.training.optimizers import two_rates


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_learning_rates_of_backbone_and_head(kind):
    params = {"backbone": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}, "head_norm": jnp.ones(1)}
    optimizer = two_rates(kind, backbone=1e-3, head=1e-1)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    sizes = [
        -float(updates["backbone"]["kernel"][0]),
        -float(updates["head"]["kernel"][0]),
        -float(updates["head_norm"][0]),
    ]
    np.testing.assert_allclose(sizes, [1e-3, 1e-1, 1e-1], rtol=1e-3)


def test_weight_decay_and_clipping_come_before_the_learning_rate():
    params, gradients = {"head": jnp.array([2.0])}, {"head": jnp.array([30.0])}
    rates = dict(backbone=1.0, head=0.1)
    for extra, expected in (({"weight_decay": 0.5}, 3.1), ({"clip_norm": 4.0}, 0.4)):
        optimizer = two_rates("sgd", **rates, **extra)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_allclose(optax.apply_updates(params, updates)["head"], 2 - expected, rtol=1e-5)


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="kind is 'lamb'; allowed: 'adam', 'sgd'"):
        two_rates("lamb", backbone=1.0, head=1.0)
