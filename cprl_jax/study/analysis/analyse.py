"""From answers to verdicts, JNDs and the paper's tables, in one folder."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cprl_jax.config.defaults import read_config
from cprl_jax.experiments.perceptual import intervals, observers, results
from cprl_jax.report.table import Table
from cprl_jax.report.values import number
from cprl_jax.runtime.errors import UserError
from cprl_jax.study.analysis import detection, exclusion, page, thresholds
from cprl_jax.study.analysis.answers import Answers, Row, seen
from cprl_jax.study.catalogue import read_report

_TEXTS = ("model", "network", "attacked", "fidelity", "image", "file")


def run(folder: Path, answers: Answers, out: Path, *, shape: str = "gaussian") -> list[Table | str]:
    """Writes counted.csv (which the job reads), observers.csv, verdicts.csv, counterexamples.csv, jnd.csv, intra.csv,
    transfer.csv, published.csv, tables.md and report.html; returns the tables for a terminal.

    Args:
      folder: of the run whose candidates were shown.
      answers: see `answers.read`.
      out: the folder to write.
      shape: of the psychometric functions.

    Raises:
      UserError: no report in the run, answers about other candidates, or none that count.
    """
    candidates, known, others = read_run(folder)
    _check(answers, candidates, folder)
    counted = exclusion.apply(answers)
    if not counted.tests:
        reasons = sorted({row["excluded"] for row in counted.observers if row["excluded"]})
        raise UserError(f"no answer counts: {'; '.join(reasons) or 'no pair was answered'} (see the exclusion rules)")
    rows = counted_rows(answers, counted.tests)
    observations = observers.collect(rows)
    cells: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in candidates:
        cells[row["model"], row["fidelity"], row["image"]].append(row)
    counterexamples = [
        results.choose(group, observations=observations, mos=known[cell]["mos"], seconds=known[cell]["seconds"])
        for cell, group in cells.items()
    ]
    config = read_config(folder)
    base, seed = config.perceptual.logarithm, config.seed
    tables = intervals.tables(candidates, counterexamples, others, observations=observations, base=base, seed=seed)
    return page.write(
        out,
        answers=answers,
        counted=counted,
        rows={
            "counted": rows,
            "observers": counted.observers,
            "verdicts": _verdicts(candidates, counted.catches, answers.trial),
            "counterexamples": counterexamples,
            "jnd": thresholds.rows(answers, counted.tests, counted.catches, shape=shape, seed=seed),
            **tables,
        },
        candidates=candidates,
        examples=results.examples(counterexamples, candidates, count=config.perceptual.examples, folder=folder),
        logarithm=base,
        limit=observations.limit,
        shape=shape,
        missing_transfer=not others and len({row["model"] for row in candidates}) > 1,
    )


def counted_rows(answers: Answers, tests: Sequence[Row]) -> list[Row]:
    """A row of `observers.COLUMNS` for each answer and candidate; candidates with the same pixels share answers."""
    candidates: dict[str, list[Row]] = defaultdict(list)
    for pair in answers.pairs:
        candidates[pair["pair"]].append(pair)
    return [
        {
            "observer": row["observer"],
            "trial": answers.trial,
            **{key: pair[key] for key in ("model", "fidelity", "image", "candidate")},
            "seen": int(seen(row, answers.trial)),
        }
        for row in tests
        for pair in candidates[row["pair"]]
    ]


def read_run(folder: Path) -> tuple[results.Rows, dict[tuple[str, str, str], Row], results.Others]:
    """The candidates of a run, MOS and seconds of its cells, and what other models say of the candidates.

    Raises:
      UserError: there is no report, one of an earlier version, or one with a damaged distance.
    """
    candidates = _read(folder / "report" / "candidates.csv", needed=("zero_gradient_fraction", "max_change", "ssim"))
    for row in candidates:
        row["imperceptible"] = ""
        if not math.isfinite(row["distance"]):
            raise UserError(
                f"{folder / 'report' / 'candidates.csv'}: the distance of candidate {row['candidate']} of "
                f"{row['model']}, {row['fidelity']}, {row['image']} is no number; give the run's command again"
            )
    known = {
        (row["model"], row["fidelity"], row["image"]): row
        for row in _read(folder / "report" / "counterexamples.csv", needed=("mos", "seconds"))
    }
    path = folder / "report" / "transfer_scores.csv"
    scores: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in _read(path, needed=("attacked", "before", "after")) if path.exists() else []:
        scores[row["model"], row["attacked"], row["fidelity"], row["image"]].append(row)
    others = {cell: (rows[0]["before"], np.array([row["after"] for row in rows])) for cell, rows in scores.items()}
    return candidates, known, others


def _read(path: Path, *, needed: Sequence[str]) -> list[dict[str, Any]]:
    """A CSV file of the run's report; what is no text is a number."""
    whole = {"candidate": int, "found": lambda text: bool(int(text)), "below_threshold": lambda text: bool(int(text))}
    return [
        {name: text if name in _TEXTS else whole.get(name, number)(text) for name, text in row.items()}
        for row in read_report(path, needed=needed)
    ]


def _check(answers: Answers, candidates: results.Rows, folder: Path) -> None:
    """That the pairs are candidates of this run, with the same distances."""
    distances = {(row["model"], row["fidelity"], row["image"], row["candidate"]): row["distance"] for row in candidates}
    for pair in answers.pairs:
        cell = tuple(pair[key] for key in ("model", "fidelity", "image", "candidate"))
        if cell not in distances or not np.isclose(distances[cell], pair["distance"], rtol=1e-4, atol=1e-9):
            raise UserError(
                f"the answers are about another run than {folder}, which has no candidate {cell[3]} of "
                f"{', '.join(cell[:3])} at a distance of {pair['distance']:g}; give its --run, or ask observers again"
            )


def _verdicts(candidates: results.Rows, catches: Sequence[Row], trial: str) -> list[Row]:
    """The candidates that somebody was asked about: shares, verdicts, d'."""
    identical = [seen(row, trial) for row in catches if row["role"] == "catch_same"]
    false_alarms = detection.rate(sum(identical), len(identical))
    kept = ("distance", "ssim", "max_change", "change", "answers", "seen", "share_seen", "share_seen_low")
    rows = []
    for row in (row for row in candidates if row["answers"]):
        verdict = {key: row[key] for key in ("model", "fidelity", "image", "candidate", *kept, "share_seen_high")}
        verdict |= {"below_jnd": row["imperceptible"], "selected": row["selected"], "d_prime": ""}
        if identical or trial == "2afc":
            share = detection.rate(row["seen"], row["answers"])
            verdict["d_prime"] = float(thresholds.sensitivity(share, false_alarms, trial))
        rows.append(verdict)
    return rows
