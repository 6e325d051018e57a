"""Whole runs of `cprl_jax.main` on a tiny embedded data set: what they leave, kills and resumes, several devices."""

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

from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.cprl import experiment
from cprl_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[3]
STEPS = 20
TINY = [
    "--config=configs/quickstart.py:methods=plain+cprl",
    "--config.seed=0",
    "--config.dataset.seed=0",
    "--config.dataset.scenes=10",
    "--config.dataset.image_size=32",
    "--config.dataset.levels=2",
    "--config.train.batch_size=8",
    "--config.train.crop_size=32",
    "--config.train.warmup_steps=2",
    "--config.train.evaluate_every=4",
    f"--config.train.steps={STEPS}",
    "--config.plain.steps=0",
    f"--config.cprl.steps={STEPS}",
    "--config.cprl.warmup_steps=0",
    "--config.cprl.sort_mask=True",
    "--config.model.sort_mask.min_channels=24",
    "--config.evaluation.crop_size=32",
    "--config.evaluation.crops=2",
    "--config.evaluation.radii=(1.,2.)",
    "--config.evaluation.pgd_steps=3",
    "--config.evaluation.examples=2",
    "--config.evaluation.trust_images=0",
    "--config.evaluation.landscape_points=0",
]


def command(workdir, *extra):
    return [sys.executable, "-m", "cprl_jax.main", *TINY, f"--workdir={workdir}", *extra]


def environment(**extra):
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **extra}


def finish(arguments, **variables):
    done = subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, env=environment(**variables), timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing disturbed, and what it printed."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    return workdir, finish(command(workdir))


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything_that_it_promises(reference):
    workdir, done = reference
    for name in ("config.json", "split.json", "report/table.md", "report/report.html", "report/scores.csv"):
        assert (workdir / name).stat().st_size > 0, name
    for method in ("plain", "cprl"):
        assert len(rows(workdir / method / "metrics.csv")) == STEPS
        assert list((workdir / method / "tensorboard").iterdir())
        assert np.load(workdir / method / "weights.npz").files
    assert "report.html" in done.stdout


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    config = config_lib.default()
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    (tmp_path / "crops.json").write_text("{}")
    with pytest.raises(UserError, match="an earlier version, whose crops.json .*; give another --workdir"):
        experiment.run(config, tmp_path)


