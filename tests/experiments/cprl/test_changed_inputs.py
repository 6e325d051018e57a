"""A finished run whose command is repeated: what depends on a changed input is computed again, the rest is not."""

import csv
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from cprl_jax import models
from cprl_jax.config import defaults as config_lib
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.experiments.cprl import experiment, robustness, training
from cprl_jax.robustness.landscape import Landscape
from cprl_jax.runtime.errors import UserError
from cprl_jax.training.setup import start_variables

PARTS = {"train": range(4), "validation": range(4, 7), "test": range(7, 11)}
SIZE = 12


def write_images(folder, seed, parts):
    folder.mkdir()
    lines = ["image,mos,split"]
    for part, numbers in parts.items():
        for number in numbers:
            generator = np.random.default_rng([seed, number])
            image = generator.integers(0, 200, 3) + generator.integers(0, 56, (SIZE, SIZE, 3))
            Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
            lines.append(f"{number}.png,{generator.integers(10, 90)},{part}")
    (folder / "labels.csv").write_text("\n".join(lines))


def make_config():
    """Two steps of one method, of which the first checkpoint is kept as the best, and every kind of kept result."""
    config = config_lib.default()
    config.methods = ("plain",)
    config.model.name = "compact"
    config.dataset.name, config.dataset.manual_dir, config.dataset.split = "own", "own", "official"
    train, evaluation = config.train, config.evaluation
    train.steps, train.batch_size, train.evaluate_every, train.workers = 2, 2, 1, 1
    train.head_learning_rate = 1e-2
    train.crop_size = evaluation.crop_size = SIZE
    evaluation.attacks, evaluation.radii, evaluation.pgd_steps = ("pgd", "target_free"), (2.0,), 2
    evaluation.crops, evaluation.batch_size, evaluation.resamples, evaluation.examples = 1, 4, 20, 0
    evaluation.datasets = ("own:other",)
    evaluation.trust_images, evaluation.landscape_points, evaluation.checkpoint = 2, 3, "last"
    return config


@pytest.fixture
def computed(monkeypatch, small_network):
    """What is computed while a run goes on, and no page is drawn."""
    done = []

    def noted(name, call):
        def noted(*arguments, **options):
            done.append(name(*arguments, **options) if callable(name) else name)
            return call(*arguments, **options)

        return noted

    def label(scorer, variables, crops, mos, condition, **options):
        return condition.label

    selections = iter([1.0, 0.0])  # the first checkpoint is the best, the second the last
    monkeypatch.setattr(training, "make_validation", lambda *_, **__: lambda _: {"selection": next(selections)})
    monkeypatch.setattr(Scorer, "scores", noted(lambda *_, progress: progress, Scorer.scores))
    monkeypatch.setattr(Scorer, "attack", noted(label, Scorer.attack))
    plane = Landscape(np.zeros((3, 3)), np.zeros(3), np.zeros(3), np.float32(0))
    monkeypatch.setattr(robustness, "landscape", noted("landscape", lambda *_, **__: plane))
    monkeypatch.setattr(robustness.trust, "check", noted("trust", lambda *_, **__: []))
    monkeypatch.setattr(experiment.report, "write", lambda folder, results, **_: done.append(results))
    monkeypatch.setattr(experiment.report, "terminal", lambda results: "")
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of images and of a finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    write_images(folder / "own", 0, PARTS)
    write_images(folder / "other", 1, {"": range(5)})
    return folder


@pytest.fixture
def run(finished, computed, tmp_path, monkeypatch):
    """Repeats the command in a copy of the finished run; what was computed, and the results."""
    folder = tmp_path / "copy"

    def run(config):
        computed.clear()
        experiment.run(config, folder / "run")
        *names, results = computed
        return set(names), results

    if not (finished / "run").exists():
        monkeypatch.chdir(finished)
        experiment.run(make_config(), finished / "run")
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return run, folder


def change_pixel(name):
    def change(folder, config):
        pixels = np.array(Image.open(folder / name))
        pixels[3, 3] ^= 64
        Image.fromarray(pixels).save(folder / name)

    return change


def change_label(name):
    def change(folder, config):
        path = folder / Path(name).parent / "labels.csv"
        rows = list(csv.reader(path.open()))
        for row in rows:
            if row[0] == Path(name).name:
                row[1] = "95"
        path.write_text("\n".join(map(",".join, rows)))

    return change


def setting(**values):
    return lambda folder, config: config.evaluation.update(values)


def test_a_refused_command_leaves_nothing_behind(run):
    _, folder = run
    config = make_config()
    config.train.frozen = ("nope",)
    with pytest.raises(UserError, match="no parameter of this network has 'nope' in its name"):
        experiment.run(config, folder / "new")
    assert not (folder / "new").exists()


def test_evaluating_a_method_that_was_not_trained_does_not_add_it(run):
    _, folder = run
    before = (folder / "run" / "config.json").read_text()
    config = make_config()
    config.methods, config.job = ("plain", "nt"), "evaluate"
    with pytest.raises(UserError, match="nt"):
        experiment.run(config, folder / "run")
    assert (folder / "run" / "config.json").read_text() == before


