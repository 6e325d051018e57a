"""A paper's table from the first training to the printed differences: what is shared, kept, lost by one row alone."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cprl_jax.config import defaults as config_lib
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.experiments.cprl import estimate, experiment, paper_table, paper_tables, presets, published
from cprl_jax.experiments.cprl.paper_tables import Row, Run
from cprl_jax.experiments.cprl.results import KEYS
from cprl_jax.report.table import csv_text
from cprl_jax.runtime.errors import TrainingDiverged, UserError
from cprl_jax.runtime.files import write_file
from cprl_jax.training.checkpoints import Checkpoints

SIZE = 12
HEADER = "method,attack,radius,against,srcc,plcc,rmse"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    lines = ["image,mos,split"]
    for part, numbers in {"train": range(4), "validation": range(4, 7), "test": range(7, 11)}.items():
        for number in numbers:
            generator = np.random.default_rng(number)
            image = generator.integers(0, 200, 3) + generator.integers(0, 56, (SIZE, SIZE, 3))
            Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
            lines.append(f"{number}.png,{generator.integers(10, 90)},{part}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def config(images):
    """Mask rates of Table 5 on the small network, which takes CPRL's short schedule."""
    config = presets.paper_table("table=5,dataset=own,network=compact,rows=p0.1+p0.4")
    config.dataset.manual_dir, config.dataset.split = str(images), "official"
    train, evaluation = config.train, config.evaluation
    train.steps, train.batch_size, train.evaluate_every, train.workers, train.warmup_steps = 2, 2, 2, 1, 0
    train.crop_size = evaluation.crop_size = SIZE
    config.plain.batch_size = config.plain.crop_size = 0
    config.cprl.steps = 1
    evaluation.attacks, evaluation.radii, evaluation.pgd_steps = ("pgd",), (2.0,), 2
    evaluation.crops, evaluation.batch_size, evaluation.resamples, evaluation.examples = 1, 4, 20, 0
    evaluation.trust_images, evaluation.landscape_points = 0, 0
    return config


@pytest.fixture
def computed(monkeypatch, small_network):
    """(folder of the run, method) of each checkpoint that is written, and the cells that are attacked."""
    done = []
    save, attack = Checkpoints.save, Scorer.attack

    def saving(self, *arguments, **options):
        done.append((self.directory.parent.parent.name, self.directory.parent.name))
        return save(self, *arguments, **options)

    def attacking(self, variables, crops, mos, condition, **options):
        if options.get("progress"):
            done.append(condition.label)
        return attack(self, variables, crops, mos, condition, **options)

    def write(folder, results, **_):
        write_file(folder / "table.csv", csv_text(results.rows, KEYS))  # and no page is drawn

    monkeypatch.setattr(experiment.report, "write", write)
    monkeypatch.setattr(Checkpoints, "save", saving)
    monkeypatch.setattr(Scorer, "attack", attacking)
    return done


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_is_computed_once_and_stands_beside_the_printed_one(config, computed, tmp_path, capsys):
    workdir = tmp_path / "run"
    paper_table.run(config, workdir)
    first, second = "compact-p0.1", "compact-p0.4"
    trained = [place for place in computed if isinstance(place, tuple)]
    assert trained == [(first, "plain"), (first, "cprl"), (second, "cprl")], "plain is the same at every rate"
    assert [cell for cell in computed if cell not in trained] == 3 * ["pgd"]
    printed = capsys.readouterr().out
    assert "CPRL, Table 5, on the own data set" in printed and "The printed numbers are of vcl, ours of own" in printed
    assert "cprl on compact, p = 0.4" in printed
    assert "cprl on compact, p = 0.4" in (workdir / "report" / "table5.md").read_text()

    table = rows(workdir / "report" / "table5.csv")
    assert [(row["row"], row["attack"], row["against"]) for row in table] == [
        (name, attack, against)
        for attack in ("none", "pgd")
        for name in ("p0.1", "p0.4")
        for against in (("mos",) if attack == "none" else ("mos", "prediction"))
    ]
    for row in table:
        (ours,) = (
            found
            for found in rows(workdir / f"compact-{row['row']}" / "report" / "table.csv")
            if all(found[key] == row[key] for key in ("method", "attack", "radius", "against"))
        )
        paper = published.find(published.read(), table=5, p=row["p"], attack=row["attack"], against=row["against"])
        for metric in ("srcc", "plcc", "rmse"):
            assert row[metric] == ours[metric]
            if paper:
                assert float(row[f"published_{metric}"]) == paper[metric]
                difference = float(ours[metric]) - paper[metric]
                np.testing.assert_allclose(float(row[f"difference_{metric}"]), difference, atol=1e-12)
            else:
                assert row["against"] == "prediction" and row[f"difference_{metric}"] == "nan"

    computed.clear()
    paper_table.run(config, workdir)
    assert computed == [] and rows(workdir / "report" / "table5.csv") == table
    capsys.readouterr()
    estimate.run(config, workdir)
    said = capsys.readouterr().out
    assert said.count("0 of 2") == 1 and said.count("0 of 1") == 5 and "In all about –" in said


