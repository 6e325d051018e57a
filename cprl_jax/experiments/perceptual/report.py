"""The report of a perceptual attack: tables in the paper's layout, figures, and one HTML page. It computes nothing.

`intra`: a row per (model, fidelity) with `images`, `of`, `srcc_before`, `srcc`, `r`, `mean_change`, `mean_ssim`,
`lowest_ssim`, `moved`. `transfer`: a row per (`model` under test, `attacked` model, fidelity) with `images`, `srcc`,
`r`, `mean_change`. Numbers may be NaN (unknown); `r` is infinite where a score did not change at all.
"""

import html as html_lib
import importlib.resources
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from cprl_jax.report import figures, html, tables
from cprl_jax.report.figures import INK, Panel, legend, panel_of, styled
from cprl_jax.report.results import Row, decimals, number, shorten
from cprl_jax.runtime.files import write_file

HEADINGS = {"chebyshev": "Chebyshev", "ssim": "SSIM", "lpips": "LPIPS", "dists": "DISTS"}
_BASES = {"e": "ln", "2": "log2", "10": "log10"}
_FIGURES = ("perceptual_", "example_")  # how the figures' file names begin
_ALL_FLAT = 1e-6  # distances below what float32 resolves of 1 are not drawn


class Table(NamedTuple):
    """Cells as text under two levels of headings; the first column of a line is its name."""

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    lines: tuple[tuple[str, ...], ...]

    @property
    def header(self) -> tuple[str, ...]:
        return ("", *(column for _, columns in self.groups for column in columns))


def write(
    folder: str | os.PathLike,
    *,
    title: str,
    summary: Sequence[str],
    candidates: Sequence[Row],
    counterexamples: Sequence[Row],
    intra: Sequence[Row],
    transfer: Sequence[Row],
    examples: Sequence[Mapping[str, Any]],
    thresholds: Mapping[str, float],
    logarithm: str,
    config_text: str,
    notes: Sequence[str],
) -> Path:
    """Writes candidates, counterexamples, intra and transfer as .csv, tables.md, figures/*.png and report.html.

    Each file appears whole or not at all. Returns the page's path.

    Args:
      candidates: one per model, fidelity, image and multiplier, with `before`, `after`, `distance`, `ssim`, `selected`.
      counterexamples: one per model, fidelity and image, with `found`, `before`, `after`, `distance`, `ssim`.
      examples: counterexamples to show, with `pixels` and `attacked`, uint8 [height, width, 3].
      thresholds: fidelity -> the largest distance that counted as invisible.
      logarithm: the base of R's: "e", "2" or "10".
    """
    folder = Path(folder)
    for name, rows in (
        ("candidates", candidates),
        ("counterexamples", counterexamples),
        ("intra", intra),
        ("transfer", transfer),
    ):
        write_file(folder / f"{name}.csv", tables.csv_text(rows, ("model",)))
    write_file(folder / "tables.md", markdown(intra, transfer, title=title, logarithm=logarithm, notes=notes))
    names = _names(intra)
    panels = [*trade_offs(candidates, thresholds, names), *changes(counterexamples, names)]
    every = [*panels, *(_example_panel(entry, index) for index, entry in enumerate(examples))]
    figures.write_panels(folder / "figures", every, names=_FIGURES)
    write_file(
        folder / "report.html",
        page(
            title=title,
            summary=summary,
            intra=intra,
            transfer=transfer,
            examples=examples,
            panels=panels,
            logarithm=logarithm,
            config_text=config_text,
            notes=notes,
        ),
    )
    return folder / "report.html"


def intra_table(rows: Sequence[Row], *, logarithm: str) -> Table:
    """Table 1 of the paper: a line per model, under each measure a column per fidelity."""
    fidelities = tuple(dict.fromkeys(row["fidelity"] for row in rows))
    columns = tuple(_heading(name) for name in fidelities)
    labelled = any(math.isfinite(number(row["srcc"])) for row in rows)
    groups = [("SRCC", ("before", *columns))] if labelled else []
    groups += [
        (f"R ({_BASES[logarithm]})", columns),
        ("mean change", columns),
        ("mean SSIM", columns),
        ("moved", columns),
    ]
    lines = []
    for model in _names(rows):
        own = {row["fidelity"]: row for row in rows if row["model"] == model}
        line = [model]
        if labelled:
            line += [decimals(number(max(own.values(), key=lambda row: row["images"])["srcc_before"]), 3)]
            line += [_cell(own, name, "srcc", 3) for name in fidelities]
        for key, digits in (("r", 3), ("mean_change", 2), ("mean_ssim", 4)):
            line += [_cell(own, name, key, digits) for name in fidelities]
        line += [f"{own[name]['moved']}/{own[name]['of']}" if name in own else "" for name in fidelities]
        lines.append(tuple(line))
    return Table(tuple(groups), tuple(lines))


