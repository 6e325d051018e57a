"""The perceptual attack as a job: what it leaves, that it resumes, its numbers against hand-made ones, user errors."""

import csv
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from cprl_jax.attacks.perceptual import PUBLISHED_MULTIPLIERS
from cprl_jax.config import checks as config_checks
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.perceptual import experiment, inputs
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import file_name

IMAGES = 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A random Ma19, saved."""
    import jax

    from cprl_jax import models

    config_model = config_lib.default().model
    config_model.name = "ma19"
    module = models.create(config_model)
    path = tmp_path_factory.mktemp("weights") / "ma19.npz"
    models.save_weights(path, models.initialize(module, jax.random.key(0), 24))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images of 24x32 pixels, with labels."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((32, 24), Image.Resampling.BICUBIC).save(folder / f"image {number}.png")
    (folder / "mos.csv").write_text("image,mos\n" + "".join(f"image {n}.png,{20 + 30 * n}\n" for n in range(IMAGES)))
    return folder


def tiny(weights, folder):
    config = config_lib.default()
    config.job = "perceptual_attack"
    options = config.perceptual
    options.models, options.ma19_weights = ("ma19",), str(weights)
    options.images, options.labels = str(folder), str(folder / "mos.csv")
    options.height, options.width = 24, 32
    options.multipliers, options.steps = 2, 3
    options.thresholds.chebyshev, options.thresholds.ssim = 9.0, 0.5
    options.examples = 1
    return config


@pytest.fixture
def config(weights, folder):
    return tiny(weights, folder)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(weights, folder, tmp_path_factory):
    """A finished run, which tests only read."""
    config = tiny(weights, folder)
    workdir = tmp_path_factory.mktemp("run") / "attack"
    config_checks.validate(config)
    experiment.run(config, workdir)
    return workdir


def test_a_run_leaves_everything_that_it_promises(finished):
    for name in ("config.json", "report/report.html", "report/tables.md", "report/candidates.csv", "report/intra.csv"):
        assert (finished / name).stat().st_size > 0, name
    assert len(list((finished / "cells").rglob("*.npz"))) == 2 * IMAGES
    candidates = rows(finished / "report" / "candidates.csv")
    assert len(candidates) == 2 * IMAGES * 2
    assert all(row["imperceptible"] == "" for row in candidates)
    assert (finished / "report" / "transfer.csv").exists()


def test_the_originals_are_kept_as_they_were_attacked(finished, config):
    pictures = inputs.read_pictures(config)
    for picture in pictures:
        path = finished / "originals" / f"{file_name(picture.name)}.png"
        np.testing.assert_array_equal(np.array(Image.open(path)), picture.pixels)
    assert len(list((finished / "originals").iterdir())) == len(pictures)


def test_the_candidates_are_what_the_attack_gives(finished, config):
    """Scores, distances and SSIM of a cell, recomputed from its 8-bit images."""
    from skimage.metrics import structural_similarity

    from cprl_jax.experiments.perceptual.inputs import read_pictures, read_targets

    (target,) = read_targets(config)
    for row in rows(finished / "report" / "candidates.csv"):
        picture = next(p for p in read_pictures(config) if p.name == row["image"])
        with np.load(finished / row["file"], allow_pickle=False) as file:
            candidate = file["images"][int(row["candidate"])]
        assert candidate.shape == picture.pixels.shape
        change = np.abs(candidate.astype(int) - picture.pixels).max()
        assert change == round(float(row["max_change"]))
        scores = target.score_fn(np.stack([picture.pixels, candidate]).astype(np.float32) / np.float32(255))
        np.testing.assert_allclose(scores, [float(row["before"]), float(row["after"])], atol=1e-4)
        if row["fidelity"] == "chebyshev":
            np.testing.assert_allclose(255 * float(row["distance"]), change, atol=1e-3)
        expected = structural_similarity(
            picture.pixels / 255,
            candidate / 255,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        np.testing.assert_allclose(float(row["ssim"]), expected, atol=1e-4)


def test_the_table_agrees_with_the_counterexamples(finished):
    counterexamples = rows(finished / "report" / "counterexamples.csv")
    for row in rows(finished / "report" / "intra.csv"):
        own = [other for other in counterexamples if other["fidelity"] == row["fidelity"] and other["found"] == "1"]
        before, after, mos = (np.array([float(other[key]) for other in own]) for key in ("before", "after", "mos"))
        assert len(own) == int(row["images"]) == IMAGES
        expected = scipy.stats.spearmanr(np.concatenate([before, after]), np.concatenate([mos, mos])).statistic
        np.testing.assert_allclose(float(row["srcc"]), expected, atol=1e-9)
        np.testing.assert_allclose(float(row["mean_change"]), np.abs(after - before).mean(), rtol=1e-9)
        ratio = np.log(np.maximum(10 - before, before) / np.abs(after - before)).mean()
        np.testing.assert_allclose(float(row["r"]), ratio, rtol=1e-9)


def test_observers_choose_the_counterexamples_of_a_finished_run(finished, config, tmp_path):
    workdir = tmp_path / "attack"
    shutil.copytree(finished, workdir)
    config.perceptual.selection = "observers"
    with pytest.raises(UserError, match="there is no .*counted.csv: ask observers"):
        experiment.run(config, workdir)
    lines = ["observer,trial,model,fidelity,image,candidate,seen"]
    # Everybody sees the second candidate of each image, and nobody the first.
    for observer in range(5):
        for row in rows(workdir / "report" / "candidates.csv"):
            names = [row[key] for key in ("model", "fidelity", "image", "candidate")]
            lines.append(",".join([f"o{observer}", "yesno", *names, str(int(row["candidate"] == "1"))]))
    (workdir / "study" / "analysis").mkdir(parents=True)
    (workdir / "study" / "analysis" / "counted.csv").write_text("\n".join(lines) + "\n")
    experiment.run(config, workdir)
    report = workdir / "report"
    assert {row["candidate"] for row in rows(report / "counterexamples.csv")} == {"0"}
    candidates = rows(report / "candidates.csv")
    assert all(
        row["imperceptible"] == str(int(row["candidate"] == "0")) and row["answers"] == "5" for row in candidates
    )
    assert "5 observers decided" in (report / "tables.md").read_text()


@pytest.mark.slow
def test_a_lost_cell_is_computed_again_with_the_same_numbers(finished, config, tmp_path, monkeypatch):
    workdir = tmp_path / "attack"
    shutil.copytree(finished, workdir)
    before = {name: (workdir / "report" / name).read_text() for name in ("candidates.csv", "counterexamples.csv")}
    lost = sorted((workdir / "cells").rglob("*.npz"))[2]
    pixels = np.load(lost)["images"]
    lost.unlink()
    damaged = sorted((workdir / "cells").rglob("*.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    computed = []
    attack = experiment._attack
    monkeypatch.setattr(experiment, "_attack", lambda config, cell: computed.append(cell.path) or attack(config, cell))
    experiment.run(config, workdir)
    assert sorted(computed) == sorted([lost, damaged])
    np.testing.assert_array_equal(np.load(lost)["images"], pixels)
    assert (workdir / "report" / "candidates.csv").read_text() == before["candidates.csv"]
    for old, new in zip(
        csv.DictReader(before["counterexamples.csv"].splitlines()),
        rows(workdir / "report" / "counterexamples.csv"),
        strict=True,
    ):
        assert {**old, "seconds": ""} == {**new, "seconds": ""}  # time is not repeatable
    computed.clear()
    config.perceptual.thresholds.chebyshev = 0.1  # another choice needs no new attack, and here finds nothing
    experiment.run(config, workdir)
    assert computed == []
    found = {row["fidelity"]: row for row in rows(workdir / "report" / "intra.csv")}
    assert found["chebyshev"]["images"] == "0" and found["chebyshev"]["r"] == "nan"
    assert "were not found" in (workdir / "report" / "tables.md").read_text()


def test_cells_of_other_settings_are_told_apart(config, tmp_path):
    from cprl_jax.experiments.perceptual.inputs import read_fidelities, read_pictures, read_targets

    def stamps():
        parts = read_targets(config), read_fidelities(config), read_pictures(config)
        return [cell.stamp for cell in experiment.make_cells(config, *parts, tmp_path)]

    first = stamps()
    assert len(set(first)) == len(first) == 2 * IMAGES
    assert stamps() == first
    for field, value in (("steps", 4), ("multipliers", 3), ("height", 32)):
        old = config.perceptual[field]
        config.perceptual[field] = value
        assert not set(stamps()) & set(first), field
        config.perceptual[field] = old
    config.perceptual.count = 2
    assert set(stamps()) <= set(first) and len(stamps()) == 4


def test_multipliers_are_the_published_ones_and_chebyshev_gets_radii(config):
    options = config.perceptual
    options.multipliers = 32
    settings = experiment.attack_settings(options, "ssim")
    np.testing.assert_array_equal(settings["multipliers"], PUBLISHED_MULTIPLIERS)
    np.testing.assert_array_equal(settings["step_size"], 1e-3)
    assert (settings["norm"], settings["steps"]) == (options.norm, options.steps)
    options.multipliers, options.steps, options.chebyshev_radius, options.norm = 8, 100, 4.0, "l2"
    settings = experiment.attack_settings(options, "chebyshev")
    assert settings["multipliers"][[0, -1]].tolist() == [PUBLISHED_MULTIPLIERS[0], PUBLISHED_MULTIPLIERS[-1]]
    np.testing.assert_allclose(255 * 100 * settings["step_size"], 0.5 * np.arange(1, 9))
    assert settings["norm"] == "linf"
    options.multipliers = 33
    with pytest.raises(UserError, match="multipliers is 33; there are 32"):
        experiment.attack_settings(options, "ssim")


@pytest.mark.slow
def test_two_models_have_a_transfer_table(config, tmp_path, monkeypatch):
    """A second model made of the first: counterexamples are scored by the model that they were not made for."""
    from jax.tree_util import Partial

    read = inputs.read_targets

    def two(config):
        (first,) = read(config)
        return [first, inputs.Target("mean", Partial(_brightness), "mean brightness")]

    monkeypatch.setattr(inputs, "read_targets", two)
    config.perceptual.fidelities = ("chebyshev",)
    experiment.run(config, tmp_path / "attack")
    transfer = rows(tmp_path / "attack" / "report" / "transfer.csv")
    assert [(row["model"], row["attacked"]) for row in transfer] == [("ma19", "mean"), ("mean", "ma19")]
    counterexamples = [r for r in rows(tmp_path / "attack" / "report" / "counterexamples.csv") if r["model"] == "ma19"]
    change = []
    for row in counterexamples:
        name = row["image"].replace(" ", "_")
        (path,) = (tmp_path / "attack" / "cells" / "ma19" / "chebyshev").glob(f"{name}-*.npz")
        picture = next(p for p in inputs.read_pictures(config) if p.name == row["image"])
        candidate = np.load(path)["images"][int(row["candidate"])]
        change.append(abs(candidate.mean() - picture.pixels.mean()) / 25.5)
    np.testing.assert_allclose(float(transfer[1]["mean_change"]), np.mean(change), atol=1e-5)
    text = (tmp_path / "attack" / "report" / "tables.md").read_text()
    assert "mean, Chebyshev" in text


def _brightness(images):
    return 10 * images.mean(axis=(1, 2, 3))


def test_a_small_image_or_another_folder_is_refused_before_anything_is_written(config, tmp_path):
    config.perceptual.height, config.perceptual.width = 16, 20
    with pytest.raises(UserError, match="ma19: Ma19 takes images of at least 24x24.*config.perceptual.height"):
        experiment.run(config, tmp_path / "attack")
    assert not (tmp_path / "attack").exists()
    (tmp_path / "split.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="holds split.json, which is not of a perceptual attack"):
        experiment.run(config, tmp_path)
    leave_one_out = tmp_path / "leave_one_out"
    (leave_one_out / "cells").mkdir(parents=True)
    config.job = "leave_one_out"
    (leave_one_out / "config.json").write_text(config_lib.to_json(config))
    config.job = "perceptual_attack"
    with pytest.raises(UserError, match="holds a run of the job 'leave_one_out'; give another --workdir"):
        experiment.run(config, leave_one_out)


def test_a_name_that_is_not_utf_8_costs_nothing(weights, folder, tmp_path, monkeypatch):
    for stream in ("stdout", "stderr"):  # as `program.own_terminal` leaves them
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), "utf-8", "readable"))
    (tmp_path / "images").mkdir()
    shutil.copy(folder / "image 0.png", tmp_path / "images" / os.fsdecode(b"caf\xe9.png"))
    config = tiny(weights, tmp_path / "images")
    config.perceptual.labels = ""
    experiment.run(config, tmp_path / "run")
    assert "caf\\udce9.png" in (tmp_path / "run" / "report" / "candidates.csv").read_text(encoding="utf-8")
    assert "image" in (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")