def made_run(folder, *, rate="0.1", **changes):
    """Rows of a run whose plain model is there, as far as copying it goes."""
    config = presets.paper_table("table=5,network=compact")
    config.update_from_flattened_dict(changes)
    row = Row(f"p{rate}", "cprl", "CPRL", rate=rate)
    return Run(folder.name, [row], paper_tables._config(config, "compact", rate, [row]))


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_model_without_masks_is_taken_from_a_run_of_the_same_settings(tmp_path, repeats):
    settings = {"dataset.repeats": repeats}
    source, target = tmp_path / "compact-p0.1", tmp_path / "compact-p0.4"
    parts = ["split-00", "split-01"] if repeats == 2 else ["."]
    run = made_run(source, **settings)
    for seed, part in enumerate(parts):
        config = run.config.copy_and_resolve_references()
        config.seed, config.dataset.repeats = seed, 1
        (source / part / "plain").mkdir(parents=True)
        (source / part / "plain" / "weights.npz").write_text(part)
        (source / part / "config.json").write_text(config_lib.to_json(config))
        (source / part / "split.json").write_text("{}")
    paper_table._take_what_is_trained(made_run(target, rate="0.4", **settings), target)
    assert [(target / part / "plain" / "weights.npz").read_text() for part in parts] == parts
    assert all(json.loads((target / part / "split.json").read_text()) == {} for part in parts)
    shutil.rmtree(target)
    paper_table._take_what_is_trained(made_run(target, rate="0.4", **settings, **{"train.steps": 7}), target)
    assert not target.exists(), "another training"


def test_a_row_that_fails_costs_no_other(monkeypatch, tmp_path, config):
    """Runs are stood in for: one has no data, in another one method diverges."""
    config = presets.paper_table("table=6,network=compact,rows=at+cprl_loss+plain")
    calls = []

    def run_one(config, folder, **_):
        calls.append((config.job, config.methods))
        if "at" in config.methods:
            raise TrainingDiverged("at diverged at step 3")
        if config.job == "train_and_evaluate":
            lines = [f"{method},pgd,2,mos,0.5,0.5,10" for method in config.methods]
            write_file(
                folder / "report" / "table.csv", "\n".join(["method,attack,radius,against,srcc,plcc,rmse", *lines])
            )

    monkeypatch.setattr(paper_table.repeats, "run", run_one)
    with pytest.raises(UserError, match="Table 6 lacks 1 of its rows. at: at diverged at step 3"):
        paper_table.run(config, tmp_path / "run")
    both = ("plain", "at", "cprl_loss")
    assert calls == [
        ("train_and_evaluate", both),
        ("train", ("plain",)),
        ("train", ("plain", "at")),
        ("train", ("plain", "cprl_loss")),
        ("train_and_evaluate", ("plain", "cprl_loss")),
    ]
    plain, loss = rows(tmp_path / "run" / "report" / "table6.csv")
    assert (plain["row"], plain["published_srcc"]) == ("plain", "nan"), "a control"
    assert (loss["row"], loss["published_srcc"]) == ("cprl_loss", "0.573")
    assert float(loss["difference_srcc"]) == pytest.approx(-0.073)


