"""Images, models and fidelities by name: what is read, how it is sized, and one line for whatever is wrong."""

import logging

import jax
import numpy as np
import pytest
from PIL import Image

from cprl_jax import models
from cprl_jax.config import checks as config_checks
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.perceptual import inputs as inputs
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.stamps import stamp
from cprl_jax.training.checkpoints import Checkpoints
from cprl_jax.training.setup import create_model


@pytest.fixture
def config(tmp_path):
    """Of a folder with five images of 40x60 pixels, the last of them upright."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(5):
        pixels = random.integers(0, 255, (60, 40, 3) if number == 4 else (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    config = config_lib.default()
    config.perceptual.images = str(tmp_path / "images")
    return config


def test_a_folder_is_read_in_the_order_of_names_and_upright_images_stay_upright(config):
    config.perceptual.height, config.perceptual.width = 20, 30
    pictures = inputs.read_pictures(config)
    assert [picture.name for picture in pictures] == [f"{number}.png" for number in range(5)]
    assert [picture.pixels.shape for picture in pictures] == [(20, 30, 3)] * 4 + [(30, 20, 3)]
    assert all(np.isnan(picture.mos) for picture in pictures)
    with Image.open(f"{config.perceptual.images}/0.png") as image:
        np.testing.assert_array_equal(pictures[0].pixels, np.array(image.resize((30, 20), Image.Resampling.LANCZOS)))


def test_images_are_left_as_they_are_without_a_size(config):
    with Image.open(f"{config.perceptual.images}/4.png") as image:
        np.testing.assert_array_equal(inputs.read_pictures(config)[4].pixels, np.array(image))


def test_a_count_spreads_images_over_their_labels(config, tmp_path):
    labels = tmp_path / "mos.csv"
    labels.write_text("image,mos\n0.png,50\n1.png,10\n2.png,90\n3.png,20\n4.png,30\n")
    config.perceptual.labels, config.perceptual.count = str(labels), 3
    pictures = inputs.read_pictures(config)
    assert [(picture.name, picture.mos) for picture in pictures] == [("1.png", 10), ("2.png", 90), ("4.png", 30)]


def test_images_are_taken_as_a_viewer_shows_them_and_other_files_are_passed_over(config, tmp_path, caplog):
    images = tmp_path / "images"
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "5.png", exif=exif)
    Image.fromarray(np.dstack([pixels, np.zeros((4, 6), np.uint8)])).save(images / "6.png")
    Image.fromarray(np.full((4, 6), 257 * 90, np.uint16)).save(images / "7.png")
    (images / "._0.png").write_bytes(b"\0\5\x16\7")
    (images / "folder.png").mkdir()
    (images / "8.heic").write_bytes(b"no image")
    config.perceptual.count = 0
    turned, transparent, deep = inputs.read_pictures(config)[5:]
    np.testing.assert_array_equal(turned.pixels, np.rot90(pixels, -1))
    assert np.all(transparent.pixels == 255) and np.all(deep.pixels == 90)
    assert "skipped: 2, 8.heic, notes.txt" in caplog.text


def test_labels_of_another_scale_are_a_warning(config, tmp_path, caplog):
    labels = tmp_path / "mos.csv"
    labels.write_text("image,mos\n0.png,0.5\n1.png,0.1\n2.png,0.9\n3.png,0.2\n4.png,1\n")
    config.perceptual.labels = str(labels)
    with caplog.at_level(logging.WARNING, logger="absl"):
        inputs.read_pictures(config)
    assert "all mos are from 0.1 to 1, but their scale is from 0 to 100" in caplog.text


def test_labels_may_come_from_a_spreadsheet(config, tmp_path):
    labels = tmp_path / "mos.csv"
    lines = [f"{number}.png;{number},5" for number in range(5)]
    labels.write_text("\n".join(["sep=;", "Image;MOS", *lines]), encoding="utf-8-sig")
    config.perceptual.labels = str(labels)
    assert [picture.mos for picture in inputs.read_pictures(config)] == [0.5, 1.5, 2.5, 3.5, 4.5]


def test_paths_that_the_system_does_not_take_are_named(config):
    for field in ("images", "labels"):
        changed = config.copy_and_resolve_references()
        for path in ("~nobody-of-that-name/x", 300 * "n"):
            changed.perceptual[field] = path
            with pytest.raises(UserError, match=f"config.perceptual.{field}"):
                inputs.read_pictures(changed)
    config.perceptual.models = ("run:~nobody-of-that-name/run:cprl",)
    with pytest.raises(UserError, match="config.perceptual.models"):
        inputs.read_targets(config)


def test_models_that_a_run_does_not_have(config, tmp_path):
    run = config_lib.default()
    (tmp_path / "run").mkdir()
    for job, method, message in (
        ("train_and_evaluate", "cpr", "there are plain, cprl"),
        ("causal_iqa", "plain", "there are erm/seed-0, cis/seed-0, cip/seed-0"),
    ):
        run.job = job
        (tmp_path / "run" / "config.json").write_text(config_lib.to_json(run))
        config.perceptual.models = (f"run:{tmp_path / 'run'}:{method}",)
        with pytest.raises(UserError, match=f"config.perceptual.models names 'run:.*{message}"):
            inputs.read_targets(config)


def test_a_model_of_a_run_of_causal_iqa(config, tmp_path):
    run = config_lib.default()
    run.job, run.model.name, run.train.ema_decay = "causal_iqa", "compact", 0.9
    run.train.crop_size = 16
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config_lib.to_json(run))
    module = create_model(run, "plain")
    variables = models.initialize(module, jax.random.key(3), 16)
    with Checkpoints(tmp_path / "run" / "cis" / "seed-0" / "checkpoints") as checkpoints:
        checkpoints.save(1, dict(variables))
    config.perceptual.models = (f"run:{tmp_path / 'run'}:cis",)
    (target,) = inputs.read_targets(config)
    assert target.stamp == stamp(module=module, variables=dict(variables))
    assert target.name == "run-cis/seed-0" and target.network == ""


@pytest.mark.parametrize(("method", "network"), [("plain", "compact"), ("cprl", "")])
def test_plain_training_alone_makes_a_model_of_the_paper(config, tmp_path, monkeypatch, method, network):
    run = config_lib.default()
    run.model.name, run.train.crop_size = "compact", 16
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config_lib.to_json(run))
    module = create_model(run, method)
    variables = models.initialize(module, jax.random.key(3), 16)
    monkeypatch.setattr(inputs, "trained_model", lambda *arguments: (module, variables))
    config.perceptual.models = (f"run:{tmp_path / 'run'}:{method}",)
    (target,) = inputs.read_targets(config)
    assert (target.name, target.network) == (f"run-{method}", network)


def test_the_embedded_photographs_come_with_labels():
    config = config_lib.default()
    config.dataset.scenes, config.dataset.levels, config.dataset.image_size = 1, 1, 32
    config.perceptual.count = 4
    pictures = inputs.read_pictures(config)
    assert len(pictures) == 4 and all("astronaut" in picture.name for picture in pictures)
    mos = [picture.mos for picture in pictures]
    assert min(mos) < 60 and max(mos) == 100


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "cannot be read"),
        ("image,score\n0.png,50\n", "line 1: 'image,score' must name the columns image and mos, separated"),
        ("image,mos\n0.png,good\n", "line 2 .*mos is 'good', not a number from 0 to 100"),
        ("image,mos\n0.png,101\n", "line 2 .*mos is '101', not a number from 0 to 100"),
        ("image,mos\n0.png,7,5\n", "line 2: 3 values in 2 columns"),
        ("image,mos\n0.png,50\n0.png,60\n", "line 3 .*listed before, in line 2"),
        ("image,mos\n0.png,50\n", "has no label of 1.png"),
    ],
)
def test_wrong_labels_are_named(config, tmp_path, labels, message):
    path = tmp_path / "mos.csv"
    if labels is not None:
        path.write_text(labels)
    config.perceptual.labels = str(path)
    with pytest.raises(UserError, match=message):
        inputs.read_pictures(config)


def test_wrong_folders_and_files_are_named(config, tmp_path):
    (tmp_path / "images" / "9.jpg").write_text("no image")
    with pytest.raises(UserError, match="9.jpg cannot be read: not an image"):
        inputs.read_pictures(config)
    config.perceptual.images = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="there is no folder"):
        inputs.read_pictures(config)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no image files"):
        inputs.read_pictures(config)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ma19", "--config.perceptual.ma19_weights=FILE is not given"),
        ("brisque", "--config.perceptual.brisque_svr=FILE is not given"),
        ("run:runs/none:cprl", "there is no run in runs/none"),
        ("run:runs/quickstart-none/quickstart:cprl", "`make quickstart` trains it"),
        ("run:cprl", "write run:FOLDER:METHOD"),
    ],
)
def test_missing_models_are_named(config, model, message):
    config.perceptual.models = (model,)
    with pytest.raises(UserError, match=message) as caught:
        inputs.read_targets(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("models", ("ma91",), "names 'ma91'.*did you mean 'ma19'"),
        ("models", (), "name at least one"),
        ("models", ("ma19", "ma19"), "each once"),
        ("fidelities", ("sim",), "names 'sim'.*did you mean 'ssim'"),
        ("height", 32, "give both"),
        ("steps", 0, "at least 1"),
        ("selection", "people", "allowed: threshold"),
        ("labels", "mos.csv", "give config.perceptual.images too"),
    ],
)
def test_a_wrong_value_is_named(field, value, message):
    config = config_lib.default()
    config.job, config.perceptual.models = "perceptual_attack", ("ma19",)
    config.perceptual[field] = value
    with pytest.raises(UserError, match=message):
        config_checks.validate(config)


def test_fidelities_have_their_thresholds_and_deep_ones_need_a_network(config):
    chebyshev, ssim = inputs.read_fidelities(config)
    np.testing.assert_allclose(255 * chebyshev.threshold, 4)
    assert (ssim.name, ssim.threshold) == ("ssim", 0.02)
    images = np.random.default_rng(0).random((2, 24, 24, 3), np.float32)
    np.testing.assert_allclose(ssim.distance(images, images), 0, atol=1e-6)
    config.perceptual.ssim_gray = True
    grey = inputs.read_fidelities(config)[1]
    assert grey.stamp != ssim.stamp
    assert grey.distance(images[:1], images[1:])[0] != ssim.distance(images[:1], images[1:])[0]
    config.perceptual.fidelities = ("lpips",)
    with pytest.raises(UserError, match="vgg16_weights=FILE is not given"):
        inputs.read_fidelities(config)
    config.perceptual.vgg16_weights = "nowhere.pth"
    with pytest.raises(UserError, match="lpips: no file 'nowhere.pth'"):
        inputs.read_fidelities(config)


@pytest.mark.slow
def test_deep_fidelities_run_on_a_random_network(config):
    config.perceptual.fidelities, config.perceptual.vgg16_weights = ("lpips", "dists"), "random"
    images = np.random.default_rng(0).random((2, 1, 24, 24, 3), np.float32)
    for found in inputs.read_fidelities(config):
        assert found.distance(images[0], images[1])[0] > found.distance(images[0], images[0])[0] - 1e-6


@pytest.fixture
def bright(monkeypatch):
    """Two models: one whose score is the brightness, one of MOS on 0..100, which is 100 times that."""

    def brightness(images):
        return images.mean(axis=(1, 2, 3))

    monkeypatch.setattr(
        inputs,
        "_ma19",
        lambda options: inputs.Model("ma19", brightness, "1", inputs.logistic.LogisticConstants(0.4, 0.1)),
    )
    monkeypatch.setattr(inputs, "_trained", lambda name: inputs.Model("run", lambda x: 100 * brightness(x), "2", None))


def test_the_scale_of_scores_is_published_or_fitted(config, bright, tmp_path):
    """Fitted maps of any monotone model recover the scale of the labels, which here follow a logistic law."""
    config.perceptual.models = ("ma19", "run:x:plain")
    published, run = inputs.read_targets(config)
    (picture, *_), levels = inputs.read_pictures(config), np.linspace(0.1, 0.9, 12)
    image = inputs.as_floats(picture.pixels[None])
    np.testing.assert_allclose(published.score_fn(image)[0], 10 / (1 + np.exp(-(image.mean() - 0.4) / 0.1)), rtol=1e-4)
    np.testing.assert_allclose(run.score_fn(image)[0], 10 * image.mean(), rtol=1e-4)

    config.perceptual.logistic = "fitted"
    with pytest.raises(UserError, match="'fitted', but the images have no labels.*perceptual.labels"):
        inputs.read_targets(config)
    gray = [np.full((8, 8, 3), round(255 * level), np.uint8) for level in levels]
    (tmp_path / "gray").mkdir()
    rows = ["image,mos"]
    for number, pixels in enumerate(gray):
        Image.fromarray(pixels).save(tmp_path / "gray" / f"{number}.png")
        rows.append(f"{number}.png,{100 / (1 + np.exp(-(pixels.mean() / 255 - 0.55) / 0.2))}")
    (tmp_path / "mos.csv").write_text("\n".join(rows))
    config.perceptual.images, config.perceptual.labels = str(tmp_path / "gray"), str(tmp_path / "mos.csv")
    config.perceptual.count = 2
    targets = inputs.read_targets(config)
    expected = 10 / (1 + np.exp(-(image.mean() - 0.55) / 0.2))
    for target in targets:
        np.testing.assert_allclose(target.score_fn(image)[0], expected, rtol=1e-3)
        assert "fitted to 12 images" in target.scale
    assert {target.stamp for target in targets}.isdisjoint({published.stamp, run.stamp})
    config.perceptual.logistic_images = 3
    with pytest.raises(UserError, match="ma19 has no fit: 3 images are too few to fit 2 parameters"):
        inputs.read_targets(config)


def test_the_original_regression_needs_a_fitted_map(config):
    config.perceptual.brisque_conventions = "mittal2012"
    with pytest.raises(UserError, match="set config.perceptual.logistic=fitted"):
        config_checks.validate(config)
    config.perceptual.logistic = "fitted"
    config_checks.validate(config)
