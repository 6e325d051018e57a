"""A made set of small images, for the trainings of Causal-IQA."""

import numpy as np
import pytest

from cprl_jax.config import defaults as config_lib
from cprl_jax.data.dataset import QualityDataset

SCENES, LEVELS, SIZE = 6, 2, 16
DISTORTIONS = ("blur", "noise", "set/contrast")


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
def config(small_network):
    """Two meta steps of a small network."""
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
