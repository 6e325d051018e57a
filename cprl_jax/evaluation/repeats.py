"""One experiment on several splits, and their median: `config.dataset.repeats` random ones, or all folds.

The folder of such a run holds split-00, split-01, ..., each the folder of an ordinary run on one split
(`cprl_jax.experiments.cprl.experiment`), and report/ with the median and the spread over them. A single run's intervals
tell how far its numbers depend on the images that happen to be in its test part; the spread over splits tells of the
training as well.
"""

import csv
import dataclasses
import hashlib
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np
from absl import logging

from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.cprl import experiment
from cprl_jax.report import findings
from cprl_jax.report.results import condition_name, conditions, decimals, find, methods, number, value
from cprl_jax.report.tables import DIGITS, HEADINGS, METRICS, WIDTH, csv_text, markdown_row, plain_text
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file

KEYS = ("method", "attack", "radius", "against")  # that tell the rows of table.csv
ZERO_SHOT_KEYS = ("method", "dataset")
SPREAD = ("quartile_1", "quartile_3", "min", "max", "count")
LEGEND = (
    "Median over the splits, [lower and upper quartile], (smallest to largest). Every split has its own training, seed "
    "or test part; a method is compared with another split by split."
)
_FINISHED = "finished.json"


@dataclasses.dataclass(frozen=True)
class Repeat:
    """One run of several: where it lives, what is its own, and its whole configuration."""

    folder: Path
    name: str
    config: ml_collections.ConfigDict


def run(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    run_one: Callable[[ml_collections.ConfigDict, Path], None] = experiment.run,
) -> str:
    """Runs the experiment on every split that config.dataset asks for, going on where an earlier call stopped.

    With a single split this is `run_one(config, workdir)`. With several, each is an ordinary run in a folder of its own
    below `workdir`; one that is finished is only read (not so with config.job='evaluate', which is asked for to look
    again). `config.dataset.repeats` may grow between calls: the splits that are there stay as they are.

    Args:
      config: `dataset.repeats` > 1 (seeds config.seed, config.seed + 1, ...), or `dataset.split` 'folds' with
        `dataset.fold` -1.
      workdir: made if it does not exist.
      run_one: runs one split and leaves report/table.csv in its folder (none if config.job is 'train').

    Returns:
      the table of medians, which the main process also prints; "" with a single split, with config.job='train', and in
      the other processes.

    Raises:
      UserError: `workdir` holds something else; and whatever `run_one` raises.
    """
    workdir = Path(workdir).expanduser().resolve()
    repeats = plan(config, workdir)
    if not repeats:
        run_one(config, workdir)
        return ""
    _check_workdir(workdir, repeats)
    finished = [config.job != "evaluate" and _is_finished(repeat) for repeat in repeats]
    parallel.barrier("splits looked at")
    for place, (repeat, done) in enumerate(zip(repeats, finished, strict=True), start=1):
        if parallel.is_main_process():
            state = ", finished before" if done else ""
            logging.info("Split %d of %d (%s) in %s%s", place, len(repeats), repeat.name, repeat.folder, state)
        if not done:
            run_one(repeat.config, repeat.folder)
            if parallel.is_main_process() and config.job != "train":
                write_file(repeat.folder / _FINISHED, json.dumps(_stamp(repeat), indent=1) + "\n")
    if config.job == "train" or not parallel.is_main_process():
        return ""
    title = f"{' and '.join(config.methods)} on the {config.dataset.name} data set: {_over(config, repeats)}"
    reports = [repeat.folder / "report" for repeat in repeats]
    rows = summarize([read_table(folder / "table.csv") for folder in reports], KEYS)
    write_file(workdir / "report" / "table.csv", csv_text(rows, KEYS))
    others = []
    if config.evaluation.datasets:
        others = summarize([read_table(folder / "zero_shot.csv") for folder in reports], ZERO_SHOT_KEYS)
        write_file(workdir / "report" / "zero_shot.csv", csv_text(others, ZERO_SHOT_KEYS))
    text = format_table(rows, others, title)
    write_file(workdir / "report" / "table.md", markdown(rows, others, title))
    write_file(workdir / "config.json", config_lib.to_json(config))
    print(f"\n{text}\n\nTable: {workdir / 'report' / 'table.md'}")
    return text


