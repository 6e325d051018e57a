"""Methods that train nothing, in a run: whose variables they have, what they choose on validation, and what is kept."""

import csv
import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from cprl_jax import methods, models
from cprl_jax.config import checks
from cprl_jax.config import defaults as config_lib
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.device_images import training_feed
from cprl_jax.data.splits import Split
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.experiments.cprl import training
from cprl_jax.models.common import global_mean, linear
from cprl_jax.models.network import MaskableModule, ScoreNetwork
from cprl_jax.runtime.errors import UserError
from cprl_jax.training.setup import describe_budget, trained_model

NAMES = [f"{number}.png" for number in range(12)]


class OneConvolution(MaskableModule):
    @nn.compact
    def __call__(self, images, train):
        x = self.conv(images, 4, 3, name="conv", train=train)
        x = self.batch_norm(x, name="norm", train=train)
        return self.activate(x, nn.relu, name="relu", stage=1, train=train)


class Score(ScoreNetwork):
    @nn.compact
    def __call__(self, images, train=False):
        return self.score(linear(global_mean(self.trunk(OneConvolution, images, train)), 1, name="head")[:, 0])


@pytest.fixture
def config(monkeypatch):
    network = dataclasses.replace(models.NETWORKS["compact"], module=Score)
    monkeypatch.setitem(models.NETWORKS, "compact", network)
    config = config_lib.default()
    config.methods, config.model.name = ("plain", "meansparse", "jpeg"), "compact"
    train = config.train
    train.steps, train.batch_size, train.crop_size, train.evaluate_every, train.workers = 4, 2, 8, 2, 1
    train.weight_decay, train.ema_decay, train.head_learning_rate, train.validation_crops = 0.1, 0.5, 0.1, 1
    config.evaluation.crop_size, config.evaluation.batch_size = 8, 4
    config.meansparse.steps, config.meansparse.thresholds, config.meansparse.tolerance = 3, (2.0, 0.5), 2.0
    checks.validate(config)
    return config


@pytest.fixture
def train(config, tmp_path):
    """Trains a method; its weights and the rows of its metrics.csv."""
    random, zeros = np.random.default_rng(0), np.zeros(len(NAMES))
    images = list(random.integers(0, 256, (len(NAMES), 16, 16, 3), np.uint8))
    mos = random.uniform(0, 100, len(NAMES))
    dataset = QualityDataset("own", images, NAMES, mos, mos, zeros, NAMES, [""] * len(NAMES), [0] * len(NAMES))

    def train(method, validation=4):
        split = Split("own", 0, NAMES[:5], NAMES[5 : 5 + validation], NAMES[5 + validation :], "random")
        training.check_training(config, method, split)
        training.train(config, method, dataset=dataset, split=split, workdir=tmp_path)
        with open(tmp_path / method / "metrics.csv") as file, np.load(tmp_path / method / "weights.npz") as weights:
            return dict(weights), list(csv.DictReader(file))

    return train


def test_training_images_come_at_every_scale_and_no_others_do(train, config, monkeypatch):
    class Fed(Exception):
        pass

    def feed(dataset, rows, **_):
        assert dataset.names[rows].tolist() == [f"{scale}/{name}" for name in NAMES[:5] for scale in ("1", "0.5")]
        assert [dataset.images[row].shape[0] for row in rows] == 5 * [16, 8]
        raise Fed

    config.train.scales = (1.0, 0.5)
    monkeypatch.setattr(training, "training_feed", feed)
    with pytest.raises(Fed):
        train("plain")


def test_distorted_copies_are_labelled_once_by_the_model_that_training_starts_from(
    train, config, monkeypatch, tmp_path
):
    fed = []

    def feed(dataset, rows, **options):
        fed.append((dataset, rows))
        return training_feed(dataset, rows, **options)

    config.methods, config.at.start_from, config.at.distorted_copies = ("plain", "at"), "plain", 2
    config.train.scales = (1.0, 0.5)
    checks.validate(config)
    train("plain")
    monkeypatch.setattr(training, "training_feed", feed)
    train("at")
    ((shown, rows),) = fed
    assert len(rows) == 5 * (1 + 2) * 2
    copies = [row for row in rows if "/copies/" in shown.names[row]]
    assert {shown.names[row].rpartition("/")[2] for row in copies} == set(NAMES[:5])
    full = [row for row in copies if shown.names[row].startswith("1/")]
    module, variables = trained_model(config, "plain", tmp_path)
    options = {"crops": 5, "crop_size": 8, "seed": config.seed}
    expected = Scorer(module, batch_size=3).scores(variables, Crops(shown, full, **options)).clip(0, 100)
    np.testing.assert_allclose(shown.mos[full], expected, rtol=1e-5)
    np.testing.assert_array_equal(shown.mos[[row + 1 for row in full]], shown.mos[full])  # at the other scale
    monkeypatch.setattr(training, "Scorer", None)  # labels are kept
    config.evaluation.crops = 7
    train("at")
    np.testing.assert_array_equal(fed[1][0].mos, shown.mos)
    assert "of the training images and 2 distorted copies of each, labelled by plain" in describe_budget(
        config, "at", images=5
    )
    assert "with distorted copies" in methods.title("at", config.at)


