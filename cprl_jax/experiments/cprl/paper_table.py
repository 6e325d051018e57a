"""The job `paper_table`: the cells of one of CPRL's tables, ours beside the printed number and their difference.

WORKDIR/NETWORK/          the run of the rows on a network, an ordinary run of CPRL (or of several splits)
WORKDIR/NETWORK-pRATE/    Table 5: the one with that mask rate
WORKDIR/report/           table3.csv and table3.md, and so on
"""

import itertools
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import logging

from cprl_jax import models
from cprl_jax.config import defaults as config_lib
from cprl_jax.evaluation import table_attacks
from cprl_jax.experiments import repeats
from cprl_jax.experiments.cprl import experiment, paper_tables, published
from cprl_jax.experiments.cprl.paper_tables import Row, Run
from cprl_jax.experiments.cprl.results import CLEAN, condition, conditions
from cprl_jax.experiments.cprl.tables import beyond_the_paper
from cprl_jax.methods import title as method_title
from cprl_jax.report import page
from cprl_jax.report.agreement import METRICS
from cprl_jax.report.table import Column, Table, csv_text
from cprl_jax.report.values import decimals, distinct, number, value
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import TrainingDiverged, UserError
from cprl_jax.runtime.files import check_workdir, user_path, write_file
from cprl_jax.runtime.program import show

