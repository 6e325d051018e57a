"""Every defence under every attack, from the command line to the report, on a tiny data set."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cprl_jax.evaluation.table_attacks import ATTACKS
from cprl_jax.experiments.cprl import presets
from cprl_jax.methods import METHODS

ROOT = Path(__file__).parents[3]
TINY = {
    "seed": 1,
    "dataset.scenes": 10,
    "dataset.image_size": 32,
    "dataset.levels": 1,
    "train.batch_size": 4,
    "train.crop_size": 32,
    "train.steps": 2,
    "train.warmup_steps": 0,
    "plain.batch_size": 4,
    "plain.crop_size": 32,
    "plain_longer.batch_size": 4,
    "plain_longer.crop_size": 32,
    "cprl.steps": 1,
    "cprl_loss.steps": 1,
    "model.sort_mask.min_channels": 24,
    "evaluation.crop_size": 32,
    "evaluation.radii": "(1.,)",
    "evaluation.pgd_steps": 2,
    "evaluation.resamples": 20,
    "evaluation.examples": 1,
    "evaluation.trust_images": 2,
    "evaluation.trust_queries": 2,
    "evaluation.landscape_points": 3,
    "evaluation.perceptual.steps": 2,
    "evaluation.universal.images": 4,
    "evaluation.universal.epochs": 1,
    "evaluation.square.queries": 3,
}


@pytest.mark.slow
def test_every_defence_under_every_attack(tmp_path):
    command = [sys.executable, "-m", "cprl_jax.main", "--config=configs/defences.py:dataset=embedded,network=compact"]
    command += [f"--config.{name}={value}" for name, value in TINY.items()]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = tmp_path / "run" / "report"
    with (report / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    methods = [name for name in presets.DEFENCES if name in METHODS]
    attacks = {"none", *(name for name in presets.ATTACKED if name in ATTACKS)}
    for method in methods:
        assert {row["attack"].partition(":")[0] for row in table if row["method"] == method} == attacks
        for figure in ("landscape", "activations"):
            assert (report / "figures" / f"{figure}_{method}.png").exists()
    for method in methods:
        assert f"  - {method}: " in done.stdout, "a line of what ran and its budget"
