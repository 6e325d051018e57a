"""Both jobs end to end on a made set: what they leave, that finished cells are kept, and users' mistakes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from cprl_jax import data, score
from cprl_jax.config import checks as config_checks
from cprl_jax.experiments.causal_iqa import experiment, learner
from cprl_jax.experiments.causal_iqa import training as training_lib
from cprl_jax.experiments.causal_iqa.division import Division
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import file_name

PER_DISTORTION = 12  # images of the made set


@pytest.fixture
def config(config, dataset, other_dataset, monkeypatch):
    """Of leave-one-out on the made set."""
    monkeypatch.setattr(data, "load", lambda options: other_dataset if options.name == "livec" else dataset)
    config.job = "leave_one_out"
    config_checks.validate(config)
    return config


@pytest.fixture
def reported(monkeypatch):
    """What each run hands to its report, in place of drawing it."""
    parts = []
    monkeypatch.setattr(experiment.report, "write", lambda folder, **given: parts.append(given) or folder)
    return parts


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def modified(folder):
    """When each kept result was written; the weights of a training are written every time."""
    paths = (path for path in folder.rglob("*.npz") if path.name != "weights.npz")
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in paths}


@pytest.mark.slow
def test_leave_one_out_leaves_all_that_it_promises(config, dataset, tmp_path, capsys, monkeypatch):
    config.causal_iqa.seeds, config.seed = 2, 4
    traces = []
    monkeypatch.setattr(learner, "image_loss", lambda *given, kind: traces.append(1) or (given[0] - given[1]) ** 2)
    calls = []
    train = training_lib.Trainer.train

    def counted(self, update, dataset, division, **options):
        result = train(self, update, dataset, division, **options)
        used = np.flatnonzero(division.subsets >= 0)
        calls.append((update, options["seed"], used, len(traces)))
        return result

    monkeypatch.setattr(training_lib.Trainer, "train", counted)
    experiment.run(config, tmp_path / "run")

    # Everything else trains, undistorted images included; one program serves all cells of an update.
    kinds = sorted({*dataset.distortions.tolist()} - {""})
    expected = [(update, seed, held) for held in kinds for seed in (4, 5) for update in ("erm", "cis")]
    assert [(update, seed) for update, seed, *_ in calls] == [entry[:2] for entry in expected]
    for (_, _, used, _), (*_, held) in zip(calls, expected, strict=True):
        np.testing.assert_array_equal(used, np.flatnonzero(dataset.distortions != held))
    assert calls[0][-1] < calls[1][-1] and {count for *_, count in calls[1:]} == {len(traces)}

    # The table is that of the scores in the cells.
    table = rows(tmp_path / "run" / "report" / "table.csv")
    assert len(table) == 12 and {row["images"] for row in table} == {str(PER_DISTORTION)}
    for row in table:
        folder = file_name(row["distortion"])
        with np.load(tmp_path / "run" / "cells" / folder / f"{row['update']}-seed{row['seed']}.npz") as cell:
            names, scores, mos = cell["names"], cell["scores"], cell["mos"]
            assert cell["history_loss"].shape == (2,) and ("saliency_map" in cell) == (row["seed"] == "4")
        tested = dataset.distortions == row["distortion"]
        assert {*names.tolist()} == {*dataset.names[tested].tolist()}
        np.testing.assert_array_equal(np.sort(mos), np.sort(dataset.mos[tested]))
        assert float(row["srcc"]) == pytest.approx(scipy.stats.spearmanr(scores, mos).statistic)
        assert float(row["plcc"]) == pytest.approx(scipy.stats.pearsonr(scores, mos).statistic, abs=1e-5)
    assert "ERM" in capsys.readouterr().out
    for name in (
        "report/report.html",
        "report/table.md",
        "report/averages.csv",
        "config.json",
        "division/contents.npz",
        "division/division.npz",
        "report/figures/saliency_01.png",
    ):
        assert (tmp_path / "run" / name).is_file(), name


@pytest.mark.slow
def test_finished_cells_are_kept(config, reported, tmp_path, monkeypatch):
    """Stopped in the third cell; gone on; then with another seed, and once more with nothing left to do."""
    experiment.run(config, tmp_path / "whole")
    train, calls = training_lib.Trainer.train, []

    def stopping(self, *given, **options):
        calls.append(given[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(self, *given, **options)

    monkeypatch.setattr(training_lib.Trainer, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path / "run")
    kept = modified(tmp_path / "run" / "cells")
    assert len(kept) == 2
    experiment.run(config, tmp_path / "run")
    found = modified(tmp_path / "run" / "cells")
    assert len(calls) == 3 + 4 and len(found) == 6 and kept.items() <= found.items()
    for name in ("rows", "averages", "histories"):
        assert reported[1][name] == reported[0][name], name

    config.causal_iqa.seeds, config.causal_iqa.held_out = 2, ("blur",)
    experiment.run(config, tmp_path / "run")
    assert len(calls) == 7 + 2 and found.items() <= modified(tmp_path / "run" / "cells").items()
    assert len(reported[2]["rows"]) == 4
    experiment.run(config, tmp_path / "run")
    assert len(calls) == 9 and reported[3]["rows"] == reported[2]["rows"]


def test_causal_iqa_trains_tests_and_goes_on(config, dataset, reported, tmp_path, monkeypatch):
    config.job, config.evaluation.datasets = "causal_iqa", ("livec",)
    config.causal_iqa.seeds, config.causal_iqa.saliency = 2, 2
    config.dataset.test_fraction, config.dataset.validation_fraction = 0.34, 0.2
    run = tmp_path / "run"
    experiment.run(config, run)
    split = json.loads((run / "split.json").read_text())
    with np.load(run / "division" / "division.npz") as division:
        used = dataset.names[division["subsets"] >= 0].tolist()
        assert set(division.files) == set(Division.__dataclass_fields__)
    assert sorted(used) == sorted(split["train"] + split["validation"]) and split["validation"]
    (parts,) = reported
    kinds = ["(test part)", "blur", "noise", "set/contrast"]
    assert [(row["seed"], row["update"], row["distortion"]) for row in parts["rows"]] == [
        (seed, update, kind) for seed in (0, 1) for update in ("erm", "cis") for kind in kinds
    ]
    assert {row["images"] for row in parts["rows"] if row["distortion"] == "(test part)"} == {len(split["test"])}
    assert [(row["method"], row["dataset"], row["seed"]) for row in parts["zero_shot"]] == [
        (update, "livec", seed) for seed in (0, 1) for update in ("erm", "cis")
    ]
    # The two worst images of the other set, by the models of the first seed.
    assert [entry["update"] for entry in parts["saliency"]] == ["erm", "cis"] * 2
    assert all(entry["image"].shape[:2] == entry["map"].shape == (12, 12) for entry in parts["saliency"])
    for seed in "01":
        folder = run / "cis" / f"seed-{seed}"
        assert len(rows(folder / "metrics.csv")) == 2
        assert (folder / "weights.npz").is_file() and (folder / "checkpoints" / "2").is_dir()

    tested = np.flatnonzero(np.isin(dataset.names, split["test"]))[:4]
    for row in tested:
        Image.fromarray(dataset.images[row]).save(tmp_path / f"{row}.png")
    for method, folder in (("cis/seed-1", "cis/seed-1"), ("erm", "erm/seed-0"), ("", "cis/seed-0")):
        with np.load(run / folder / "test.npz") as kept:
            scores = score.load(run, method=method)([tmp_path / f"{row}.png" for row in tested])
            np.testing.assert_allclose(scores, kept["scores"][:4], atol=1e-3)

    before = modified(run)
    monkeypatch.setattr(training_lib, "compile_step", lambda update: None)  # nothing trains
    monkeypatch.setattr(experiment.Study, "scores", None)  # and nothing of the test part is scored
    experiment.run(config, run)
    after = modified(run)
    del before[Path("division/division.npz")], after[Path("division/division.npz")]
    assert after == before
    for name in ("rows", "averages", "zero_shot", "histories"):
        assert reported[1][name] == parts[name], name
    subsets = json.loads((run / "training.json").read_text())
    assert sorted(subsets) == sorted(used)
    for subset in ("blur | content 5", subsets[used[0]][0]):  # another subset, another label
        changed = subsets | {used[0]: [subset, 1.0, ""]}
        (run / "training.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f"training data are no longer those of .*{used[0]!r} "):
            experiment.run(config, run)
    (run / "training.json").write_text(json.dumps(subsets))
    config.causal_iqa.meta_rate = 0.25
    with pytest.raises(UserError, match="run of another configuration .causal_iqa.meta_rate: 0.5 -> 0.25"):
        experiment.run(config, run)
    config.causal_iqa.meta_rate, config.job = 0.5, "leave_one_out"
    with pytest.raises(UserError, match="run of another configuration .job: causal_iqa -> leave_one_out"):
        experiment.run(config, run)


def test_mistakes_are_found_before_anything_is_trained(config, tmp_path):
    def refused(message, folder=None):
        with pytest.raises(UserError, match=message):
            experiment.run(config, folder or tmp_path / "run")

    config.causal_iqa.held_out = ("blurr",)
    refused("held_out names 'blurr', which made does not have; it has blur, noise, set/contrast")
    config.causal_iqa.held_out = ()
    config.causal_iqa.clusters = 99
    refused("6 images cannot make 99 clusters")
    config.causal_iqa.clusters = 2
    config.causal_iqa.batch_size = 3
    refused("batch_size is 3; it must be a multiple of 2")
    shutil.rmtree(tmp_path / "run")  # clusters of content, which are kept
    (tmp_path / "cells").mkdir()
    refused("holds cells, which is not of a run of Causal-IQA", tmp_path)


PROGRAM = """
import importlib.util, sys
from cprl_jax.experiments.causal_iqa import experiment
spec = importlib.util.spec_from_file_location("quickstart", sys.argv[1])
quickstart = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quickstart)
config = quickstart.get_config("updates=erm+cis,steps=2")
config.dataset.scenes, config.dataset.levels, config.dataset.image_size, config.train.crop_size = 6, 2, 32, 24
config.evaluation.crop_size, config.causal_iqa.batch_size, config.evaluation.batch_size = 32, 2, 8
config.evaluation.resamples = 100
experiment.run(config, sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_quickstart_goes_on(tmp_path):
    """kill -9 in the middle of the cells, twice: a finished cell is never written again, the table is the same."""
    quickstart = Path(__file__).parents[3] / "configs" / "causal_iqa_quickstart.py"
    command = [sys.executable, "-c", PROGRAM, str(quickstart)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    cells = tmp_path / "killed" / "cells"
    seen = {}
    for least in (3, 6):
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen([*command, tmp_path / "killed"], env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while len(modified(cells)) < least and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = modified(cells)
        assert least <= len(found) < 10, (tmp_path / "log").read_text()[-2000:]
        assert seen.items() <= found.items()
        seen = found
    for folder in ("killed", "whole"):
        subprocess.run([*command, tmp_path / folder], env=environment, check=True, capture_output=True)
    assert seen.items() <= modified(cells).items() and len(modified(cells)) == 10
    assert not list(cells.rglob("*.tmp*")) or all(path.name.startswith(".") for path in cells.rglob("*.tmp*"))
    for name in ("table.csv", "averages.csv"):
        killed, whole = ((tmp_path / folder / "report" / name).read_text() for folder in ("killed", "whole"))
        assert killed == whole