TEST = {"clean scores", "pgd", "target_free", "landscape", "trust"}
OTHER = "plain on own:other"
CHANGES = {
    "nothing": (lambda folder, config: None, set()),
    "pixel of the test part": (change_pixel("own/9.png"), TEST),
    "label of the test part": (change_label("own/9.png"), {"pgd", "landscape", "trust"}),
    "pixel of another set": (change_pixel("other/2.png"), {OTHER}),
    "label of another set": (change_label("other/2.png"), set()),
    "steps of PGD": (setting(pgd_steps=3), {"pgd", "landscape", "trust"}),
    "radius": (setting(radii=(2.0, 3.0)), {"pgd", "target_free"}),
    "checkpoint": (setting(checkpoint="best"), TEST | {OTHER}),
    "resamples": (setting(resamples=21), set()),
    "crops": (setting(crops=2), {"clean scores", "pgd", "target_free", OTHER}),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", CHANGES)
def test_what_depends_on_a_changed_input_is_computed_again_and_the_rest_is_not(run, name):
    repeat, folder = run
    config = make_config()
    change, expected = CHANGES[name]
    change(folder, config)
    found, results = repeat(config)
    assert found == expected
    assert repeat(config)[0] == set(), "and then it is kept"
    mos = {row["name"]: row["mos"] for row in results.scores}
    assert (mos["9.png"] == 95) == (name == "label of the test part")
    assert {path.name for path in (folder / "run").iterdir()} >= {"config.json", "split.json", "training.json"}


def move(name, to):
    def change(folder, config):
        path = folder / "run" / "split.json"
        split = json.loads(path.read_text())
        split = {key: [n for n in value if n != name] if key in PARTS else value for key, value in split.items()}
        path.write_text(json.dumps(split | {to: [*split[to], name]}))

    return change


def column(name, part):
    """The column `split` of the labels."""

    def change(folder, config):
        path = folder / "own" / "labels.csv"
        lines = path.read_text().splitlines()
        path.write_text(
            "\n".join(f"{line.rpartition(',')[0]},{part}" if line.startswith(name) else line for line in lines)
        )

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_pixel("own/1.png"), r"'1\.png' has other pixels; put them back"),
        (change_pixel("own/5.png"), r"'5\.png' has other pixels"),
        (change_label("own/2.png"), r"'2\.png' had MOS \d+ and has 95; put them back"),
        (move("9.png", "train"), r"split\.json: '9\.png' is in the part train, and in test by the official split"),
        (move("1.png", "test"), r"'1\.png' is in the part test, and in train by the official split"),
        (column("7.png", "train"), r"'7\.png' is in the part test, and in train by the official split.*; put it back"),
        (lambda folder, config: (folder / "run" / "training.json").write_text("[1"), r"training\.json is damaged .*"),
    ],
    ids=["pixel", "pixel that validates", "label", "into training", "out of training", "column", "damaged"],
)
def test_other_training_data_are_refused_and_named(run, change, message):
    repeat, folder = run
    config = make_config()
    change(folder, config)
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    with pytest.raises(UserError, match=message):
        repeat(config)
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == before
    config.job = "evaluate"  # the models are what they are
    repeat(config)


def test_a_split_file_that_was_edited_is_refused_and_one_that_is_gone_is_not_needed(run):
    repeat, folder = run
    config = make_config()
    config.dataset.split_file = "mine.json"
    shutil.copy(folder / "run" / "split.json", folder / "mine.json")
    experiment.run(config, folder / "with file")
    split = json.loads((folder / "mine.json").read_text())
    split["train"].append(split["test"].pop())
    (folder / "mine.json").write_text(json.dumps(split))
    with pytest.raises(UserError, match=r"'\d+\.png' is in the part test, and in train by .*split_file=mine\.json"):
        experiment.run(config, folder / "with file")
    (folder / "mine.json").unlink()
    experiment.run(config, folder / "with file")


def test_other_weights_under_the_same_path_are_refused(run):
    """Whatever they are called: a file, or an old record without them."""
    repeat, folder = run
    config = make_config()
    variables = start_variables(config, "plain", seed=0)
    models.save_weights(folder / "w.npz", variables)
    config.model.weights = "w.npz"
    experiment.run(config, folder / "with weights")
    record = folder / "with weights" / "training.json"
    written = record.read_text()
    experiment.run(config, folder / "with weights")
    assert record.read_text() == written
    models.save_weights(folder / "w.npz", jax.tree.map(lambda array: array + 0.5, variables))
    with pytest.raises(UserError, match=r"w\.npz no longer holds the weights that the run in .*with weights started"):
        experiment.run(config, folder / "with weights")
    config.job = "evaluate"
    experiment.run(config, folder / "with weights")
    config.job = "train_and_evaluate"
    kept = {name: entry for name, entry in json.loads(written).items() if isinstance(entry, list)}
    record.write_text(json.dumps(kept))  # as a version wrote it that did not know of weights
    experiment.run(config, folder / "with weights")
