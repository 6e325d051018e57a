"""A made set of small images and a network that compiles in a moment, for the trainings of Causal-IQA."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.config import defaults as config_lib
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import Dropout, batch_norm, linear

SCENES, LEVELS, SIZE = 6, 2, 16
DISTORTIONS = ("blur", "noise", "set/contrast")


class Small(nn.Module):
    """Means and changes of the channels, a layer, batch normalisation, dropout and a layer."""

    sort_mask: SortMaskPlacement = SortMaskPlacement()
    score_mean: float = 50.0
    score_std: float = 20.0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        parts = images, jnp.abs(jnp.diff(images, axis=1)), jnp.abs(jnp.diff(images, axis=2))
        x = jnp.concatenate([jnp.mean(part, axis=(1, 2)) for part in parts], axis=-1)
        x = nn.Dense(6, use_bias=False, name="backbone")(x)
        x = batch_norm(x, name="norm", train=train, dtype=jnp.float32, axis_name=self.axis_name)
        x = Dropout(self.dropout, self.axis_name)(nn.silu(x), train)
        return self.score_mean + self.score_std * linear(x, 1, name="head")[:, 0]


def make_dataset(name="made", *, seed=0):
    """6 scenes x 3 distortions x 2 levels, and the undistorted images, which are rated as well."""
    generator = np.random.default_rng(seed)
    columns = {column: [] for column in ("names", "references", "distortions", "levels", "mos")}
    images = []
    for scene in range(SCENES):
        base = generator.uniform(40, 215, (1, 1, 3)) + 30 * generator.standard_normal((SIZE, SIZE, 3))
        for distortion in ("", *DISTORTIONS):
            for level in range(1, LEVELS + 1) if distortion else (0,):
                changed = {
                    "": base,
                    "blur": base.mean(axis=(0, 1)) + (base - base.mean(axis=(0, 1))) / (1 + 2 * level),
                    "noise": base + 25 * level * generator.standard_normal(base.shape),
                    "set/contrast": 128 + (base - 128) / (1 + level),
                }[distortion]
                images.append(np.clip(changed, 0, 255).astype(np.uint8))
                columns["names"].append(f"{scene}_{distortion}_{level}")
                columns["references"].append(f"scene {scene}")
                columns["distortions"].append(distortion)
                columns["levels"].append(level)
                columns["mos"].append(95 - 30 * level + 3 * generator.standard_normal())
    mos = np.clip(columns.pop("mos"), 0, 100)
    return QualityDataset(name=name, images=images, mos=mos, mos_raw=mos, mos_std=np.full(len(mos), np.nan), **columns)


@pytest.fixture(scope="session")
def dataset():
    return make_dataset()


@pytest.fixture(scope="session")
def other_dataset():
    return make_dataset("other", seed=1)


@pytest.fixture
def config(monkeypatch):
    """Two meta steps of a small network."""
    monkeypatch.setitem(models.NETWORKS, "compact", dataclasses.replace(models.NETWORKS["compact"], module=Small))
    config = config_lib.default()
    config.model.name = "compact"
    config.train.crop_size = config.evaluation.crop_size = 12
    config.train.workers = 2
    config.evaluation.crops, config.evaluation.resamples, config.evaluation.batch_size = 2, 50, 8
    options = config.causal_iqa
    options.updates = ("erm", "cis")
    options.meta_steps, options.batch_size, options.smallest_subset = 2, 4, 3
    options.backbone_learning_rate = options.head_learning_rate = 1e-2
    return config