def test_copies_that_nothing_could_label_are_refused(config):
    config.plain.distorted_copies = 1
    with pytest.raises(UserError, match=r"config.plain.distorted_copies is 1, .*start_from"):
        checks.validate(config)


@pytest.mark.slow
def test_methods_that_train_nothing_keep_what_they_start_from(train, config):
    plain, _ = train("plain")
    assert describe_budget(config, "jpeg", images=5) == "after plain: nothing is trained"
    behind_jpeg, rows = train("jpeg")
    assert behind_jpeg.keys() == plain.keys() and len(rows) == 1
    sparse, rows = train("meansparse")
    for name, value in plain.items():
        np.testing.assert_array_equal(behind_jpeg[name], value, err_msg=name)
        np.testing.assert_array_equal(sparse.pop(name), value, err_msg=name)
    chosen = {name.rpartition("/")[2]: value for name, value in sparse.items()}
    assert set(chosen) == {"mean", "variance", "count", "threshold"}
    assert chosen["count"] == 3 and chosen["threshold"] == 2 and np.all(chosen["variance"] > 0)
    assert [row["validation_threshold"] for row in rows] == ["", "", "2.0"]
    assert float(rows[-1]["validation_srcc"]) >= float(rows[-1]["validation_srcc_without"]) - 2
    again, rows_again = train("meansparse")
    np.testing.assert_equal({**plain, **sparse}, again)
    assert rows_again == rows


def test_what_is_chosen_on_validation_needs_images(train):
    train("plain")
    with pytest.raises(UserError, match="meansparse is chosen on validation images, of which there are fewer than 3"):
        train("meansparse", validation=2)


def test_no_training_is_as_long_as_none(config):
    config.plain.as_long_as = "jpeg"
    with pytest.raises(UserError, match="config.plain.as_long_as is 'jpeg'; it is another method that trains"):
        checks.validate(config)


def test_a_fitted_network_is_fitted_once_and_defences_behind_it_keep_its_parameters(config, tmp_path):
    config.model.name, config.methods = "cornia", ("plain", "blur")
    config.model.cornia.words, config.model.cornia.patches = 4, 16
    config.evaluation.crop_size = 8
    checks.validate(config)
    random, names = np.random.default_rng(0), [f"{number}.png" for number in range(20)]
    images = list(random.integers(0, 256, (len(names), 9, 8, 3), np.uint8))
    mos, zeros = random.uniform(0, 100, len(names)), np.zeros(len(names))
    dataset = QualityDataset("own", images, names, mos, mos, zeros, names, [""] * len(names), [0] * len(names))
    split = Split("own", 0, names[:10], names[10:16], names[16:], "random")
    for method in ("plain", "blur"):
        training.train(config, method, dataset=dataset, split=split, workdir=tmp_path)
    module, variables = trained_model(config, "plain", tmp_path)
    _, behind_blur = trained_model(config, "blur", tmp_path)
    jax.tree.map(np.testing.assert_array_equal, variables, behind_blur)
    assert set(json.loads((tmp_path / "plain" / "fit.json").read_text())) >= {"cost", "validation_srcc"}
    assert "without gradients" in describe_budget(config, "plain", images=5)
    content = (tmp_path / "plain" / "weights.npz").read_bytes()
    training.train(config, "plain", dataset=dataset, split=split, workdir=tmp_path)
    assert (tmp_path / "plain" / "weights.npz").read_bytes() == content

    weights = config.copy_and_resolve_references()
    weights.model.weights = str(tmp_path / "plain" / "weights.npz")
    training.train(weights, "plain", dataset=dataset, split=split, workdir=tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, variables, trained_model(weights, "plain", tmp_path / "again")[1])
    with pytest.raises(UserError, match="no weights of plain in .*plain; fit it first"):
        trained_model(config, "plain", tmp_path / "none")
    config.methods = ("plain", "cprl")
    with pytest.raises(
        UserError, match="config.methods names cprl, which train by gradients; cornia is fitted without"
    ):
        checks.validate(config)
    config.methods, config.job = ("plain",), "causal_iqa"
    with pytest.raises(UserError, match="'cornia', which is fitted .*the job 'causal_iqa' has no use for it"):
        checks.validate(config)


def test_undistorted_photographs_are_those_of_the_folder_or_of_the_training_scenes(config, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), np.uint8)
    scenes = ["x", "x", "y", "z"]
    dataset = QualityDataset(
        "own", list(pixels), NAMES[:4], [1, 2, 3, 4], [1, 2, 3, 4], np.zeros(4), scenes, [""] * 4, [0] * 4,
        pristine={"x": pixels[0], "z": pixels[3]},
    )  # fmt: skip
    (found,) = training.pristine_photographs(config, dataset, np.array([0, 1, 2]))
    np.testing.assert_array_equal(found, pixels[0])
    with pytest.raises(
        UserError, match="the data set own has none: give a folder of some, --config.train.pristine=DIR"
    ):
        training.pristine_photographs(config, dataset, np.array([2]))
    config.train.pristine = str(tmp_path)
    with pytest.raises(UserError, match="config.train.pristine: there are no photographs in"):
        training.pristine_photographs(config, dataset, np.array([2]))
    Image.fromarray(pixels[2]).save(tmp_path / "p.png")
    (found,) = training.pristine_photographs(config, dataset, np.array([2]))
    np.testing.assert_array_equal(found, pixels[2])
