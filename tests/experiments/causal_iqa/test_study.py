"""What trainings share: which images give the contents of scenes, clusters that are kept, scores of whole images."""

import dataclasses

import jax
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.evaluation import scoring
from cprl_jax.experiments.causal_iqa import study as study_lib
from cprl_jax.experiments.causal_iqa.study import Study, severe, undistorted
from cprl_jax.runtime.errors import UserError


def test_undistorted_images_of_scenes(dataset):
    photograph = np.full((16, 16, 3), 7, np.uint8)
    some = dataclasses.replace(dataset, pristine={"scene 1": photograph})
    images, owner = undistorted(some, ["scene 0", "scene 1"])
    assert owner == ["scene 0", "scene 1"]
    np.testing.assert_array_equal(images[0], dataset.images[0])
    np.testing.assert_array_equal(images[1], photograph)
    bare = dataclasses.replace(some, distortions=["blur"] * len(some))
    with pytest.raises(UserError, match="no undistorted image of 2 of its 3 scenes: scene 0, scene 2; set .*=images"):
        undistorted(bare, ["scene 0", "scene 1", "scene 2"])


def test_severe_images_are_of_different_distortions_first(dataset):
    rows = np.arange(len(dataset))
    found = severe(dataset, rows, 6)
    kinds = dataset.distortions[found]
    assert len({*kinds[:4].tolist()}) == 4 and len(found) == len({*found.tolist()}) == 6
    assert found[0] == dataset.mos.argmin()
    for row, kind in zip(found[:4], kinds, strict=False):
        assert dataset.mos[row] == dataset.mos[dataset.distortions == kind].min()
    assert (np.diff(dataset.mos[found[4:]]) >= 0).all() and len(severe(dataset, rows, 0)) == 0
    assert {*severe(dataset, rows[:3], 9).tolist()} == {0, 1, 2}


def test_clusters_are_kept_until_something_else_is_asked(config, dataset, tmp_path, monkeypatch):
    rows = np.flatnonzero(dataset.references != "scene 5")
    first = Study(config, dataset, rows, folder=tmp_path)
    assert first.contents.names == tuple(f"scene {number}" for number in range(5))
    division = first.divide(rows)
    assert (division.subsets[dataset.references == "scene 5"] == -1).all() and (division.subsets[rows] >= 0).all()
    described = first.described(division)
    assert described["points"].shape == (5, 2) and sum(described["sizes"].values()) == len(rows)

    seen, features = [], study_lib.backbone_features
    monkeypatch.setattr(
        study_lib,
        "backbone_features",
        lambda images, **options: seen.append(len(images)) or features(images=images, **options),
    )
    again = Study(config, dataset, rows, folder=tmp_path)
    np.testing.assert_array_equal(again.contents.responsibilities, first.contents.responsibilities)
    assert not seen and again.stamp == first.stamp
    other = dataclasses.replace(dataset, images=[255 - image for image in dataset.images])
    assert Study(config, other, rows, folder=tmp_path).stamp != first.stamp
    assert seen == [5]  # other pixels under the same names
    config.causal_iqa.features_of = "images"
    by_image = Study(config, dataset, rows, folder=tmp_path)
    assert seen == [5, 35] and set(by_image.contents.names) == set(dataset.names[rows].tolist())


def test_scores_are_means_over_crops(config, dataset, tmp_path, monkeypatch):
    config.evaluation.crop_size, config.evaluation.crops = 16, 1  # whole images
    study = Study(config, dataset, np.arange(len(dataset)), folder=tmp_path)
    variables, rows = study.start(0), np.array([3, 30, 4])
    pixels = np.stack([dataset.images[row] for row in rows]).astype(np.float32) / 255
    expected = np.asarray(jax.jit(models.score_fn(study.module, variables))(pixels))
    np.testing.assert_allclose(study.scores(variables, study.crops(rows)), expected, atol=1e-4)
    monkeypatch.setattr(scoring, "_BLOCK_BYTES", 2 * 3 * 16**2)  # two images a block
    np.testing.assert_allclose(study.scores(variables, study.crops(rows)), expected, atol=1e-4)
    maps = np.stack(study.saliency(variables, rows[:2]))
    assert maps.shape == (2, 16, 16) and (maps >= 0).all() and maps.max() > 0