def transfer_table(intra: Sequence[Row], transfer: Sequence[Row], *, logarithm: str) -> Table | None:
    """Table 2: a line per model under test and fidelity, a column per attacked model; None for a single model.

    Where the model under test is the attacked one, the cell is that of Table 1, in brackets.
    """
    if not transfer:
        return None
    models = _names(intra)
    labelled = any(math.isfinite(number(row["srcc"])) for row in transfer)
    measures = [("srcc", "SRCC", 3)] if labelled else []
    measures += [("r", f"R ({_BASES[logarithm]})", 3), ("mean_change", "mean change", 2)]
    lines = []
    for model in models:
        for fidelity in dict.fromkeys(row["fidelity"] for row in intra):
            own = {row["attacked"]: row for row in transfer if row["model"] == model and row["fidelity"] == fidelity}
            own[model] = next(row for row in intra if row["model"] == model and row["fidelity"] == fidelity)
            line = [f"{model}, {_heading(fidelity)}"]
            for key, _, digits in measures:
                cells = [_cell(own, attacked, key, digits) for attacked in models]
                line += [f"[{cell}]" if name == model else cell for name, cell in zip(models, cells, strict=True)]
            lines.append(tuple(line))
    return Table(tuple((title, tuple(models)) for _, title, _ in measures), tuple(lines))


INTRA_LEGEND = (
    "SRCC of scores and MOS, over the originals (before) and over originals and counterexamples together, which keep "
    "the MOS of their originals. R: mean logarithm of the largest possible over the actual change of score; smaller is "
    "easier to fool, ∞ is a score that did not move. Mean change: of the score, in points of 10. Moved: images whose "
    "score changes by more than 1 of 10 at an SSIM of at least 0.98, of all images."
)
TRANSFER_LEGEND = (
    "Lines: the model under test. Columns: the model that the counterexamples were made for; in brackets the model's "
    "own, as in the table before."
)


def format_tables(intra: Sequence[Row], transfer: Sequence[Row], *, logarithm: str) -> str:
    """Both tables for a terminal."""
    parts = [_text(intra_table(intra, logarithm=logarithm)), textwrap.fill(INTRA_LEGEND, tables.WIDTH)]
    if (table := transfer_table(intra, transfer, logarithm=logarithm)) is not None:
        parts += [_text(table), textwrap.fill(TRANSFER_LEGEND, tables.WIDTH)]
    return "\n\n".join(parts)


