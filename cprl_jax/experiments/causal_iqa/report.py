"""The report of Causal-IQA: the table of unseen distortions, figures, and one HTML page. It measures nothing.

`rows` and `averages` are those of `causal_iqa_table`.
"""

import html as html_lib
import importlib.resources
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from cprl_jax.experiments.causal_iqa import figures as pictures
from cprl_jax.experiments.causal_iqa.table import (
    AVERAGE_KEYS,
    ROW_KEYS,
    Table,
    check,
    comparisons,
    corner,
    explanation,
    format_table,
    label,
    markdown,
    note_on_seeds,
    over_seeds,
    shown,
    table_of,
    title_of,
    verdict,
)
from cprl_jax.report import figures, html, tables
from cprl_jax.report import zero_shot as zero_shot_table
from cprl_jax.report.glossary import GLOSSARY
from cprl_jax.report.results import Row
from cprl_jax.runtime.files import write_file

__all__ = ["format_table", "over_seeds", "verdict", "write"]

SALIENCY_KEYS = ("name", "update", "image", "map")
WORDS = {
    "SRCC": GLOSSARY["SRCC"],
    "Held out": "No image with this distortion was in training, and all of them are the test. The photographs beneath "
    "may have been in training, with other distortions.",
    "ERM": "Empirical risk minimisation, the yardstick: plain training, every step on images of all subsets together.",
    "MetaIQA": "Tasks that all begin at the same model: a step on one batch, then one on another. The model moves "
    "along the mean of their ways.",
    "CIS": "Causal-IQA, serial: a step on each subset in turn, after which the model moves towards where they led.",
    "CIP": "Causal-IQA, parallel: one step on the mean loss of all subsets, in which each counts alike; then the model "
    "moves towards where it led.",
    "Subset": "The training images of one distortion and one content. Contents are clusters of photographs that look "
    "alike to a network.",
    "95 % interval": "Where the number would mostly fall had other distortions and seeds been drawn (bootstrap). A "
    "difference whose interval holds 0 may be chance.",
}
_MANY_LINES = 8  # from here what is reported of a division is folded away


def write(
    folder: str | os.PathLike,
    *,
    title: str,
    summary: str | Sequence[str],
    rows: Sequence[Row],
    averages: Sequence[Row],
    zero_shot: Sequence[Row] = (),
    division: Mapping[str, Any] | None = None,
    saliency: Sequence[Mapping[str, Any]] = (),
    histories: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    config_text: str,
    notes: str | Sequence[str] = (),
) -> Path:
    """Writes table.csv, averages.csv, zero_shot.csv, table.md, figures/*.png and report.html; returns the page's path.

    Each file appears whole or not at all, the CSV files first. Figures of an earlier report that this one does not have
    are removed. Anything may be empty; what has nothing to show is left out of the page.

    Args:
      folder: where to; made if it does not exist.
      summary: what was trained on what, in a paragraph or several, beneath the title.
      rows, averages: see `causal_iqa_table`.
      zero_shot: rows of `evaluation.zero_shot.evaluate` with the update as `method`, and `seed` of several.
      division: any of `points` [images, 2], `clusters` [images] and `names` of the clustered images; `sizes`, how many
        images each subset has, by its name; `report`, what a person should know of it, one line each.
      saliency: maps to show: `name`, `update`, `image` (uint8 [height, width, 3]), `map` ([height, width], at least 0).
      histories: update -> rows with `step` and `loss`; empty cells are skipped.
      config_text: the resolved configuration, shown as it is.
      notes: sentences for the end of the page.

    Raises:
      ValueError: an entry lacks a key, or an image and its map do not fit together. Nothing has been written then.
    """
    summary, notes = ([text] if isinstance(text, str) and text else list(text) for text in (summary, notes))
    division, histories = division or {}, histories or {}
    table = table_of(rows, averages)
    check(zero_shot, zero_shot_table.KEYS, "zero_shot")
    check(saliency, SALIENCY_KEYS, "saliency")
    maps = pictures.saliency(saliency)  # for its checks: no file must be written before they are passed
    names = list(dict.fromkeys([*table.updates, *histories, *(str(entry["update"]) for entry in saliency)]))
    panels = {
        "distortions": pictures.by_distortion(rows, names),
        "differences": pictures.differences(rows, averages, names),
        "division": pictures.division(division),
        "training": training(histories, names),
    }
    folder = Path(folder)
    write_file(folder / "table.csv", tables.csv_text(rows, ROW_KEYS))
    write_file(folder / "averages.csv", tables.csv_text(averages, AVERAGE_KEYS))
    if zero_shot:
        write_file(folder / "zero_shot.csv", zero_shot_table.csv(zero_shot))
    else:
        (folder / "zero_shot.csv").unlink(missing_ok=True)
    write_file(folder / "table.md", markdown(rows, averages, title=title, zero_shot=zero_shot, notes=notes))
    every = [*(panel for kind in panels.values() for panel in kind), *maps]
    figures.write_panels(folder / "figures", every, names=pictures.NAMES)
    page = _page(
        title=title,
        summary=summary,
        sentences=verdict(rows, averages),
        table=table,
        panels=panels,
        zero_shot=zero_shot,
        reported=division.get("report", ()),
        saliency=saliency,
        config_text=config_text,
        notes=notes,
    )
    write_file(folder / "report.html", page)
    return folder / "report.html"