def plan(config: ml_collections.ConfigDict, workdir: Path) -> list[Repeat]:
    """The runs that the configuration asks for, in order; empty if it is a single one."""
    dataset = config.dataset
    if config.job == "perceptual_attack":
        return []  # it has no split
    if dataset.split == "folds" and dataset.fold == -1 and not dataset.split_file:
        changes = [(f"fold {fold}", {"dataset.fold": fold}) for fold in range(dataset.folds)]
    elif dataset.repeats > 1:
        seeds = range(config.seed, config.seed + dataset.repeats)
        changes = [(f"seed {seed}", {"seed": seed, "dataset.repeats": 1}) for seed in seeds]
    else:
        return []
    repeats = []
    for index, (name, values) in enumerate(changes):
        own = config.copy_and_resolve_references()
        own.update_from_flattened_dict(values)
        repeats.append(Repeat(workdir / f"split-{index:02}", name, own))
    return repeats


def read_table(path: Path) -> list[dict]:
    """The rows of a table of a run's report, the cells as text.

    Raises:
      UserError: there is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); delete {path.parents[1] / _FINISHED} and start the same "
            "command again"
        ) from error


def summarize(tables: Sequence[Sequence[Mapping]], keys: Sequence[str]) -> list[dict]:
    """Median and spread of every number over the tables of several runs.

    Args:
      tables: one per run, their cells as text.
      keys: the columns that tell a row from the others of its table.

    Returns:
      one row for each that some table has, in order of first appearance, with `runs`, the number of tables that have
      it, and for every other column but the bootstrap intervals (`..._low`, `..._high`): the median under the column's
      own name, then `..._quartile_1`, `..._quartile_3` (linear between ranks), `..._min`, `..._max`, and `..._count`,
      the number of runs in which it is finite: others do not take part. NaN where none is.
    """
    found: dict[tuple, list[Mapping]] = {}
    for table in tables:
        for row in table:
            found.setdefault(tuple(row[key] for key in keys), []).append(row)
    summary = []
    for key, rows in found.items():
        entry = {**dict(zip(keys, key, strict=True)), "runs": len(rows)}
        if "radius" in entry:
            entry["radius"] = number(entry["radius"])
        columns = dict.fromkeys(column for row in rows for column in row)
        for column in columns:
            if column in keys or column.endswith(("_low", "_high")):
                continue
            values = np.array([value(row, column) for row in rows])
            values = values[np.isfinite(values)]
            numbers = np.quantile(values, (0.5, 0.25, 0.75, 0, 1)).tolist() if len(values) else [math.nan] * 5
            names = (column, *(f"{column}_{name}" for name in SPREAD))
            entry |= dict(zip(names, (*numbers, len(values)), strict=True))
        summary.append(entry)
    return summary


def format_table(rows: Sequence[Mapping], others: Sequence[Mapping], title: str) -> str:
    """The medians for a terminal: SRCC with its spread, PLCC and RMSE against MOS, SRCC against the clean scores.

    Args:
      rows, others: the summaries of table.csv and of zero_shot.csv (empty if no other data sets were tested).
      title: the first line.
    """
    over = ["", "SRCC against MOS", "", "", "PLCC", "RMSE", "SRCC against clean", "", ""]
    lines, cells = [], [over]
    for block, of_methods in _blocks(rows, others):
        lines.append(block)
        for name, mos, clean in of_methods:
            middle = (decimals(value(mos, metric), DIGITS[metric]) for metric in ("plcc", "rmse"))
            cells.append([name, *_spread(mos, "srcc"), *middle, *_spread(clean, "srcc")])
            lines.append(cells[-1])
    # The headings of several columns may stick out over them.
    widths = [max(len(line[column]) for line in cells[1:]) for column in range(len(over))]
    widths[4:6] = [max(width, 4) for width in widths[4:6]]
    starts = np.cumsum([2, *(width + 2 for width in widths)]).tolist()
    heading = ""
    for text, start, width in zip(over, starts, widths, strict=False):
        heading = heading.ljust(start) + (text.rjust(width) if text in ("PLCC", "RMSE") else text)

    def layout(line: str | list[str]) -> str:
        if isinstance(line, str):
            return line
        padded = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "  ".join(["", line[0].ljust(widths[0]), *padded]).rstrip()

    return "\n".join(
        [title, "", heading.rstrip(), *map(layout, lines), "", *textwrap.wrap(LEGEND, WIDTH), *_warnings(rows, WIDTH)]
    )


def markdown(rows: Sequence[Mapping], others: Sequence[Mapping], title: str) -> str:
    """All medians with their spread, in Markdown; arguments as of `format_table`."""
    measures = [f"{metric.upper()} {HEADINGS[against]}" for against in HEADINGS for metric in METRICS]
    header = ["attack", "method", *measures, "mean SSIM", "runs"]
    lines = [f"# {plain_text(title)}", "", markdown_row(header), markdown_row(["---", "---", *["---:"] * 8])]
    for block, of_methods in _blocks(rows, others):
        for name, mos, clean in of_methods:
            spreads = (" ".join(_spread(row, metric)).strip() for row in (mos, clean) for metric in METRICS)
            numbers = [decimals(value(mos or clean, "ssim"), 3), str((mos or clean)["runs"])]
            lines.append(markdown_row([plain_text(block), plain_text(name), *spreads, *numbers]))
    return "\n".join([*lines, "", LEGEND, *_warnings(rows)]) + "\n"


def _blocks(rows: Sequence[Mapping], others: Sequence[Mapping]) -> Iterator[tuple[str, list[tuple]]]:
    """'PGD at 2/255' or 'zero-shot on koniq', and each method's name, row against MOS and row against clean scores."""
    for pair in conditions(rows):
        block = []
        for name in methods(rows):
            mos, clean = (find(rows, name, pair, against) for against in HEADINGS)
            if mos or clean:
                block.append((f"{name} !" if findings.doubtful(rows, name, pair) else name, mos, clean))
        yield condition_name(pair), block
    for dataset in dict.fromkeys(row["dataset"] for row in others):
        yield f"zero-shot on {dataset}", [(row["method"], row, None) for row in others if row["dataset"] == dataset]


