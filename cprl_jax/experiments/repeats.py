"""One experiment on several splits, and the medians over them: random ones, all folds, or those of saved files.

The folder of such a run holds split-00, split-01, ..., each the folder of an ordinary run on one split, and report/
with the medians, quartiles and ranges over the splits. A single run's intervals cover the choice of its test images;
the range over splits covers the training as well.
"""

import csv
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np
from absl import logging

from cprl_jax.report import page
from cprl_jax.report.table import csv_text
from cprl_jax.report.values import grouped, number
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import check_workdir, user_path, write_file
from cprl_jax.runtime.program import show

# The tables of a split's report by the argument of `present` for their medians, and the columns that tell rows apart.
TABLES = {
    "rows": ("table.csv", ("method", "attack", "radius", "against")),
    "differences": ("differences.csv", ("method", "baseline", "attack", "radius")),
    "zero_shot": ("zero_shot.csv", ("method", "dataset")),
}
RANGE = ("quartile_1", "quartile_3", "min", "max", "count")


@dataclasses.dataclass(frozen=True, eq=False)
class Repeat:
    """One run of several: its folder, what sets it apart ('seed 3'), and its whole configuration."""

    folder: Path
    name: str
    config: ml_collections.ConfigDict


def run(config: ml_collections.ConfigDict, workdir: str | Path, run_one: Callable, present: Callable) -> str:
    """Runs the experiment on every split that config.dataset asks for, going on where an earlier call stopped.

    With a single split this is `run_one(config, workdir)`. With several, each is an ordinary run in a separate folder
    below `workdir`, which computes what is not there yet or depends on something that has changed.
    `config.dataset.repeats` may grow between calls.

    Args:
      config: `dataset.repeats` > 1 (seeds config.seed, config.seed + 1, ...), `dataset.split` 'folds' with
        `dataset.fold` -1, or `dataset.split_files`.
      workdir: made if it does not exist.
      run_one: `(config, folder)`; runs one split and writes report/table.csv, report/differences.csv and, with other
        data sets, report/zero_shot.csv in its folder (none if config.job is 'train').
      present: `(config, rows=..., differences=..., zero_shot=...)`, the medians of these tables, `-> parts` for
        `report.page.terminal` and `markdown`.

    Returns:
      the tables of medians, which the main process also prints; "" with a single split, with config.job='train', and
      in the other processes.

    Raises:
      UserError: `workdir` holds something else, or as `run_one` does.
    """
    workdir = user_path(workdir, field="workdir").resolve()
    repeats = plan(config, workdir)
    if not repeats:
        run_one(config, workdir)
        return ""
    if (workdir / "split.json").exists():
        raise UserError(f"{workdir} holds the run of one split; give several another --workdir")
    names = [repeat.folder.name for repeat in repeats]
    check_workdir(workdir, entry=names[0], content="a run of several splits", folders=names)
    for place, repeat in enumerate(repeats, start=1):
        if parallel.is_main_process():
            logging.info("Split %d of %d (%s) in %s", place, len(repeats), repeat.name, repeat.folder)
        run_one(repeat.config, repeat.folder)
    if config.job == "train" or not parallel.is_main_process():
        return ""
    medians = {"zero_shot": []}
    for name, (file, keys) in TABLES.items():
        if name == "zero_shot" and not config.evaluation.datasets:
            (workdir / "report" / file).unlink(missing_ok=True)  # of an earlier call
        else:
            medians[name] = summarize([read_table(repeat.folder / "report" / file) for repeat in repeats], keys)
            write_file(workdir / "report" / file, csv_text(medians[name], keys))
    splits = f"{len(repeats)} random splits (seeds {config.seed} to {repeats[-1].config.seed})"
    if config.dataset.split_files:
        splits = f"{len(repeats)} saved splits"
    elif config.dataset.split == "folds":
        splits = f"{len(repeats)} folds (seed {config.seed})"
    title = f"{' and '.join(config.methods)} on the {config.dataset.name} data set: {splits}"
    parts = present(config, **medians)
    write_file(workdir / "report" / "table.md", page.markdown(title, parts))
    write_file(workdir / "config.json", config.to_json_best_effort(indent=2, sort_keys=True))
    text = page.terminal([title, *parts])
    show(f"\n{text}\n\nTable: {workdir / 'report' / 'table.md'}")
    return text


def plan(config: ml_collections.ConfigDict, workdir: Path) -> list[Repeat]:
    """The runs that the configuration asks for, in order; empty if it is a single one."""
    dataset = config.dataset
    if config.job == "perceptual_attack":
        return []  # it has no split
    changes = []
    if dataset.split_files:
        files = {Path(file).stem: file for file in dataset.split_files}
        changes = [(name, {"dataset.split_file": file, "dataset.split_files": ()}) for name, file in files.items()]
    elif dataset.split == "folds" and dataset.fold == -1 and not dataset.split_file:
        changes = [(f"fold {fold}", {"dataset.fold": fold}) for fold in range(dataset.folds)]
    elif dataset.repeats > 1:
        seeds = range(config.seed, config.seed + dataset.repeats)
        changes = [(f"seed {seed}", {"seed": seed, "dataset.repeats": 1}) for seed in seeds]
    repeats = []
    for index, (name, values) in enumerate(changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(values)
        repeats.append(Repeat(workdir / f"split-{index:02}", name, changed))
    return repeats


def read_table(path: Path) -> list[dict]:
    """The rows of a table of a run's report, the cells as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summarize(tables: Sequence[Sequence[Mapping]], keys: Sequence[str]) -> list[dict]:
    """Median and range of every number over the tables of several runs.

    Args:
      tables: one per run, their cells as text.
      keys: the columns that tell a row from the others of its table.

    Returns:
      one row for each that some table has, in order of first appearance, with `runs`, the number of tables that have
      it, and for every other column but intervals (`low`, `high`, `..._low`, `..._high`): the median under the
      column's name, then `..._quartile_1`, `..._quartile_3` (linear between ranks), `..._min`, `..._max`, and
      `..._count`, the number of runs in which it is finite: others do not take part. NaN where none is. A column of
      text keeps that of the first run.
    """
    summary = []
    for key, rows in grouped((row for table in tables for row in table), keys).items():
        entry = {**dict(zip(keys, key, strict=True)), "runs": len(rows)}
        if "radius" in entry:
            entry["radius"] = number(entry["radius"])
        for column in dict.fromkeys(column for row in rows for column in row):
            if column in (*keys, "low", "high") or column.endswith(("_low", "_high")):
                continue
            texts = [row.get(column) or "nan" for row in rows]
            if all(text != "nan" and math.isnan(number(text)) for text in texts):
                entry[column] = texts[0]
                continue
            values = [number(text) for text in texts if math.isfinite(number(text))]
            numbers = np.quantile(values, (0.5, 0.25, 0.75, 0, 1)).tolist() if values else [math.nan] * 5
            names = (column, *(f"{column}_{name}" for name in RANGE))
            entry |= dict(zip(names, (*numbers, len(values)), strict=True))
        summary.append(entry)
    return summary