def markdown(
    intra: Sequence[Row], transfer: Sequence[Row], *, title: str, logarithm: str, notes: Sequence[str] = ()
) -> str:
    """Both tables and the notes in Markdown."""
    lines = [f"# {tables.plain_text(title)}", "", *_markdown(intra_table(intra, logarithm=logarithm)), "", INTRA_LEGEND]
    if (table := transfer_table(intra, transfer, logarithm=logarithm)) is not None:
        lines += ["", *_markdown(table), "", TRANSFER_LEGEND]
    lines += ["", *(f"- {tables.plain_text(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def _markdown(table: Table) -> list[str]:
    header = ["model", *(f"{title}: {column}" for title, columns in table.groups for column in columns)]
    return [
        tables.markdown_row(map(tables.plain_text, header)),
        tables.markdown_row(["---", *["---:"] * (len(header) - 1)]),
        *(tables.markdown_row(map(tables.plain_text, line)) for line in table.lines),
    ]


def _text(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(table.header, *table.lines, strict=True)]
    first, over, starts = " " * widths[0], "", set()
    place = 1
    for title, columns in table.groups:
        starts.add(place)
        width = sum(widths[place : place + len(columns)]) + 2 * (len(columns) - 1)
        extra = max(0, len(title) - width)  # a narrow group is widened at its first column
        widths[place] += extra
        over += "   " + title.center(width + extra, " ").rstrip().ljust(width + extra)
        place += len(columns)

    def layout(line: Sequence[str]) -> str:
        text = line[0].ljust(widths[0])
        for column, (cell, width) in enumerate(zip(line[1:], widths[1:], strict=True), start=1):
            text += (" " * 3 if column in starts else " " * 2) + cell.rjust(width)
        return text.rstrip()

    return "\n".join([(first + over).rstrip(), layout(table.header), *map(layout, table.lines)])


def page(
    *,
    title: str,
    summary: Sequence[str],
    intra: Sequence[Row],
    transfer: Sequence[Row],
    examples: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel],
    logarithm: str,
    config_text: str,
    notes: Sequence[str],
) -> str:
    """The page, in the style of the other reports; needs nothing beside it."""
    template = importlib.resources.files(__package__).joinpath("template.html").read_text("utf-8")
    head = Template(template.partition("<body>")[0]).substitute(title=html_lib.escape(title))
    table = transfer_table(intra, transfer, logarithm=logarithm)
    cards = "".join(_example(entry) for entry in examples)
    body = [
        *(f'<p class="soft">{html_lib.escape(text)}</p>' for text in summary),
        "</header><main>",
        html.section(
            "Models under their own attack",
            html_lib.escape(INTRA_LEGEND),
            _html(intra_table(intra, logarithm=logarithm)),
        ),
        html.section(
            "What the attack trades",
            "A dot is a candidate: change of the score against distance from the "
            "original. The dashed line is the threshold; the counterexamples lie left of it. Then the change "
            "of each image's score by its counterexample.",
            html.panel_grid(panels, "pairs"),
        ),
        html.section("Models under attacks on others", html_lib.escape(TRANSFER_LEGEND), _html(table) if table else ""),
        html.section(
            "Counterexamples",
            "Left the image, in the middle its counterexample, right their difference, "
            "amplified; grey is no change. Point at the counterexample, or tap it, to lay the original over "
            "it.",
            f'<div class="examples">{cards}</div>' if cards else "",
        ),
        html.notes_section(notes),
        html.configuration_section(config_text),
        "</main><footer>The same numbers lie beside this page: <code>intra.csv</code>, <code>transfer.csv</code>, "
        "<code>counterexamples.csv</code>, <code>candidates.csv</code>, <code>tables.md</code> and "
        "<code>figures/</code>.</footer>",
    ]
    return f"{head}<body>\n<header>\n<h1>{html_lib.escape(title)}</h1>\n" + "\n".join(body) + "\n</body>\n</html>\n"


def _html(table: Table) -> str:
    over = "".join(
        f'<th class="span" colspan="{len(columns)}">{html_lib.escape(title)}</th>' for title, columns in table.groups
    )
    starts = {1 + sum(len(columns) for _, columns in table.groups[:place]) for place in range(len(table.groups))}

    def cells(line: Sequence[str], kind: str) -> str:
        return "".join(
            f"<{kind}{' class=gap' if place in starts else ''}>{html.prose(cell)}</{kind}>"
            for place, cell in enumerate(line[1:], start=1)
        )

    lines = "".join(
        f'<tr><th scope="row">{html.name_tag(line[0])}</th>{cells(line, "td")}</tr>' for line in table.lines
    )
    return (
        f'<div class="card scroll"><table><thead><tr><th></th>{over}</tr><tr><th></th>{cells(table.header, "th")}</tr>'
        f"</thead><tbody>{lines}</tbody></table></div>"
    )


def _example(entry: Mapping[str, Any]) -> str:
    shown = _views(entry)
    change = decimals(number(entry["change"]), 2)
    captions = (
        f"score <b>{html.number_text(number(entry['before']), 2)}</b> of 10",
        f"score <b>{html.number_text(number(entry['after']), 2)}</b>, {html.prose(change)}<br>"
        f"SSIM {html.number_text(number(entry['ssim']), 4)}, "
        f"largest change {html.number_text(number(entry['max_change']), 0)}/255"
        + ("" if entry["found"] else "<br>above the threshold: none was below"),
        f"difference<br>× {shown.factor}",
    )
    places = ('class="original"', 'class="attacked" tabindex="0"', "")
    labels = ("image", "counterexample", "difference")
    images = "".join(
        f"<div {place}>{html.image_tag(pixels, label)}<p>{caption}</p></div>"
        for place, pixels, label, caption in zip(places, shown[:3], labels, captions, strict=True)
    )
    title = f"<b>{html.name_tag(entry['model'])}</b>, {_heading(entry['fidelity'])}, {html.name_tag(entry['image'])}"
    return f'<figure class="card example"><figcaption>{title}</figcaption><div class="views">{images}</div></figure>'


@styled
def trade_offs(candidates: Sequence[Row], thresholds: Mapping[str, float], names: Sequence[str]) -> list[Panel]:
    """One panel per fidelity: |change of score| over the distance, a dot per candidate, coloured by the model."""
    panels = []
    for fidelity in thresholds:
        unit = 255 if fidelity == "chebyshev" else 1
        figure, axes = panel_of(_heading(fidelity), height=3.0)
        for model in names:
            own = [row for row in candidates if row["model"] == model and row["fidelity"] == fidelity]
            distance = unit * np.array([number(row["distance"]) for row in own])
            change = np.abs([number(row["change"]) for row in own])
            seen = np.isfinite(distance) & np.isfinite(change) & (distance > _ALL_FLAT)
            many = bool(seen.sum() > figures.MANY_POINTS)
            axes.scatter(
                distance[seen],
                change[seen],
                s=9,
                alpha=0.6,
                linewidths=0,
                label=shorten(model, 24),
                color=figures.colour(names, model),
                rasterized=many,
            )
        axes.axvline(unit * thresholds[fidelity], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7)
        axes.set(xlabel=_axis(fidelity), ylabel="change of score (points of 10)")
        if fidelity != "chebyshev":  # whose distances are whole grey levels
            axes.set_xscale("log")
            # matplotlib's own writes powers in mathematical notation, which file names with a dollar sign rule out.
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        legend(figure, axes)
        alt = f"Change of score over {_axis(fidelity)} of all candidates"
        panels.append(Panel(f"perceptual_trade_off_{fidelity}", alt, figure))
    return panels


@styled
def changes(counterexamples: Sequence[Row], names: Sequence[str]) -> list[Panel]:
    """Change of each image's score by its counterexample: a row of dots per model and fidelity."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in counterexamples:
        if row["found"]:
            groups.setdefault((row["model"], row["fidelity"]), []).append(number(row["change"]))
    if not groups:
        return []
    figure, axes = panel_of("", height=0.8 + 0.5 * len(groups))
    for place, ((model, fidelity), change) in enumerate(groups.items()):
        axes.scatter(
            change, np.full(len(change), place), s=14, alpha=0.6, linewidths=0, color=figures.colour(names, model)
        )
        axes.text(
            0,
            place - 0.25,
            f"{shorten(model, 30)}, {_heading(fidelity)}",
            fontweight="bold",
            transform=axes.get_yaxis_transform(),
        )
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
    axes.set(xlabel="change of score (points of 10)", yticks=[], ylim=(len(groups) - 0.6, -0.65))
    return [Panel("perceptual_changes", "Change of each image's score by its counterexample", figure)]


@styled
def _example_panel(entry: Mapping[str, Any], index: int) -> Panel:
    shown = _views(entry)
    captions = (
        f"score {decimals(number(entry['before']), 2)}",
        f"counterexample: {decimals(number(entry['after']), 2)}",
        f"difference, {shown.factor} times",
    )
    height, width = shown.image.shape[:2]
    figure = figures.Figure(figsize=(8.4, 0.75 + 2.7 * height / width))
    for axes, image, caption in zip(np.ravel(figure.subplots(1, 3)), shown[:3], captions, strict=True):
        axes.imshow(image, interpolation="nearest" if width < 96 else "antialiased")
        axes.set_title(caption, fontweight="normal", fontsize=9)
        axes.axis("off")
    title = f"{shorten(entry['model'], 30)}, {_heading(entry['fidelity'])}: {shorten(str(entry['image']), 44)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return Panel(f"example_{index + 1:02d}_{entry['model']}_{entry['fidelity']}", title, figure, dpi=110)


def _views(entry: Mapping[str, Any]) -> figures.Views:
    attacked = np.asarray(entry["attacked"], np.float64) / 255
    return figures.views({"name": entry["image"], "image": entry["pixels"], "attacked": attacked})


def _axis(fidelity: str) -> str:
    return {"chebyshev": "Chebyshev distance (1/255)", "ssim": "1 - SSIM"}.get(fidelity, _heading(fidelity))


def _heading(fidelity: str) -> str:
    return HEADINGS.get(fidelity, fidelity)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["model"]) for row in rows))


def _cell(rows: Mapping[str, Row], name: str, key: str, digits: int) -> str:
    content = number(rows[name][key]) if name in rows else math.nan
    return "∞" if content == math.inf else decimals(content, digits)