@pytest.mark.slow
def test_a_finished_run_is_evaluated_again_with_landscape_and_trust_checks(reference, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(reference[0], workdir)
    more = ("trust_images=3", "trust_queries=10", "landscape_points=5")
    done = finish(command(workdir, "--config.job=evaluate", *(f"--config.evaluation.{option}" for option in more)))
    for name in ("report/trust.csv", "plain/robustness.npz", "cprl/robustness.npz"):
        assert (workdir / name).stat().st_size > 0, name
    assert "Checks for masked gradients: plain" in done.stdout


def test_the_table_has_every_method_attack_and_radius(reference):
    table = rows(reference[0] / "report" / "table.csv")
    assert list(table[0])[:7] == ["method", "attack", "radius", "against", "srcc", "plcc", "rmse"]
    found = {(row["method"], row["attack"], float(row["radius"]), row["against"]) for row in table}
    conditions = [("none", 0.0), *((attack, radius) for attack in ("fgsm", "pgd") for radius in (1.0, 2.0))]
    assert found == {
        (method, *condition, against)
        for method in ("plain", "cprl")
        for condition in conditions
        for against in ("mos", "prediction")
    }
    assert len(table) == len(found)
    for row in table:
        assert abs(float(row["max_change"]) - float(row["radius"])) < 1e-4


def test_the_table_agrees_with_the_scores_of_the_images(reference):
    import scipy.stats

    scores = rows(reference[0] / "report" / "scores.csv")
    for row in rows(reference[0] / "report" / "table.csv"):
        same = [
            s
            for s in scores
            if (s["method"], s["attack"], s["radius"]) == (row["method"], row["attack"], row["radius"])
        ]
        predicted = [float(s["score"]) for s in same]
        target = [float(s["mos" if row["against"] == "mos" else "clean"]) for s in same]
        assert int(float(row["images"])) == len(same)
        np.testing.assert_allclose(float(row["srcc"]), scipy.stats.spearmanr(predicted, target).statistic, atol=1e-9)
        np.testing.assert_allclose(float(row["rmse"]), np.sqrt(np.mean(np.subtract(predicted, target) ** 2)), rtol=1e-5)


def test_files_get_the_scores_that_the_run_gave_the_same_images(reference, tmp_path):
    """The crops depend on seed and size, so a test image written to a file has to score as in the report."""
    from PIL import Image

    from cprl_jax.data.embedded import make_embedded

    workdir, _ = reference
    dataset = make_embedded(seed=0, image_size=32, scenes=10, levels=2, progress=False)
    clean = {
        row["name"]: float(row["score"])
        for row in rows(workdir / "report" / "scores.csv")
        if (row["method"], row["attack"]) == ("plain", "none")
    }
    names = list(clean)[:3]
    for name in names:
        image = dataset.images[list(dataset.names).index(name)]
        Image.fromarray(image).save(tmp_path / name, format="PNG")
    paths = [str(tmp_path / name) for name in names]
    arguments = [sys.executable, "-m", "cprl_jax.score", *paths, f"--checkpoint={workdir}", "--method=plain"]
    lines = [line.split("\t") for line in finish(arguments).stdout.splitlines()]
    assert [path for _, path in lines] == paths
    np.testing.assert_allclose([float(score) for score, _ in lines], [clean[name] for name in names], atol=0.006)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["photo.png", "--checkpoint={run}", "--crops=-1"], "crops=-1 is not allowed"),
        (["photo.png", "--checkpoint={run}/report"], "not the folder of a run"),
        (["photo.png", "--checkpoint={run}", "--method=at"], "was not trained"),
        (["photo.png", "--checkpoint={run}", "--method=crpl"], "method 'crpl' was not trained"),
    ],
)
def test_mistakes_in_scoring_end_in_one_line(reference, capsys, arguments, complaint):
    from cprl_jax import score

    assert score.main([argument.format(run=reference[0]) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and complaint in error and error.count("\n") == 1


def test_no_scene_is_in_two_parts(reference):
    from cprl_jax.data.embedded import make_embedded

    dataset = make_embedded(seed=0, image_size=32, scenes=10, levels=2, progress=False)
    scene_of = dict(zip(dataset.names, dataset.references, strict=True))
    split = json.loads((reference[0] / "split.json").read_text())
    train, validation, test = ({scene_of[name] for name in split[part]} for part in ("train", "validation", "test"))
    assert train and validation and test
    assert not train & validation and not train & test and not validation & test


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(reference):
    workdir, _ = reference
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/checkpoints/*")}
    done = finish(command(workdir))
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("*/checkpoints/*")} == before
    assert "already trained" in done.stderr
    assert "PGD" in done.stdout


def test_another_configuration_does_not_get_into_the_folder(reference):
    workdir, _ = reference
    done = subprocess.run(
        command(workdir, "--config.cprl.weight=77"), cwd=ROOT, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2
    assert "cprl.weight" in done.stderr and done.stderr.count("\n") == 1


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=SLOW) for moment in ("training", "writing a checkpoint", "second method")]
)
def test_a_killed_run_ends_as_if_it_had_not_been_killed(reference, tmp_path, moment):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(workdir), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    happened = {
        "training": lambda: (workdir / "plain" / "checkpoints" / "8").exists(),
        "writing a checkpoint": lambda: any((workdir / "plain" / "checkpoints").glob("*tmp*")),
        "second method": lambda: (workdir / "cprl" / "checkpoints" / "4").exists(),
    }[moment]
    deadline = time.monotonic() + 300
    while not happened() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    finish(command(workdir))
    assert_same_run(workdir, reference[0])


def assert_same_run(workdir, expected):
    """Parameters, metrics and tables are the same, bit for bit."""
    for method in ("plain", "cprl"):
        assert (workdir / method / "metrics.csv").read_bytes() == (expected / method / "metrics.csv").read_bytes()
        new, old = np.load(workdir / method / "weights.npz"), np.load(expected / method / "weights.npz")
        assert sorted(new.files) == sorted(old.files)
        for name in old.files:
            np.testing.assert_array_equal(new[name], old[name], err_msg=name)
    for name in ("table.csv", "scores.csv", "differences.csv"):
        assert (workdir / "report" / name).read_bytes() == (expected / "report" / name).read_bytes()


@pytest.mark.slow
def test_runs_killed_at_two_dozen_random_moments_end_as_if_they_had_not_been(reference, tmp_path):
    started = time.monotonic()
    finish(command(tmp_path / "undisturbed"))
    whole = time.monotonic() - started
    generator, kills, run = np.random.default_rng(0), 0, 0
    while kills < 24:
        workdir, run = tmp_path / f"run{run}", run + 1
        code = None
        while code is None:
            process = subprocess.Popen(
                command(workdir), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            kind = kills % 3
            if kind == 2:  # while the first files are written
                while not workdir.exists() and process.poll() is None:
                    time.sleep(0.001)
            wait = generator.uniform(0.05, (whole, 1.0, 0.5)[kind])
            try:
                code = process.wait(wait if kills < 24 else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        assert code == 0
        assert_same_run(workdir, reference[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two devices", "two processes"])
def test_losses_do_not_depend_on_the_number_of_devices(reference, tmp_path, kind):
    workdir = tmp_path / "run"
    if kind == "two devices":
        finish(command(workdir, "--config.job=train"), JAX_NUM_CPU_DEVICES="2", NPROC="8")
    else:
        launcher = [sys.executable, "launch/local.py", "--processes=2", "--", *TINY, f"--workdir={workdir}"]
        finish([*launcher, "--config.job=train"])
    for method in ("plain", "cprl"):
        new, old = (rows(folder / method / "metrics.csv") for folder in (workdir, reference[0]))
        assert len(new) == len(old) == STEPS
        for name in ("loss", "mos_loss"):
            np.testing.assert_allclose(
                [float(row[name]) for row in new],
                [float(row[name]) for row in old],
                rtol=1e-5,
                err_msg=f"{method} {name}",
            )


@pytest.mark.slow
def test_nan_stops_the_run_with_step_and_cause(tmp_path):
    extra = ["--config.train.head_learning_rate=1e30", "--config.job=train"]
    done = subprocess.run(
        command(tmp_path / "run", *extra), cwd=ROOT, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: plain diverged at step ") and "loss = " in last and "learning_rate" in last