def test_a_run_that_fails_costs_no_other(monkeypatch, tmp_path, config):
    def run_one(config, folder, **_):
        if config.model.sort_mask.rate == 0.1:
            raise UserError("there is no such folder")
        write_file(
            folder / "report" / "table.csv", "method,attack,radius,against,srcc,plcc,rmse\ncprl,pgd,2,mos,0.5,0.5,9"
        )

    monkeypatch.setattr(paper_table.repeats, "run", run_one)
    with pytest.raises(UserError, match="Table 5 lacks 1 of its rows. p0.1: there is no such folder"):
        paper_table.run(config, tmp_path / "run")
    (row,) = rows(tmp_path / "run" / "report" / "table5.csv")
    assert (row["row"], row["published_srcc"]) == ("p0.4", "0.748")


def test_a_folder_of_another_job_is_refused(config, tmp_path):
    (tmp_path / "config.json").write_text(config_lib.to_json(config_lib.default()))
    with pytest.raises(UserError, match="holds a run of the job 'train_and_evaluate'"):
        paper_table.run(config, tmp_path)
    with pytest.raises(UserError, match="'paper_table', which keeps no models; give one of the folders in it"):
        config_lib.method_of(config, "", tmp_path)


def cell(**values):
    """A line of a table with believable numbers."""
    made = {"table": 4, "row": "nt", "printed": "NT", "method": "nt", "network": "hyperiqa (resnet50)", "p": ""}
    made |= {"title": "norm training", "attack": "universal", "radius": 2.0, "against": "mos", "note": ""}
    for metric in ("srcc", "plcc", "rmse"):
        made |= {metric: 0.75, f"published_{metric}": 0.5, f"difference_{metric}": 0.25}
    return made | values


def test_columns_beyond_the_paper_stand_where_there_are_numbers(config):
    plain, *more = paper_table.tables(config, [cell()])
    assert not more and [column.title for column in plain.columns][-2:] == ["to clean", "SSIM"]
    (line,) = plain.blocks()["universal at 2/255"]
    assert line.name == "nt on hyperiqa (resnet50)"
    assert [found.text for found in line.cells][:4] == ["NT", "0.750", "0.500", "+0.250"]
    measured = {"ssim": "0.99", "r": "1.5", "lowest_srcc": "-0.5", "lowest_srcc_bound": "-0.6", "converged": "0"}
    cells = [cell(**measured), cell(against="prediction", srcc=0.9)]
    against_mos, against_clean = paper_table.tables(config, cells)
    (line,) = against_mos.blocks()["universal at 2/255"]
    assert [found.text for found in line.cells][-6:] == ["0.900", "0.990", "1.50", "no", "-0.500", "-0.600"]
    assert against_clean.heading == "against the model's clean scores"
    assert len(paper_table.tables(config, [cell(), cell(against="prediction", published_srcc=np.nan)])) == 1


def test_the_notes_say_what_is_compared(config):
    text = " ".join(paper_table.notes(config, [cell(note="the data set is not named"), cell(printed="")]))
    for words in ("states no radius", "Controls are not in the paper", "of vcl, ours of own", "ours on hyperiqa"):
        assert words in text
    assert "Of the paper's NT: the data set is not named." in text
    config.paper_table.number = 3
    assert "Table 3 has no column for own" in " ".join(paper_table.notes(config, [cell()]))
    config.paper_table.published = "livec"
    assert "of livec, ours of own" in " ".join(paper_table.notes(config, [cell()]))


def test_the_methods_of_a_run_may_grow(monkeypatch, tmp_path):
    config = config_lib.default()
    for methods in (("plain", "plain_longer"), ("plain", "nt"), ("nt",)):
        config.methods = methods
        config.nt.weight = 7.0  # as long as none is trained, its settings are free
        experiment.check_run(config, tmp_path)
        experiment._write_config(config, tmp_path / "config.json")
    assert tuple(config_lib.read_config(tmp_path).methods) == ("plain", "plain_longer", "nt")
    for field, value in (("train.steps", 7), ("nt.weight", 8.0), ("cprl.steps", 9)):  # cprl: plain_longer is as long
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=f"{field}: .* -> {value}"):
            experiment.check_run(changed, tmp_path)
