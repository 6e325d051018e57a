"""Several splits of one experiment: which runs, what is skipped, and medians against hand-made ones."""

import csv
import json

import numpy as np
import pytest

from cprl_jax.config import checks as config_checks
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments import repeats
from cprl_jax.report.table import Column, Table, csv_text
from cprl_jax.runtime.errors import UserError


def srcc_of(seed, fold, method, radius):
    """A number that tells its run, method and condition."""
    return 0.1 * ((7 * seed + 3 * fold) % 5) + (0.01 if method == "cprl" else 0.0) - 0.05 * radius


def present(config, *, rows, differences, zero_shot):
    """Stands in for a report: the medians of SRCC."""
    columns = [Column("srcc", "SRCC", note=lambda row: f"({row['srcc_min']:.2f} to {row['srcc_max']:.2f})")]
    compared = [f"{row['method']} {row['difference']:+.2f} over {row['baseline']}" for row in differences]
    tables = [Table(rows, columns, line=("attack", "radius", "against", "method")) for rows in (rows, zero_shot)]
    return [*config.methods, *tables, *dict.fromkeys(compared)]


def run(config, workdir, runner):
    return repeats.run(config, workdir, runner, present)


class Runner:
    """Stands in for an experiment: writes its tables and counts."""

    def __init__(self):
        self.calls = []
        self.fail_at = None

    def __call__(self, config, workdir):
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((workdir, config.seed, config.dataset.fold, config.dataset.repeats))
        if config.job == "train":
            return
        rows = []
        for method in config.methods:
            for attack, radius in (("none", 0.0), ("pgd", 2.0)):
                for against in ("mos", "prediction"):
                    srcc = srcc_of(config.seed, config.dataset.fold, method, radius)
                    if (attack, against) == ("none", "prediction"):
                        srcc = float("nan")
                    condition = {"method": method, "attack": attack, "radius": radius, "against": against}
                    numbers = {"srcc": srcc, "srcc_low": srcc - 0.1, "srcc_high": srcc + 0.1, "images": 90}
                    rows.append({**condition, **numbers, "plcc": srcc / 2, "rmse": 10 * srcc, "ssim": 0.9})
        (workdir / "report").mkdir(parents=True, exist_ok=True)
        (workdir / "report" / "table.csv").write_text(csv_text(rows, ("method",)))
        difference = {"method": "cprl", "baseline": "plain", "attack": "pgd", "radius": 2.0, "low": -1, "high": 1}
        difference |= {"difference": srcc_of(config.seed, config.dataset.fold, "cprl", 2.0)}
        (workdir / "report" / "differences.csv").write_text(csv_text([difference], ("method",)))
        if config.evaluation.datasets:
            lines = [f"{method},koniq,20,{config.seed / 10},0.5,7.0,0.0,1.0" for method in config.methods]
            header = "method,dataset,images,srcc,plcc,rmse,srcc_low,srcc_high"
            (workdir / "report" / "zero_shot.csv").write_text("\n".join([header, *lines]))


@pytest.fixture
def config():
    config = config_lib.default()
    config.dataset.repeats = 5
    config.seed = 2
    config_checks.validate(config)
    return config


