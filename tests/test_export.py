"""Export: a folder that scores as its run, a loss that is measured on its images, and nothing written by halves."""

import re

import jax
import numpy as np
import pytest

import cprl_jax
from cprl_jax import data, export, models
from cprl_jax.config import defaults
from cprl_jax.data import splits
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation.statistics import srcc
from cprl_jax.runtime.files import write_file
from cprl_jax.training import setup
from cprl_jax.training.checkpoints import Checkpoints

COUNT = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a checkpoint, a split and a report, and its data set."""
    folder = tmp_path_factory.mktemp("run") / "it"
    config = defaults.default()
    config.methods, config.model.name, config.dataset.manual_dir = ("plain",), "compact", "/home/somebody"
    config.evaluation.crop_size, config.evaluation.crops, config.evaluation.batch_size = 24, 1, 8
    write_file(folder / "config.json", defaults.to_json(config))
    with Checkpoints(folder / "plain" / "checkpoints") as checkpoints:
        checkpoints.save(1, models.initialize(setup.create_model(config, "plain"), jax.random.key(0), 24))
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 256, (2 * COUNT, 24, 24, 3), np.uint8))
    names = [f"image {row}" for row in range(len(images))]
    mos = generator.uniform(0, 100, len(images)).astype(np.float32)
    dataset = QualityDataset("embedded", images, names, mos, mos, mos, names, [""] * len(images), [0] * len(images))
    split = splits.Split("embedded", 0, tuple(sorted(names[COUNT:])), (), tuple(sorted(names[:COUNT])))
    splits.save_split(split, folder / "split.json")
    rows = [f"plain,none,0,{against},0.812,0.8,0.7,0.9" for against in ("mos", "prediction")]
    write_file(
        folder / "report" / "table.csv",
        "\n".join(["method,attack,radius,against,srcc,plcc,srcc_low,srcc_high", *rows, "cprl,none,0,mos,0,0,0,0"]),
    )
    write_file(
        folder / "report" / "scores.csv",
        "method,attack,radius,name,mos,clean,score\nplain,none,0,near,50,51,51\nplain,none,0,far,5,95,95\n",
    )
    return folder, dataset


def test_what_is_printed_is_measured(run, tmp_path, monkeypatch, capsys):
    folder, dataset = run
    monkeypatch.setattr(data, "load", lambda config: dataset)
    (tmp_path / "notice").write_text("Keep this notice.")
    command = [f"--run={folder}", f"--out={tmp_path / 'out'}", "--dtype=int8", f"--notice={tmp_path / 'notice'}"]
    assert export.main(command) == 0
    printed = capsys.readouterr().out
    images = np.stack([dataset.images[row] for row in splits.rows(dataset, sorted(dataset.names[:COUNT]))])
    before, after = cprl_jax.load(folder)(images), cprl_jax.load(tmp_path / "out")(images)
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert f"int8, {size:,} bytes of weights." in printed and f"On the {COUNT} test images" in printed
    largest, mean, own, against = map(float, re.search(
        r"by ([\d.]+) at most and ([\d.]+) on average .* float32 scores ([-\d.]+), SRCC with MOS ([-\d.]+) \(", printed
    ).groups())  # fmt: skip
    np.testing.assert_allclose([largest, mean], [abs(after - before).max(), abs(after - before).mean()], atol=2e-3)
    mos = dataset.mos[splits.rows(dataset, sorted(dataset.names[:COUNT]))]
    np.testing.assert_allclose([own, against], [srcc(after, before), srcc(after, mos)], atol=0.1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for text in ("Keep this notice.", "0.812", "`far`: labelled 5, scored 95", "8 for test", *printed.splitlines()[1:]):
        assert text in card, text
    assert "somebody" not in card and str(tmp_path) not in card


def test_images_that_are_gone_are_said_to_be(run, tmp_path, capsys):
    folder, _ = run
    write_file(tmp_path / "run" / "config.json", (folder / "config.json").read_text().replace("embedded", "own"))
    (tmp_path / "run" / "plain").symlink_to(folder / "plain")
    assert export.main([f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 0
    output = capsys.readouterr()
    assert "not measured" in output.out and "error: what float32 costs is not measured: " in output.err
    assert cprl_jax.load(tmp_path / "out").dtype == "float32"
    assert export.main([f"--run={tmp_path / 'out'}", f"--out={tmp_path / 'again'}"]) == 2
    assert "is a model already, not a run; keep a copy of it with" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype=int4"], "--dtype is 'int4'; it must be one of float32, bfloat16, int8"),
        (["--notice=nowhere"], "--notice=nowhere cannot be read as text"),
        (["--certify=-1"], "--certify is -1"),
        (["--method=cprl"], "method 'cprl' was not trained"),
        (["--run=nowhere"], "nowhere is not there"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(run, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert export.main([f"--run={run[0]}", "--out=out", *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
