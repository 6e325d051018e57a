"""Images, models and fidelities by name: what is read, how it is sized, and one line for whatever is wrong."""

import numpy as np
import pytest
from PIL import Image

from cprl_jax.config import checks as config_checks
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.perceptual import inputs as inputs
from cprl_jax.runtime.errors import UserError


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
        ("image,score\n0.png,50\n", "line 2: needs columns image and mos"),
        ("image,mos\n0.png,good\n", "line 2: needs columns image and mos"),
        ("image,mos\n0.png,101\n", "line 2: the MOS 101 is outside"),
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
