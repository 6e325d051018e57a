"""Scores of files: functions of the pixels and the model alone, and those of the tables for saved attacked images."""

import jax
import numpy as np
import pytest
from PIL import Image

from cprl_jax import models, score
from cprl_jax.config import defaults as config_lib
from cprl_jax.data.combined import resize
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.evaluation.table_attacks import ATTACKS
from cprl_jax.runtime.files import write_file
from cprl_jax.training import setup

SIZE = 24


@pytest.fixture(scope="module")
def config():
    config = config_lib.default()
    config.methods = ("plain",)
    config.model.name = "compact"
    evaluation = config.evaluation
    evaluation.crop_size, evaluation.crops, evaluation.batch_size = SIZE, 3, 6
    return config


@pytest.fixture(scope="module")
def network(config):
    module = setup.create_model(config, "plain")
    return module, models.initialize(module, jax.random.key(0), SIZE)


@pytest.fixture
def scorer(config, network, tmp_path, monkeypatch):
    """Makes the function of `score.load` for a run with these changes of its configuration."""
    monkeypatch.setattr(setup, "trained_variables", lambda *arguments: network[1])

    def make(**changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        write_file(tmp_path / "run" / "config.json", config_lib.to_json(changed))
        return score.load(tmp_path / "run")

    return make


def pictures(count, height, width, seed=0):
    generator = np.random.default_rng(seed)
    flat = generator.integers(40, 215, (count, 1, 1, 3))
    return np.clip(flat + generator.integers(-40, 40, (count, height, width, 3)), 0, 255).astype(np.uint8)


def save(folder, images, names=None):
    paths = [folder / (names[i] if names else f"{i}.png") for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def dataset_of(images):
    count = len(images)
    zeros = np.zeros(count, np.float32)
    names = [f"row {i}" for i in range(count)]
    return QualityDataset("test", list(images), names, zeros, zeros, zeros, names, [""] * count, [0] * count)


def test_the_name_of_a_file_does_not_count(scorer, tmp_path):
    (image,) = pictures(1, 60, 90)
    names = ["a.png", "b.png", "kodim23.png", "ä ö.png"]
    scores = scorer()(save(tmp_path, [image] * len(names), names))
    np.testing.assert_array_equal(scores, scores[0])


@pytest.mark.parametrize("size", [0, 40])
def test_files_are_scored_like_the_images_of_the_run(scorer, config, network, tmp_path, size):
    images = pictures(3, 60, 90)
    dataset = resize(dataset_of(images), size, cache_gib=1) if size else dataset_of(images)
    module, variables = network
    crops = Crops(dataset, range(3), crops=3, crop_size=SIZE, seed=config.seed)
    expected = Scorer(module, batch_size=6).scores(variables, crops)
    found = scorer(**{"dataset.resize": size})(save(tmp_path, images))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    other = scorer(**{"dataset.resize": 60 - size})([tmp_path / "0.png"])
    assert abs(other[0] - expected[0]) > 1e-3


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0, 2.5])
def test_saved_attacked_images_have_the_scores_of_the_table(scorer, network, tmp_path, radius):
    """Crops as large as the image: what is attacked is what is saved, rounded to 8 bits inside the radius."""
    from cprl_jax.attacks import round_to_8_bit

    module, variables = network
    images, mos = pictures(4, SIZE, SIZE), np.array([20, 80, 60, 40], np.float32)
    result = Scorer(module, batch_size=6).attack(
        variables, images[:, None], mos, ATTACKS["pgd"].at(radius, steps=3), keep_images=True
    )
    rounded = round_to_8_bit(result["images"][:, 0], images / np.float32(255), radius / 255)
    paths = save(tmp_path, np.round(255 * np.asarray(rounded)).astype(np.uint8))
    np.testing.assert_allclose(scorer()(paths), result["after_8bit"], rtol=1e-5)
    clean = scorer()(save(tmp_path, images))
    np.testing.assert_allclose(clean, result["before"], rtol=1e-5)
    if radius < 1:
        np.testing.assert_allclose(result["after_8bit"], clean, rtol=1e-5)
    else:
        assert np.abs(result["after_8bit"] - clean).min() > 1e-3
    if radius == int(radius):  # then plain rounding stays inside the radius
        np.testing.assert_array_equal(np.round(255 * result["images"][:, 0]), np.round(255 * np.asarray(rounded)))


def test_the_number_of_crops_can_be_asked_for(scorer, config, network, tmp_path):
    images = pictures(1, 60, 90)
    (path,) = save(tmp_path, images)
    module, variables = network
    first = score.load(tmp_path / "run", crops=1) if scorer() else None
    crops = Crops(dataset_of(images), [0], crops=1, crop_size=SIZE, seed=config.seed)
    expected = Scorer(module, batch_size=6).scores(variables, crops)
    np.testing.assert_allclose(first([path]), expected, rtol=1e-5)