KEYS = ("table", "row", "printed", "method", "network", "p", "attack", "radius", "against")
DONE = "weights.npz"  # in the folder of a method whose training has ended
_AGAINST = {"mos": "MOS", "prediction": "the model's clean scores"}


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains and attacks what a table lacks, and prints the table.

    A row that cannot be computed costs none of another run; one whose training diverges costs none at all.

    Raises:
      UserError: no row of the table can be computed, or `workdir` holds something else. Where some rows could not be
        computed, it is raised after the others have been printed.
    """
    workdir = user_path(workdir, field="workdir").resolve()
    _check_workdir(workdir)
    runs, problems = paper_tables.plan(config)
    if runs and parallel.is_main_process():
        write_file(workdir / "config.json", config_lib.to_json(config))
    for planned in runs:
        if parallel.is_main_process():
            _take_what_is_trained(planned, workdir / planned.folder)
        parallel.barrier("trained models taken")
        try:
            _run(planned.config, workdir / planned.folder)
        except TrainingDiverged:
            problems |= _run_row_by_row(planned, workdir / planned.folder)
        except UserError as error:
            logging.warning("%s: %s", planned.folder, error)
            problems |= dict.fromkeys(planned.rows, str(error))
    if parallel.is_main_process() and (cells := lines(config, runs, workdir, without=problems)):
        _present(config, cells, workdir)
    if problems:
        reasons: dict[str, list[str]] = {}
        for row, reason in problems.items():
            reasons.setdefault(reason, []).append(row.name)
        told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        raise UserError(f"Table {config.paper_table.number} lacks {len(problems)} of its rows. {told}")


def _check_workdir(workdir: Path) -> None:
    if not (workdir / "config.json").exists():
        check_workdir(workdir, entry="config.json", content="one of the paper's tables")
    elif (job := config_lib.read_config(workdir).job) != "paper_table":
        raise UserError(f"{workdir} holds a run of the job {job!r}; give another --workdir")


def _run(config: ml_collections.ConfigDict, folder: Path) -> None:
    repeats.run(config, folder, run_one=experiment.run, present=experiment.medians)


def _run_row_by_row(planned: Run, folder: Path) -> dict[Row, str]:
    """The run without the rows whose training diverges, which are returned with the reason."""
    problems: dict[Row, str] = {}
    for row in planned.rows:
        try:
            _run(paper_tables.restricted(planned.config, [row], job="train"), folder)
        except TrainingDiverged as error:
            logging.warning("%s", error)
            problems[row] = str(error)
    if kept := [row for row in planned.rows if row not in problems]:
        _run(paper_tables.restricted(planned.config, kept), folder)
    return problems


def _take_what_is_trained(planned: Run, folder: Path) -> None:
    """Copies the methods that others start from out of a neighbouring run that differs in the mask rate alone.

    Without masks of their own, they would end with the same parameters, bit for bit, if they were trained again.
    """
    config, free = planned.config, ("methods", "model.sort_mask.rate")
    for target in repeats.plan(config, folder) or [repeats.Repeat(folder, "", config)]:
        for neighbour, start in itertools.product(sorted(folder.parent.glob("*")), paper_tables.shared_starts(config)):
            source, copy = neighbour / target.folder.relative_to(folder), target.folder / f".{start}.copy"
            if (target.folder / start).exists() or not (source / start / DONE).exists():
                continue
            try:
                config_lib.check_same_run(source / "config.json", target.config, free=free)
            except UserError:
                continue
            logging.info("%s: %s is taken from %s", planned.folder, start, source)
            target.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source / start, copy)
            shutil.copyfile(source / "split.json", target.folder / "split.json")
            os.replace(copy, target.folder / start)


def lines(
    config: ml_collections.ConfigDict, runs: Sequence[Run], workdir: Path, *, without: Collection[Row] = ()
) -> list[dict[str, Any]]:
    """The cells of a table, from the reports of its runs.

    Args:
      without: rows that could not be computed.

    Returns:
      one for each (row, attack, radius, against): `KEYS`; all other columns of the run's table.csv (of several splits,
      medians); and of each metric `published_...` and `difference_...` (ours less the paper's), NaN where the paper
      has none; `title`, by what ran; `note`, what the paper says elsewhere of its number.
    """
    wanted = config.paper_table.published or config.dataset.name
    dataset, printed = published.dataset_of(config.paper_table.number, wanted), published.read()
    found = []
    for planned in runs:
        rows = [row for row in planned.rows if row not in without]
        measured = repeats.read_table(workdir / planned.folder / "report" / "table.csv") if rows else []
        network = models.network_of(planned.config.model).described(planned.config.model.backbone)
        for row in rows:
            about = {"table": config.paper_table.number, "row": row.name, "printed": row.printed, "method": row.method}
            about |= {"network": network, "p": row.rate, "title": method_title(row.method, planned.config[row.method])}
            for ours in measured:
                if ours["method"] == row.method and (condition(ours), ours["against"]) != (CLEAN, "prediction"):
                    paper = published.find(
                        printed,
                        table=config.paper_table.number,
                        dataset=dataset,
                        method=row.printed,
                        p=row.rate,
                        attack=ours["attack"].partition(":")[0],
                        against=ours["against"],
                    )
                    found.append(about | ours | _compared(ours, paper))
    order = {pair: place for place, pair in enumerate(conditions(found))}
    return sorted(found, key=lambda cell: order[condition(cell)])


def _compared(ours: Mapping[str, Any], paper: Mapping[str, Any] | None) -> dict[str, Any]:
    numbers: dict[str, Any] = {metric: number(ours[metric]) for metric in METRICS}
    for metric in METRICS:
        numbers[f"published_{metric}"] = value(paper, metric)
        numbers[f"difference_{metric}"] = numbers[metric] - value(paper, metric)
    return numbers | {"radius": number(ours["radius"]), "note": (paper or {}).get("note", "")}


def _present(config: ml_collections.ConfigDict, cells: Sequence[Mapping[str, Any]], workdir: Path) -> None:
    """Writes report/tableN.csv and .md, and prints the table."""
    name = f"table{config.paper_table.number}"
    title = f"CPRL, Table {config.paper_table.number}, on the {config.dataset.name} data set: ours beside the paper's"
    parts = [*tables(config, cells), page.Section("How to read it", [notes(config, cells)])]
    write_file(workdir / "report" / f"{name}.csv", csv_text(cells, KEYS))
    write_file(workdir / "report" / f"{name}.md", page.markdown(title, parts))
    show(f"\n{page.terminal([title, *parts])}\n\nTable: {workdir / 'report' / name}.md")


def tables(config: ml_collections.ConfigDict, cells: Sequence[Mapping[str, Any]]) -> list[Table]:
    """What is printed: against MOS, and against the clean scores where the paper has that too."""
    titles = {condition.label: condition.title for condition in table_attacks.conditions(config.evaluation)}
    clean = {(*_row(cell), condition(cell)): cell["srcc"] for cell in cells if cell["against"] == "prediction"}

    def block(cell: Mapping[str, Any]) -> str:
        attack, radius = condition(cell)
        if (attack, radius) == CLEAN:
            return "no attack"
        return titles.get(attack, attack) + (f" at {radius:g}/255" if radius else "")

    made = []
    for against, word in _AGAINST.items():
        shown = [dict(cell) for cell in cells if cell["against"] == against]
        if against == "prediction" and not any(math.isfinite(cell["published_srcc"]) for cell in shown):
            continue
        columns = [Column("printed", "printed as", text=lambda cell: cell["printed"] or "control")]
        for metric, digits in METRICS.items():
            columns += [
                Column(metric, "ours", group=metric.upper(), digits=digits),
                Column(f"published_{metric}", "paper", group=metric.upper(), digits=digits),
                Column(
                    f"difference_{metric}",
                    "less",
                    group=metric.upper(),
                    text=lambda cell, metric=metric, digits=digits: decimals(
                        cell[f"difference_{metric}"], digits, signed=True
                    ),
                ),
            ]
        if against == "mos":
            for cell in shown:
                cell["clean_srcc"] = clean.get((*_row(cell), condition(cell)), math.nan)
            columns.append(Column("clean_srcc", "to clean", group="attacked"))
            columns.append(Column("ssim", "SSIM", group="attacked"))
            columns += beyond_the_paper(shown)
        made.append(
            Table(
                shown,
                columns,
                line=("attack", "radius", "row"),
                heading=f"against {word}",
                name=_name,
                subtitle=lambda cell: cell["title"],
                block=block,
                block_heading="attack",
                legend="Less: ours less the paper's." + " To clean: SRCC to the clean scores." * (against == "mos"),
            )
        )
    return made


def _name(cell: Mapping[str, Any]) -> str:
    """'cprl on hyperiqa (resnet50), p = 0.1'."""
    return f"{cell['method']} on {cell['network']}" + (f", p = {cell['p']}" if cell["p"] else "")


def _row(cell: Mapping[str, Any]) -> tuple[str, str]:
    return cell["row"], cell["network"]


def notes(config: ml_collections.ConfigDict, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What has to be known to compare the two."""
    table, wanted = config.paper_table.number, config.paper_table.published or config.dataset.name
    dataset = published.dataset_of(table, wanted)
    said = [
        "The paper states no radius, number of steps or amplitude of its attacks: its number stands beside each of "
        "ours.",
        *experiment.notes_on_labels(config),
    ]
    if any(not cell["printed"] for cell in cells):
        said.append("Controls are not in the paper; plain_longer has as many image gradients as CPRL.")
    if table == 3 and not dataset:
        said.append(
            f"Table 3 has no column for {wanted}; config.paper_table.published names the one that is to stand here."
        )
    elif dataset and dataset != config.dataset.name:
        said.append(f"The printed numbers are of {dataset}, ours of {config.dataset.name}: other images.")
    networks = distinct([cell for cell in cells if cell["printed"]], "network")
    if config.model.name != paper_tables.NETWORK:
        said.append(f"The paper's defences are on HyperNet or ResNet, ours on {', '.join(networks)}.")
    for note in filter(None, dict.fromkeys(cell["note"] for cell in cells)):
        where = dict.fromkeys(cell["printed"] for cell in cells if cell["note"] == note)
        said.append(f"Of the paper's {', '.join(where)}: {note}.")
    return said