def training(histories: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> list[figures.Panel]:
    """The loss of each update over its meta steps, under the updates' titles."""
    titled = {title_of(update): history for update, history in histories.items()}
    return figures.training(titled, [title_of(update) for update in names])


def _page(
    *,
    title: str,
    summary: Sequence[str],
    sentences: str,
    table: Table,
    panels: Mapping[str, Sequence[figures.Panel]],
    zero_shot: Sequence[Row],
    reported: Sequence[str],
    saliency: Sequence[Mapping[str, Any]],
    config_text: str,
    notes: Sequence[str],
) -> str:
    """The page, in the style of the other reports; needs nothing beside it."""
    template = importlib.resources.files(__package__).joinpath("template.html").read_text("utf-8")
    head = Template(template.partition("<body>")[0]).substitute(title=html_lib.escape(title))
    zero = zero_shot_table.html(over_seeds(zero_shot))
    if zero and (note := note_on_seeds(zero_shot)):
        zero += f'<p class="hint">{html.prose(note)}</p>'
    marks = "an update" if table.seeds == 1 else "the mean of an update, a faint dot one seed"
    best = " Bold is the best of a line." if len(table.updates) > 1 else ""
    body = [
        *(f'<p class="soft">{html_lib.escape(text)}</p>' for text in summary),
        "</header><main>",
        f'<p class="verdict">{_strong(sentences)}</p>',
        html.section(
            "Distortions that training did not see" if table.held_out else "Distortions of the test part",
            html.prose(explanation(table)) + best,
            _table(table),
        ),
        html.section(
            "Distortion by distortion",
            f"A mark is {marks}; the distortions are in the order of ERM's SRCC. "
            "In the figure of differences the mark is the average, the bar its 95 % interval, a faint dot one "
            "distortion; right of the line is better than ERM.",
            html.panel_grid([*panels["distortions"], *panels["differences"]], "pairs"),
        ),
        zero,
        html.section(
            "How the training images were divided",
            "First the images that were clustered by content, seen "
            "along the two directions in which they differ most; the clusters come from more directions than "
            "these two. Then the subsets: a bar for a distortion, a piece for each content of it, grey where "
            "contents were joined.",
            html.panel_grid(panels["division"], "pairs") + _report_of(reported),
        ),
        html.section(
            "Where the model looks",
            "Saliency: how much the score would change with each pixel, dark for "
            "little and bright for much. Each map has its own scale: compare places, not brightness.",
            _saliency(saliency),
        ),
        html.section(
            "Training",
            "The faint line is the loss of each meta step, the strong one its running mean. CIS "
            "and MetaIQA adapt between the batches of a meta step, so that their losses are not those of one "
            "model: compare the course, not the height.",
            html.panel_grid(panels["training"]),
        ),
        html.notes_section(notes),
        html.configuration_section(config_text),
        html.section("What the words mean", "", _words(table)),
        "</main><footer>The same numbers lie beside this page: <code>table.csv</code> (every distortion and seed, PLCC "
        "too), <code>averages.csv</code>, <code>table.md</code>, <code>zero_shot.csv</code> (where other sets were "
        "tested) and <code>figures/</code> (PNG).</footer>",
    ]
    return f"{head}<body>\n<header>\n<h1>{html_lib.escape(title)}</h1>\n" + "\n".join(body) + "\n</body>\n</html>\n"


def _strong(text: str) -> str:
    """Escaped, numbers with an interval in bold."""
    return re.sub(r"[+−]?\d\.\d{3} \[[^\]]*\]", r"<b>\g<0></b>", html.prose(text))


def _table(table: Table) -> str:
    if not table.distortions:
        return ""
    titles = "".join(f"<th>{html.name_tag(title_of(update))}</th>" for update in table.updates)
    lines = []
    for distortion in (*table.distortions, None):
        images = "" if distortion is None else table.images[distortion]
        cells = [f'<th scope="row">{html.name_tag(label(distortion))}</th><td>{images}</td>']
        for update in table.updates:
            mean, small = (html.prose(text) for text in shown(table, distortion, update))
            best = update in table.best(distortion)
            if distortion is None:
                opened = f"<td><b>{mean}</b>" if best else f"<td>{mean}"
            else:
                opened = f"<td {_heat(table.cells[distortion, update].mean, best)}>{mean}"
            cells.append(opened + (f"<small>{small}</small></td>" if small else "</td>"))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.insert(-1, f'</tbody><tbody><tr class="condition"><th colspan="{2 + len(table.updates)}"></th></tr>')
    compared = dict.fromkeys(table.updates, ("", "", "")) | {update: found for update, *found in comparisons(table)}
    if any(wins for *_, wins in compared.values()):
        for name, place in (("average less ERM's", 0), ("better than ERM in", 2)):
            cells = "".join(_difference_cell(compared[update], place) for update in table.updates)
            lines.append(f'<tr><th scope="row">{name}</th><td></td>{cells}</tr>')
    head = f"<thead><tr><th>{corner(table)}</th><th>images</th>{titles}</tr></thead>"
    return f'<div class="card scroll"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _difference_cell(found: Sequence[str], place: int) -> str:
    small = f"<small>{html.prose(found[1])}</small>" if place == 0 and found[1] else ""
    return f"<td>{html.prose(found[place])}{small}</td>"


def _heat(srcc: float, best: bool) -> str:
    """Blue for correlation, orange for its reverse, none for what is missing."""
    heat = 0.42 * abs(srcc) if math.isfinite(srcc) else 0.0
    kind = ("bad" if srcc < 0 else "good") + (" best" if best else "")
    return f'class="heat {kind}" style="--heat: {heat:.2f}"'


def _report_of(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    first, *rest = map(html.prose, lines)
    items = "".join(f"<li>{line}</li>" for line in rest)
    if not items:
        return f"<p>{first}.</p>"
    opened = "" if len(rest) >= _MANY_LINES else " open"
    return f'<details class="card beneath"{opened}><summary>{first}</summary><ul>{items}</ul></details>'


def _saliency(entries: Sequence[Mapping[str, Any]]) -> str:
    """A card per image: the image, and beside it the map of each update over it."""
    cards = []
    for name, own in pictures.by_image(entries).items():
        views = [("image", own[0]["image"])]
        views += [(title_of(str(entry["update"])), pictures.overlay(entry)) for entry in own]
        images = "".join(
            f"<div>{html.image_tag(pixels, html_lib.escape(caption))}<p>{html.name_tag(caption)}</p></div>"
            for caption, pixels in views
        )
        cards.append(
            f'<figure class="card example"><figcaption>{html.name_tag(name)}</figcaption>'
            f'<div class="views" style="grid-template-columns: repeat({len(views)}, 1fr)">{images}</div></figure>'
        )
    return "".join(cards)


def _words(table: Table) -> str:
    """Explains what the page speaks of."""
    unused = {"MetaIQA", "CIS", "CIP", "ERM"} - set(map(title_of, table.updates))
    if not table.held_out:
        unused.add("Held out")
    entries = (f"<dt>{word}</dt><dd>{html.prose(text)}</dd>" for word, text in WORDS.items() if word not in unused)
    return f"<dl>{''.join(entries)}</dl>" if table.distortions else ""
