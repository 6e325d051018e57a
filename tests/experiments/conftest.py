"""A network that compiles in a moment, for whole runs of the experiments."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest

from cprl_jax import models
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.change import NetworkChange
from cprl_jax.models.common import Dropout, batch_norm, linear


class Small(nn.Module):
    """Means and changes of the channels, a layer, batch normalisation, dropout and a layer."""

    sort_mask: SortMaskPlacement = SortMaskPlacement()
    change: NetworkChange = NetworkChange()
    score_mean: float = 50.0
    score_std: float = 20.0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        images = self.change.images(images)
        parts = images, jnp.abs(jnp.diff(images, axis=1)), jnp.abs(jnp.diff(images, axis=2))
        x = jnp.concatenate([jnp.mean(part, axis=(1, 2)) for part in parts], axis=-1)
        x = nn.Dense(6, use_bias=False, name="backbone")(x)
        x = batch_norm(x, name="norm", train=train, dtype=jnp.float32, axis_name=self.axis_name)
        x = Dropout(self.dropout, self.axis_name)(nn.silu(x), train)
        return self.score_mean + self.score_std * linear(x, 1, name="head")[:, 0]


@pytest.fixture
def small_network(monkeypatch):
    """Runs of the network 'compact' train this one."""
    monkeypatch.setitem(models.NETWORKS, "compact", dataclasses.replace(models.NETWORKS["compact"], module=Small))