def _warnings(rows: Sequence[Mapping], width: int = 0) -> list[str]:
    """The reasons to distrust the medians, as the report of a single run gives them."""
    found = findings.warnings(rows)
    lines = ["", "Warnings (!), by the medians", ""] if found else []
    for text in found:
        lines += textwrap.wrap(text, width, initial_indent="- ", subsequent_indent="  ") if width else [f"- {text}"]
    return lines


def _spread(row: Mapping | None, metric: str) -> list[str]:
    """'0.812', '[0.790, 0.830]' and '(0.751 to 0.842)', with the number of runs in which it is defined if not all."""
    digits = DIGITS[metric]
    median, lower, upper, smallest, largest = (
        decimals(value(row, key), digits) for key in (metric, *(f"{metric}_{name}" for name in SPREAD[:4]))
    )
    if row is None or not row.get(f"{metric}_count"):
        return [median, "", ""]
    defined, runs = row[f"{metric}_count"], row["runs"]
    ends = f"({smallest} to {largest})" + (f" in {defined} of {runs}" if defined < runs else "")
    return [median, f"[{lower}, {upper}]", ends]


def _over(config: ml_collections.ConfigDict, repeats: Sequence[Repeat]) -> str:
    if config.dataset.split == "folds":
        return f"{len(repeats)} folds (seed {config.seed})"
    return f"{len(repeats)} random splits (seeds {config.seed} to {repeats[-1].config.seed})"


def _check_workdir(workdir: Path, repeats: Sequence[Repeat]) -> None:
    if (workdir / "split.json").exists():
        raise UserError(f"{workdir} holds the run of one split; give several another --workdir")
    if workdir.exists() and (not workdir.is_dir() or (any(workdir.iterdir()) and not repeats[0].folder.is_dir())):
        raise UserError(f"{workdir} holds something else than a run of several splits; give another --workdir")


def _is_finished(repeat: Repeat) -> bool:
    try:
        return json.loads((repeat.folder / _FINISHED).read_text()) == _stamp(repeat)
    except (OSError, ValueError):  # not there, or not ours
        return False


def _stamp(repeat: Repeat) -> dict:
    """What a finished run was asked for, and a checksum of the table that it left."""
    asked = json.loads(config_lib.to_json(repeat.config))
    for field in ("job", "perceptual", "compilation_cache"):  # have no influence on the table
        asked.pop(field, None)
    table = (repeat.folder / "report" / "table.csv").read_bytes()
    return {"table": hashlib.sha256(table).hexdigest(), "config": asked}