@pytest.fixture
def runner():
    return Runner()


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_repeated_random_splits(config, runner, tmp_path, capsys):
    config.methods = ("plain", "cprl")
    text = run(config, tmp_path / "run", runner)
    folders = [tmp_path / "run" / f"split-0{number}" for number in range(5)]
    assert runner.calls == [(folder, 2 + number, 0, 1) for number, folder in enumerate(folders)]
    assert config.dataset.repeats == 5 and config.seed == 2  # the caller's configuration is left alone
    table = rows(tmp_path / "run" / "report" / "table.csv")
    assert list(table[0])[:4] == ["method", "attack", "radius", "against"] and len(table) == 8
    for row in table:
        values = [srcc_of(seed, 0, row["method"], float(row["radius"])) for seed in range(2, 7)]
        assert row["runs"] == "5"
        if (row["attack"], row["against"]) == ("none", "prediction"):
            assert row["srcc"] == "nan" and row["srcc_count"] == "0"
            continue
        expected = [np.median(values), *np.percentile(values, [25, 75]), min(values), max(values)]
        columns = ["srcc", "srcc_quartile_1", "srcc_quartile_3", "srcc_min", "srcc_max"]
        np.testing.assert_allclose([float(row[column]) for column in columns], expected, atol=1e-12)
        np.testing.assert_allclose(float(row["plcc"]), np.median(values) / 2, atol=1e-12)
        assert row["srcc_count"] == "5" and "srcc_low" not in row and "srcc_high" not in row
    assert text in capsys.readouterr().out
    assert "plain and cprl on the embedded data set: 5 random splits (seeds 2 to 6)" in text
    assert "0.200 (0.00 to 0.40)" in " ".join(text.split()) and "cprl +0.11 over plain" in text
    assert "0.200 (0.00 to 0.40)" in (tmp_path / "run" / "report" / "table.md").read_text()
    (difference,) = rows(tmp_path / "run" / "report" / "differences.csv")
    values = [srcc_of(seed, 0, "cprl", 2.0) for seed in range(2, 7)]
    assert float(difference["difference"]) == pytest.approx(np.median(values)) and "low" not in difference
    assert float(difference["difference_max"]) == pytest.approx(max(values))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]["repeats"] == 5


def test_other_data_sets_are_summarised_too(config, runner, tmp_path):
    config.methods, config.evaluation.datasets = ("plain", "cprl"), ("koniq",)

    def shown(config, *, zero_shot, **others):
        return [f"{row['method']} on {row['dataset']}: {row['srcc']}" for row in zero_shot]

    assert "cprl on koniq: 0.4" in repeats.run(config, tmp_path, runner, shown)
    table = rows(tmp_path / "report" / "zero_shot.csv")
    assert [(row["method"], row["dataset"], row["srcc"], row["runs"]) for row in table] == [
        ("plain", "koniq", "0.4", "5"),
        ("cprl", "koniq", "0.4", "5"),
    ]
    assert "srcc_low" not in table[0]


def test_all_folds(config, runner, tmp_path):
    config.dataset.repeats, config.dataset.split, config.dataset.folds, config.dataset.fold = 1, "folds", 3, -1
    text = run(config, tmp_path, runner)
    assert runner.calls == [(tmp_path / f"split-0{fold}", 2, fold, 1) for fold in range(3)]
    assert "3 folds (seed 2)" in text
    row = rows(tmp_path / "report" / "table.csv")[0]
    assert float(row["srcc"]) == pytest.approx(np.median([srcc_of(2, fold, "plain", 0) for fold in range(3)]))


def test_each_saved_split_in_turn(config, runner, tmp_path):
    config.dataset.repeats, config.dataset.split_files = 1, ("a/first.json", "b/second.json")
    planned = repeats.plan(config, tmp_path)
    assert [(repeat.name, repeat.config.dataset.split_file) for repeat in planned] == [
        ("first", "a/first.json"),
        ("second", "b/second.json"),
    ]
    assert all(repeat.config.dataset.split_files == () and repeat.config.seed == 2 for repeat in planned)
    assert "2 saved splits" in run(config, tmp_path, runner)
    assert [call[0] for call in runner.calls] == [tmp_path / "split-00", tmp_path / "split-01"]


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset.repeats": 5},
        {"dataset.split_file": "c.json"},
        {"dataset.split": "folds", "dataset.fold": -1},
        {"dataset.split_files": ("a/same.json", "b/same.json")},
    ],
)
def test_saved_splits_that_contradict_other_fields(config, changes):
    config.update_from_flattened_dict({"dataset.repeats": 1, "dataset.split_files": ("a.json",)} | changes)
    with pytest.raises(UserError, match="split_files"):
        config_checks.validate(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset.repeats": 1},
        {"dataset.repeats": 1, "dataset.fold": -1},  # of no meaning for random splits
        {"dataset.repeats": 1, "dataset.split": "folds", "dataset.fold": 3},
        {"dataset.repeats": 1, "dataset.split": "folds", "dataset.fold": -1, "dataset.split_file": "split.json"},
        {"job": "perceptual_attack"},
    ],
)
def test_single_split_is_an_ordinary_run(config, runner, tmp_path, changes):
    config.update_from_flattened_dict(changes)
    assert run(config, tmp_path, runner) == ""
    assert [call[0] for call in runner.calls] == [tmp_path]
    assert not list(tmp_path.glob("split-*"))


