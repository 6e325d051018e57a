"""Tables, figures and one self-contained HTML page from results. It shows numbers and computes none.

`rows` are dictionaries, one per (method, attack, radius, against): `method`, `attack` ('none', 'fgsm', 'pgd', ...),
`radius` (units of 1/255, 0 for none), `against` ('mos': the labels; 'prediction': the model's own clean scores),
`srcc`, `plcc`, `rmse`, and where known `srcc_low`, `srcc_high` (and so on: 95 % interval), `ssim` (mean over the
attacked images), `max_change` (1/255), `zero_gradient_fraction`, `score_std`, `images`. Any number may be NaN.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cprl_jax.report import figures, html, robustness_figures, tables
from cprl_jax.report import zero_shot as zero_shot_table
from cprl_jax.report.findings import trust_verdict, verdict, warnings
from cprl_jax.report.results import ROW_KEYS, SCORE_KEYS, Row, check, conditions, headline, methods
from cprl_jax.report.tables import format_table
from cprl_jax.report.zero_shot import terminal as format_zero_shot
from cprl_jax.runtime.files import write_file

__all__ = ["format_table", "format_zero_shot", "trust_verdict", "verdict", "warnings", "write"]

CHECK_KEYS = ("name", "verdict", "numbers", "explanation")
EXAMPLE_KEYS = ("method", "name", "attack", "radius", "mos", "before", "after", "image", "attacked")


def write(
    folder: str | os.PathLike,
    *,
    title: str,
    summary: str | Sequence[str],
    rows: Sequence[Row],
    scores: Sequence[Row],
    examples: Sequence[Mapping[str, Any]],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    config_text: str,
    notes: str | Sequence[str],
    robustness: Sequence[Mapping[str, Any]] = (),
    zero_shot: Sequence[Row] = (),
) -> Path:
    """Writes report.html, table.csv, table.md, scores.csv, trust.csv, zero_shot.csv, figures/*.png; returns the page.

    Each file appears whole or not at all, the CSV files first. Figures of an earlier report that this one does not
    have are removed. Anything may be empty; what has nothing to show is left out of the page.

    Args:
        folder: where to; made if it does not exist.
        summary: what was trained on what, in a paragraph or several, beneath the title.
        rows: see the module.
        scores: one per (method, attack, radius, image): `method`, `attack`, `radius`, `name`, `mos`, `clean` and
            `score` (before and after the attack), all 0..100, and where known `ssim`, `max_change`.
        examples: images to show: `method`, `name`, `attack`, `radius`, `mos`, `before`, `after`, `image`
            (uint8 [height, width, 3]) and `attacked` (float in [0, 1], same shape).
        histories: method -> rows with `step`, `loss` and any column with 'srcc' in its name; empty cells are skipped.
        config_text: the resolved configuration, shown as it is.
        notes: sentences for the end of the page.
        robustness: one entry per method, with `method` and any of: `checks`, a list of what `robustness.trust.check`
            found, each with `name`, `verdict`, `numbers`, `explanation`; `landscape`, with `image` (its name), `scores`
            [points, points], `along_gradient` and `along_random` (1/255), `zero_gradient_fraction`; and `integrals`,
            attack -> integral robustness of the curve of SRCC against MOS.
        zero_shot: one entry per method and other data set: `method`, `dataset`, `images`, `srcc`, `plcc`, `rmse` and
            their intervals.

    Raises:
        ValueError: an entry lacks a key, or an example's images do not fit together. Nothing has been written then.
    """
    check(rows, ROW_KEYS, "rows")
    check(scores, SCORE_KEYS, "scores")
    check(examples, EXAMPLE_KEYS, "examples")
    for entry in robustness:
        for index, found in enumerate(entry.get("checks", ())):
            if missing := [key for key in CHECK_KEYS if key not in found]:
                raise ValueError(f"robustness: checks[{index}] of {entry['method']} lacks {', '.join(missing)}")
    for entry in examples:
        figures.views(entry)  # for its checks: no file must be written before they are passed
    folder = Path(folder)
    write_file(folder / "table.csv", tables.table_csv(rows))
    write_file(folder / "scores.csv", tables.scores_csv(scores))
    shown = tables.markdown(rows, title)
    write_file(folder / "table.md", f"{shown}\n{zero_shot_table.markdown(zero_shot)}" if zero_shot else shown)

    checked = any(entry.get("checks") for entry in robustness)
    for name, text in (
        ("trust.csv", tables.trust_csv(robustness) if checked else ""),
        ("zero_shot.csv", zero_shot_table.csv(zero_shot) if zero_shot else ""),
    ):
        if text:
            write_file(folder / name, text)
        else:
            (folder / name).unlink(missing_ok=True)

    names = list(dict.fromkeys([*methods(rows), *methods(scores), *histories, *methods(robustness)]))
    pair = headline(conditions(scores))
    pictures = [figures.example(entry, index) for index, entry in enumerate(examples)]
    panels = {
        "curves": figures.curves(rows, names),
        "scatters": figures.scatters(scores, pair, names) if pair else [],
        "changes": figures.changes(scores, pair, names) if pair else [],
        "training": figures.training(histories, names),
        "landscapes": robustness_figures.landscapes(robustness, names),
        "strengths": robustness_figures.strengths(robustness, names),
    }
    every = [*pictures, *(panel for kind in panels.values() for panel in kind)]
    figures.write_panels(folder / "figures", every, names=figures.NAMES)
    page = html.page(
        title=title,
        summary=_paragraphs(summary),
        rows=rows,
        scores=scores,
        examples=examples,
        names=names,
        robustness=robustness,
        sections=zero_shot_table.html(zero_shot),
        **panels,
        config_text=config_text,
        notes=_paragraphs(notes),
    )
    write_file(folder / "report.html", page)
    return folder / "report.html"


def _paragraphs(text: str | Sequence[str]) -> list[str]:
    return [text] if isinstance(text, str) and text else list(text)
