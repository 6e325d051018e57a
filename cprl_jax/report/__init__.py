"""Tables, figures and one self-contained HTML page from results. It shows numbers and computes none.

`rows` are dictionaries, one per (method, attack, radius, against): `method`, `attack` ('none', 'fgsm', 'pgd', ...),
`radius` (units of 1/255, 0 for none), `against` ('mos': the labels; 'prediction': the model's own clean scores),
`srcc`, `plcc`, `rmse`, and where known `srcc_low`, `srcc_high` (and so on: 95 % interval), `ssim` (mean over the
attacked images), `max_change` (1/255), `zero_gradient_fraction`, `score_std`, `images`. Any number may be NaN.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cprl_jax.report import figures, html, tables
from cprl_jax.report.findings import verdict, warnings
from cprl_jax.report.results import ROW_KEYS, SCORE_KEYS, Row, check, conditions, headline, methods
from cprl_jax.report.tables import format_table

__all__ = ["format_table", "verdict", "warnings", "write"]

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
) -> Path:
    """Writes table.csv, table.md, scores.csv, figures/*.png and report.html into `folder`; returns the page's path.

    Each file appears whole or not at all, the CSV files first. Figures of an earlier report that this one does not
    have are removed. Anything may be empty; what has nothing to show is left out of the page.

    Args:
        folder: made if it does not exist.
        summary: what was trained on what, in a paragraph or several, beneath the title.
        rows: see the module.
        scores: one per (method, attack, radius, image): `method`, `attack`, `radius`, `name`, `mos`, `clean` and
            `score` (before and after the attack), all 0..100, and where known `ssim`, `max_change`.
        examples: images to show: `method`, `name`, `attack`, `radius`, `mos`, `before`, `after`, `image`
            (uint8 [height, width, 3]) and `attacked` (float in [0, 1], same shape).
        histories: method -> rows with `step`, `loss` and any column with 'srcc' in its name; empty cells are skipped.
        config_text: the resolved configuration, shown as it is.
        notes: sentences for the end of the page.

    Raises:
        ValueError: an entry lacks a key, or an example's images do not fit together. Nothing has been written then.
    """
    check(rows, ROW_KEYS, "rows")
    check(scores, SCORE_KEYS, "scores")
    check(examples, EXAMPLE_KEYS, "examples")
    for entry in examples:
        figures.views(entry)  # for its checks: no file must be written before they are passed
    folder = Path(folder)
    _replace(folder / "table.csv", tables.table_csv(rows))
    _replace(folder / "scores.csv", tables.scores_csv(scores))
    _replace(folder / "table.md", tables.markdown(rows, title))

    names = list(dict.fromkeys([*methods(rows), *methods(scores), *histories]))
    pair = headline(conditions(scores))
    pictures = [figures.example(entry, index) for index, entry in enumerate(examples)]
    panels = {
        "curves": figures.curves(rows, names),
        "scatters": figures.scatters(scores, pair, names) if pair else [],
        "changes": figures.changes(scores, pair, names) if pair else [],
        "training": figures.training(histories, names),
    }
    written = set()
    for panel in [*pictures, *(panel for kind in panels.values() for panel in kind)]:
        path = folder / "figures" / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', panel.name)}.png"
        _replace(path, figures.to_png(panel))
        written.add(path)
    for path in (folder / "figures").glob("*.png"):
        if path not in written and path.name.startswith(figures.NAMES):
            path.unlink()
    page = html.page(
        title=title,
        summary=_paragraphs(summary),
        rows=rows,
        scores=scores,
        examples=examples,
        names=names,
        **panels,
        config_text=config_text,
        notes=_paragraphs(notes),
    )
    _replace(folder / "report.html", page)
    return folder / "report.html"


def _paragraphs(text: str | Sequence[str]) -> list[str]:
    return [text] if isinstance(text, str) and text else list(text)


def _replace(path: Path, content: str | bytes) -> None:
    """Writes under a temporary name and renames, so that nobody ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
