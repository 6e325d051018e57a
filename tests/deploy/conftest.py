"""A small model, as a run and as a folder."""

import jax
import numpy as np
import pytest
from PIL import Image

from cprl_jax import models
from cprl_jax.config import defaults
from cprl_jax.deploy import package
from cprl_jax.training import setup

SIZE = 24


@pytest.fixture(scope="session")
def config():
    config = defaults.default()
    config.methods = ("plain", "cprl")
    config.model.name, config.model.weights = "compact", "/home/somebody/weights.npz"
    config.dataset.manual_dir = "/home/somebody/photographs"
    config.evaluation.crop_size, config.evaluation.crops, config.evaluation.batch_size = SIZE, 3, 6
    config.seed = 4
    return config


@pytest.fixture(scope="session")
def content(config):
    module = setup.create_model(config, "cprl")
    variables = jax.tree.map(np.asarray, models.initialize(module, jax.random.key(0), SIZE))
    return package.Package(config, "cprl", "cprl", module, variables, "float32")


@pytest.fixture
def folder(content, tmp_path):
    package.write(tmp_path / "model", content, "# A card\n")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def pictures():
    """Makes random pictures of one size."""

    def make(count, height, width):
        generator = np.random.default_rng(height)
        flat = generator.integers(40, 215, (count, 1, 1, 3))
        return (flat + generator.integers(-40, 40, (count, height, width, 3))).astype(np.uint8)

    return make


@pytest.fixture
def save(tmp_path):
    """Saves pictures as files."""

    def to_files(images):
        paths = [tmp_path / f"{index}.png" for index in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)
        return paths

    return to_files