def test_interrupted_runs_go_on_where_they_stopped(config, runner, tmp_path):
    runner.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, runner)
    again = Runner()
    text = run(config, tmp_path, again)
    assert [seed for _, seed, *_ in again.calls] == [2, 3, 4, 5, 6]  # a run finds out itself what is left to do
    assert run(config, tmp_path / "other", Runner()) == text


def test_splits_and_data_sets_may_come_and_go(config, runner, tmp_path):
    config.evaluation.datasets = ("koniq",)
    repeats.run(config, tmp_path, runner, lambda config, **tables: [])
    assert (tmp_path / "report" / "zero_shot.csv").exists()
    config.dataset.repeats, config.evaluation.datasets = 6, ()
    repeats.run(config, tmp_path, runner, lambda config, **tables: [])
    assert [seed for _, seed, *_ in runner.calls][5:] == [2, 3, 4, 5, 6, 7]
    assert rows(tmp_path / "report" / "table.csv")[0]["runs"] == "6"
    assert not (tmp_path / "report" / "zero_shot.csv").exists()


def test_training_alone_leaves_no_table(config, runner, tmp_path):
    config.job = "train"
    assert run(config, tmp_path, runner) == ""
    assert len(runner.calls) == 5 and not (tmp_path / "report").exists()
    config.job = "train_and_evaluate"
    run(config, tmp_path, runner)
    assert len(runner.calls) == 10


@pytest.mark.parametrize(
    "name, said",
    [("split.json", "the run of one split"), ("division", "division, which is not of a run of several splits")],
)
def test_folder_of_something_else(config, runner, tmp_path, name, said):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=said):
        run(config, tmp_path, runner)
    assert not runner.calls and [path.name for path in tmp_path.iterdir()] == [name]


def test_only_the_main_process_writes(config, runner, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cprl_jax.runtime.parallel.is_main_process", lambda: False)
    assert run(config, tmp_path, runner) == ""
    assert len(runner.calls) == 5 and capsys.readouterr().out == ""
    assert not (tmp_path / "report").exists()


def row(srcc, method="plain", **others):
    return {"method": method, "attack": "none", "radius": "0", "against": "mos", "srcc": srcc, "plcc": "", **others}


def test_values_that_are_not_finite_do_not_take_part():
    tables_ = [[row("0.5", r="inf")], [row("nan", r="2.0")], [row("0.7", r="4.0")]]
    (found,) = repeats.summarize(tables_, repeats.TABLES["rows"][1])
    assert (found["srcc"], found["srcc_min"], found["srcc_max"]) == pytest.approx((0.6, 0.5, 0.7))
    assert (found["runs"], found["srcc_count"], found["r_count"], found["plcc_count"]) == (3, 2, 2, 0)
    assert found["r"] == 3.0 and np.isnan(found["plcc"])


def test_text_is_kept():
    (found,) = repeats.summarize([[row("0.5", direction="reflect", steps="10")]] * 2, repeats.TABLES["rows"][1])
    assert found["direction"] == "reflect" and "direction_count" not in found and found["steps"] == 10


def test_row_that_only_some_tables_have():
    found = repeats.summarize([[row("0.5")], [row("0.6"), row("0.2", method="cprl")]], repeats.TABLES["rows"][1])
    assert [(entry["method"], entry["runs"], entry["srcc"]) for entry in found] == [
        ("plain", 2, pytest.approx(0.55)),
        ("cprl", 1, pytest.approx(0.2)),
    ]
