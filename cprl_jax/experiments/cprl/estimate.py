"""What a job of CPRL would train and attack, and about how long that takes: nothing is trained, nothing is written."""

import dataclasses
import math
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from absl import logging

from cprl_jax import data, models
from cprl_jax.data import splits
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation import table_attacks
from cprl_jax.experiments import repeats
from cprl_jax.experiments.cprl import paper_tables
from cprl_jax.experiments.cprl.experiment import JOBS
from cprl_jax.methods import METHODS
from cprl_jax.report import page
from cprl_jax.report.table import Column, Table
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path
from cprl_jax.runtime.program import show
from cprl_jax.training import setup
from cprl_jax.training.checkpoints import Checkpoints

TIMED = 2  # batches
HOW = (
    "Time: gradients left to compute, each as long as in one of {timed} batches of random crops that were timed just "
    "now, on one device of this machine; an attack's step counts as one, a query as a third. Not in it: compiling, "
    "reading images, validation, trust checks, landscapes, and what SortMask's random masks cost in training. A kept "
    "cell counts as done; whether what it depends on has changed is only seen when it is read."
)

Speed = Callable[[ml_collections.ConfigDict, str, str], float]
"""(config, method, what) -> seconds for a gradient of one image; what: 'training' or 'attack'."""


class Work(NamedTuple):
    """What is left to do of one method of a run."""

    steps: int
    of_steps: int
    gradients: float  # of training images
    cells: int
    of_cells: int
    attack_gradients: float  # of crops of test images


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Prints a line for each method that the job would train or attack.

    Raises:
      UserError: another job than CPRL's, or a data set or split that cannot be had.
    """
    workdir = user_path(workdir, field="workdir").resolve()
    problems: list[str] = []
    if config.job == "paper_table":
        runs, without = paper_tables.plan(config)
        planned = [(run.folder, run.config) for run in runs]
        problems = [f"{row.name} cannot be computed: {reason}" for row, reason in without.items()]
    elif config.job in JOBS:
        planned = [("", config)]
    else:
        raise UserError(f"config.dry_run is for the jobs {', '.join([*JOBS, 'paper_table'])}, not {config.job!r}")
    dataset = parallel.main_process_first(lambda: data.load(config.dataset))
    speed, lines, taken = measured_speed(), [], set()
    for name, one in planned:
        lines += estimate(one, dataset, workdir / name, speed, without=taken)
        if config.job == "paper_table":  # its runs take these from one another
            taken |= {(one.model.name, start) for start in paper_tables.shared_starts(one)}
    if parallel.is_main_process():
        show(page.terminal([*tables(lines), page.Section("Rows without a run", [problems])]))


def estimate(
    config: ml_collections.ConfigDict,
    dataset: QualityDataset,
    folder: Path,
    speed: Speed,
    *,
    without: Collection[tuple[str, str]] = (),
) -> list[dict]:
    """What is left of a run, or of one on several splits: a row for each split and method.

    Args:
      without: (network, method) that another run has.
    """
    rows = []
    for repeat in repeats.plan(config, folder) or [repeats.Repeat(folder, "", config)]:
        path = repeat.folder / "split.json"
        if path.exists():
            split = splits.load_split(path, dataset)
        else:
            split = splits.choose(repeat.config.dataset, dataset, seed=repeat.config.seed)
        for method in config.methods:
            if (config.model.name, method) in without:
                continue
            work = left(repeat.config, method, len(split.train), len(split.test), repeat.folder / method)
            # Seconds are only measured for what is left.
            training = work.gradients * speed(repeat.config, method, "training") if work.gradients else 0.0
            attacks = work.attack_gradients * speed(repeat.config, method, "attack") if work.attack_gradients else 0.0
            name = " ".join(filter(None, [folder.name, repeat.name]))
            rows.append({"run": name, "method": method, "training": training, "attacks": attacks} | work._asdict())
    return rows


def left(config: ml_collections.ConfigDict, method: str, train: int, test: int, folder: Path) -> Work:
    """What a method still needs, from the checkpoints and kept cells in its folder.

    Args:
      train, test: images.
    """
    steps = done = 0
    if config.job != "evaluate" and models.network_of(config.model).fit is None:
        steps = setup.total_steps(config, method, images=train)
        if (folder / "checkpoints").is_dir():
            with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
                done = checkpoints.latest_step() or 0
    gradients = METHODS[method].gradients(config[method]) * setup.batch_size(config, method)
    asked = [] if config.job == "train" else table_attacks.conditions(config.evaluation)
    missing = [condition for condition in asked if not (folder / "evaluation" / condition.file).exists()]
    attack = sum(condition.gradients * min(condition.images or test, test) for condition in missing)
    return Work(
        max(0, steps - done),
        steps,
        max(0, steps - done) * gradients,
        len(missing),
        len(asked),
        attack * config.evaluation.crops,
    )


def measured_speed() -> Speed:
    """Times gradients of random crops, once for each network."""
    known: dict[Any, float] = {}

    def speed(config: ml_collections.ConfigDict, method: str, what: str) -> float:
        module = setup.create_model(config, method)
        if module.sort_mask.rate > 0:  # masks of any rate take as long
            module = module.clone(sort_mask=dataclasses.replace(module.sort_mask, rate=0.5))
        if what == "training":
            count, size = setup.batch_size(config, method), setup.crop_size(config, method)
        else:
            count, size = config.evaluation.batch_size, config.evaluation.crop_size
        key = (module, what, count, size)
        if key not in known:
            logging.info("%s: timing gradients (%s, %d crops of %d pixels)", method, what, count, size)
            known[key] = _seconds(module, config.train.crop_size, what, count, size) / count
        return known[key]

    return speed


def _seconds(module: nn.Module, built_for: int, what: str, count: int, size: int) -> float:
    """For one batch, the shorter of `TIMED`."""
    variables = models.initialize(module, jax.random.key(0), built_for)
    images = jax.random.uniform(jax.random.key(1), (count, size, size, 3))

    def total(params, images):
        return jnp.sum(models.score_fn(module, {**variables, "params": params})(images))

    gradient = jax.jit(jax.grad(total, argnums=0 if what == "training" else 1))
    times = []
    for _ in range(1 + TIMED):  # the first one compiles
        started = time.monotonic()
        jax.block_until_ready(gradient(variables["params"], images))
        times.append(time.monotonic() - started)
    return min(times[1:])


def tables(lines: list[dict]) -> list[Table | str]:
    """The lines, their sum, and how the times were estimated."""
    total = sum(line["training"] + line["attacks"] for line in lines)
    columns = [
        Column("steps", "steps", group="training", text=lambda line: f"{line['steps']:,} of {line['of_steps']:,}"),
        Column("training", "time", group="training", text=lambda line: duration(line["training"])),
        Column("cells", "cells", group="attacks", text=lambda line: f"{line['cells']} of {line['of_cells']}"),
        Column("attacks", "time", group="attacks", text=lambda line: duration(line["attacks"])),
    ]
    table = Table(lines, columns, line=("run", "method"), heading="left to do", block=lambda line: line["run"])
    return [table, f"In all about {duration(total)}.", HOW.format(timed=TIMED)]


def duration(seconds: float) -> str:
    """'2:05 h', '14 min', '50 s', rounded up; '–' for nothing."""
    if seconds <= 0:
        return "–"
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02} h" if minutes >= 60 else f"{minutes} min"
