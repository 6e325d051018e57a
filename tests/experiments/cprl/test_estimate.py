"""What is left to do, counted by hand, and how long a gradient takes."""

import numpy as np
import pytest

from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.cprl import estimate, presets
from cprl_jax.runtime.errors import UserError
from cprl_jax.training.checkpoints import Checkpoints


@pytest.fixture
def config():
    config = config_lib.default()
    config.model.name = "compact"
    config.train.steps, config.train.batch_size = 50, 8
    config.nt.batch_size = 4
    config.evaluation.attacks, config.evaluation.radii = ("fgsm", "pgd", "perceptual"), (1.0, 2.0)
    config.evaluation.crops, config.evaluation.pgd_steps, config.evaluation.pgd.restarts = 3, 10, 2
    config.evaluation.perceptual.fidelities = ("ssim",)
    return config


def test_what_is_left_of_a_method(config, tmp_path):
    work = estimate.left(config, "nt", 100, 7, tmp_path)
    # NT takes 3 gradients of 4 images a step; FGSM 1 at two radii, PGD 10 steps of 2 starts, perceptual 200 steps.
    assert work == (50, 50, 50 * 3 * 4, 5, 5, (2 * 1 + 2 * 10 * 2 + 200) * 7 * 3)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(20, {"params": np.zeros(1)})
    (tmp_path / "evaluation").mkdir()
    for name in ("pgd-2.npz", "fgsm-4.npz"):
        (tmp_path / "evaluation" / name).touch()
    kept = {found.file for found in estimate.table_attacks.conditions(config.evaluation)}
    assert {"fgsm-1.npz", "fgsm-2.npz", "pgd-1.npz", "pgd-2.npz"} < kept
    (perceptual,) = (name for name in kept if name.startswith("perceptual"))
    (tmp_path / "evaluation" / perceptual).touch()
    work = estimate.left(config, "nt", 100, 7, tmp_path)
    assert work == (30, 50, 30 * 3 * 4, 3, 5, (2 * 1 + 10 * 2) * 7 * 3)
    config.job = "train"
    assert estimate.left(config, "nt", 100, 7, tmp_path)[3:] == (0, 0, 0)
    config.job = "evaluate"
    assert estimate.left(config, "nt", 100, 7, tmp_path)[:3] == (0, 0, 0)


def test_times_are_printed_by_method_and_in_all(monkeypatch, config, tmp_path, capsys):
    config.dataset.scenes, config.dataset.image_size, config.dataset.levels = 10, 32, 1
    config.methods, config.dataset.repeats = ("plain", "nt"), 2
    seconds = {"training": 0.5, "attack": 0.25}
    monkeypatch.setattr(estimate, "measured_speed", lambda: lambda config, method, what: seconds[what])
    estimate.run(config, tmp_path / "run")
    said = capsys.readouterr().out
    assert "run seed 0" in said and "run seed 1" in said and not (tmp_path / "run").exists()
    assert said.count("50 of 50") == 4
    dataset = estimate.data.load(config.dataset)
    lines = estimate.estimate(config, dataset, tmp_path / "run", lambda config, method, what: seconds[what])
    assert [line["training"] for line in lines] == 2 * [0.5 * 50 * 8, 0.5 * 50 * 3 * 4]
    assert f"In all about {estimate.duration(sum(line['training'] + line['attacks'] for line in lines))}." in said
    assert "compiling" in said


def test_masks_of_any_rate_and_equal_networks_are_timed_once(monkeypatch):
    config, timed = config_lib.default(), []
    monkeypatch.setattr(estimate, "_seconds", lambda module, *rest: timed.append((module, rest)) or 8.0)
    speed = estimate.measured_speed()
    for rate in (0.1, 0.4):
        config.model.sort_mask.rate = rate
        for method in ("plain", "nt", "cprl"):
            assert speed(config, method, "training") == 8.0 / config.train.batch_size
    assert [module.sort_mask.rate > 0 for module, _ in timed] == [False, True]
    config.nt.batch_size = 2
    assert speed(config, "nt", "training") == 4.0 and speed(config, "nt", "attack") == 0.5 and len(timed) == 4


def test_a_gradient_is_timed(small_network, config):
    speed = estimate.measured_speed()
    config.train.crop_size = config.evaluation.crop_size = 16
    assert 0 < speed(config, "plain", "training") < 10 and 0 < speed(config, "plain", "attack") < 10


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "–"), (1.2, "2 s"), (60, "1 min"), (61, "2 min"), (3600, "1:00 h"), (7500, "2:05 h")]
)
def test_durations(seconds, text):
    assert estimate.duration(seconds) == text


def test_other_jobs_have_no_dry_run(config, tmp_path):
    config.job = "causal_iqa"
    with pytest.raises(UserError, match="for the jobs train_and_evaluate, .*, paper_table, not 'causal_iqa'"):
        estimate.run(config, tmp_path)


def test_rows_without_a_run_are_told(monkeypatch, tmp_path, capsys):
    config = presets.paper_table("table=3,network=squeezenet,dataset=embedded,rows=plain")
    config.dataset.scenes, config.dataset.image_size, config.dataset.levels = 10, 32, 1
    monkeypatch.setattr(estimate, "measured_speed", lambda: lambda *_: 0.0)
    rows = estimate.paper_tables.Row("odd", "atlas"), estimate.paper_tables.Row("plain", "plain")
    monkeypatch.setitem(estimate.paper_tables.TABLES, 3, rows)
    config.paper_table.rows = ()
    estimate.run(config, tmp_path)
    said = capsys.readouterr().out
    assert "odd cannot be computed: there is no method 'atlas'" in said and "squeezenet" in said


def test_an_ensemble_counts_what_it_spends_and_on_how_many_images(config, tmp_path):
    evaluation = config.evaluation
    evaluation.attacks, evaluation.radii, evaluation.crops = ("ensemble", "square"), (1.0,), 1
    evaluation.ensemble.budgets, evaluation.ensemble.standard_images = ("quick", "standard"), 4
    work = estimate.left(config, "plain", 100, 7, tmp_path)
    queries = 269 * 7 + 15732 * 4 + 200 * 7  # of attacks.ensemble's budgets, and Square's
    assert work.attack_gradients == pytest.approx(185 * 7 + 1710 * 4 + queries / 3)
