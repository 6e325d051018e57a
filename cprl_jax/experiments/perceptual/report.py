"""The report of a perceptual attack: tables in the paper's layout, figures, and one HTML page. It computes nothing.

The rows are those of `results`. Numbers may be NaN (unknown); `r` is infinite where a score did not change at all.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from cprl_jax.report import figures, page
from cprl_jax.report.figures import INK, Panel, Strip, legend, panel_of, styled
from cprl_jax.report.page import Card, Section
from cprl_jax.report.table import Column, Table, csv_text
from cprl_jax.report.values import Row, decimals, distinct, interval, number, shorten, value

HEADINGS = {"chebyshev": "Chebyshev", "ssim": "SSIM", "lpips": "LPIPS", "dists": "DISTS"}
_BASES = {"e": "ln", "2": "log2", "10": "log10"}
_ALL_FLAT = 1e-6  # distances below what float32 resolves of 1 are not drawn
INTRA_LEGEND = (
    "SRCC of scores and MOS, over the originals (before) and over originals and counterexamples together, which keep "
    "the MOS of their originals; of images with a counterexample alone, and before of the fidelity with the most of "
    "them. R: mean logarithm of the largest possible over the actual change of score; smaller is "
    "easier to fool, ∞ is a score that did not move. Mean change: of the score, in points of 10. Moved: images whose "
    "score changes by more than 1 of 10 at an SSIM of at least 0.98, of all images."
)
SEEN_HINT = "Rings are candidates that observers could tell from the original."
TRANSFER_LEGEND = (
    "Lines: the model under test. Columns: the model that the counterexamples were made for; in brackets the model's "
    "own, as in the table before."
)


def write(
    folder: str | os.PathLike,
    *,
    candidates: Sequence[Row],
    counterexamples: Sequence[Row],
    intra: Sequence[Row],
    transfer: Sequence[Row],
    examples: Sequence[Mapping[str, Any]],
    thresholds: Mapping[str, float],
    logarithm: str,
    transfer_scores: Sequence[Row] = (),
    **texts: Any,
) -> Path:
    """Writes all rows as .csv, tables.md, figures/*.png and report.html.

    Returns the page's path.

    Args:
      candidates, counterexamples: see `results.candidate_rows` and `choose`.
      intra, transfer: see `results.intra_rows` and `transfer_rows`.
      examples: counterexamples to show, with `pixels` and `attacked`, uint8 [height, width, 3].
      thresholds: fidelity -> the largest distance that counted as invisible; none where observers decided.
      logarithm: the base of the logarithm in R: "e", "2" or "10".
      transfer_scores: see `results.transfer_scores`.
      **texts: `title`, `summary`, `notes` and `config_text` of `page.Page`.
    """
    names = distinct(intra, "model")
    shown = tables(intra, transfer, logarithm=logarithm)
    panels = trade_offs(candidates, thresholds, names) + changes(counterexamples, names)
    sections = [
        Section("Models under their own attack", [shown[0]], INTRA_LEGEND),
        Section(
            "What the attack trades",
            [panels],
            "A dot is a candidate: change of the score against distance from the original. "
            + ("The dashed line is the threshold; the counterexamples lie left of it." if thresholds else SEEN_HINT)
            + " The last panel shows the change of each image's score by "
            "its counterexample, with median and middle half.",
        ),
        Section("Models under attacks on others", [shown[1]], TRANSFER_LEGEND),
        Section(
            "Counterexamples",
            [[card(index, entry) for index, entry in enumerate(examples, start=1)]],
            "Left the image, in the middle its counterexample, right their difference, amplified; grey is no change. "
            "Point at the counterexample, or tap it, to lay the original over it.",
        ),
    ]
    rows = {"candidates": candidates, "counterexamples": counterexamples, "intra": intra, "transfer": transfer}
    rows |= {"transfer_scores": transfer_scores} if transfer_scores else {}
    return page.write(
        folder,
        page.Page(sections=sections, **texts),
        files={f"{name}.csv": csv_text(table, ("model",)) for name, table in rows.items()}
        | {"tables.md": page.markdown(texts["title"], [*shown, Section("Notes", [texts["notes"]])])},
        figure_names=("perceptual_", "example_"),
    )


def tables(intra: Sequence[Row], transfer: Sequence[Row], *, logarithm: str) -> tuple[Table, Table]:
    return intra_table(intra, logarithm=logarithm), transfer_table(intra, transfer, logarithm=logarithm)


def intra_table(rows: Sequence[Row], *, logarithm: str) -> Table:
    """Table 1 of the paper: a line per model, under each measure a column per fidelity."""
    fidelities = distinct(rows, "fidelity")

    def columns(key: str, group: str, digits: int, **options: Any) -> list[Column]:
        return [Column(key, _heading(name), group=group, of=name, digits=digits, **options) for name in fidelities]

    shown = columns("r", f"R ({_BASES[logarithm]})", 3, note=lambda row: interval(row, "r"))
    shown += columns("mean_change", "mean change", 2, note=lambda row: interval(row, "mean_change"))
    shown += columns("mean_ssim", "mean SSIM", 4)
    shown += columns("moved", "moved", 0, text=lambda row: f"{row['moved']}/{row['of']}")
    if any(math.isfinite(value(row, "srcc")) for row in rows):
        known = {row["model"]: value(row, "srcc_before") for row in sorted(rows, key=lambda row: row["images"])}
        # That of the fidelity with the most images.
        before = Column("srcc_before", "before", group="SRCC", text=lambda row: decimals(known[row["model"]], 3))
        shown = [before, *columns("srcc", "SRCC", 3, note=lambda row: interval(row, "srcc")), *shown]
    return Table(rows, shown, line=("model",), across="fidelity", heading="model", legend=INTRA_LEGEND)


def transfer_table(intra: Sequence[Row], transfer: Sequence[Row], *, logarithm: str) -> Table:
    """Table 2: a line per model under test and fidelity, a column per attacked model; empty for a single model.

    Where the model under test is the attacked one, the cell is that of Table 1, in brackets.
    """
    models, fidelities = distinct(intra, "model"), distinct(intra, "fidelity")
    rows = [*({**row, "attacked": row["model"]} for row in intra), *transfer] if transfer else []
    rows.sort(key=lambda row: (models.index(row["model"]), fidelities.index(row["fidelity"])))
    measures = [("srcc", "SRCC", 3)] if any(math.isfinite(value(row, "srcc")) for row in transfer) else []
    measures += [("r", f"R ({_BASES[logarithm]})", 3), ("mean_change", "mean change", 2)]

    def column(key: str, group: str, digits: int, attacked: str) -> Column:
        def text(row: Row) -> str:
            cell = decimals(value(row, key), digits)
            return f"[{cell}]" if row["model"] == attacked else cell

        return Column(key, attacked, group=group, of=attacked, text=text, note=lambda row: interval(row, key))

    return Table(
        rows,
        [column(*measure, attacked) for measure in measures for attacked in models],
        line=("model", "fidelity"),
        across="attacked",
        heading="model",
        name=lambda row: f"{row['model']}, {_heading(row['fidelity'])}",
        legend=TRANSFER_LEGEND,
    )


@styled
def trade_offs(candidates: Sequence[Row], thresholds: Mapping[str, float], names: Sequence[str]) -> list[Panel]:
    """One panel per fidelity: |change of score| over the distance, a dot per candidate, coloured by the model."""
    panels = []
    for fidelity in distinct(candidates, "fidelity"):
        unit = 255 if fidelity == "chebyshev" else 1
        figure, axes = panel_of(_heading(fidelity), height=3.0)
        for model in names:
            rows = [row for row in candidates if row["model"] == model and row["fidelity"] == fidelity]
            distance = unit * np.array([number(row["distance"]) for row in rows])
            change = np.abs([number(row["change"]) for row in rows])
            seen = np.isfinite(distance) & np.isfinite(change) & (distance > _ALL_FLAT)
            color = figures.colour(names, model)
            look = {"s": 9, "alpha": 0.6, "rasterized": bool(seen.sum() > figures.MANY_POINTS), "edgecolors": color}
            noticed = np.array([row.get("imperceptible") is False for row in rows], bool)
            hidden, noticed = seen & ~noticed, seen & noticed
            label = shorten(model, 24)
            axes.scatter(distance[hidden], change[hidden], color=color, linewidths=0, label=label, **look)
            axes.scatter(distance[noticed], change[noticed], facecolors="none", linewidths=0.6, **look)
        if fidelity in thresholds:
            axes.axvline(unit * thresholds[fidelity], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7)
        axes.set(xlabel=_axis(fidelity), ylabel="change of score (points of 10)")
        if fidelity != "chebyshev":  # whose distances are whole grey levels
            axes.set_xscale("log")
            # matplotlib's own writes powers in mathematical notation, which file names with a dollar sign rule out.
            axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, place: f"{tick:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        legend(figure, axes)
        alt = f"Change of score over {_axis(fidelity)} of all candidates"
        panels.append(Panel(f"perceptual_trade_off_{fidelity}", alt, figure))
    return panels


def changes(counterexamples: Sequence[Row], names: Sequence[str]) -> list[Panel]:
    """Change of each image's score by its counterexample: a strip per model and fidelity."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in counterexamples:
        if row["found"]:
            groups.setdefault((row["model"], row["fidelity"]), []).append(number(row["change"]))
    strips = [
        Strip(f"{shorten(model, 30)}, {_heading(fidelity)}", figures.colour(names, model), change)
        for (model, fidelity), change in groups.items()
    ]
    alt = "Change of each image's score by its counterexample, with median and middle half"
    return figures.strips("perceptual_changes", alt, strips, xlabel="change of score (points of 10)")


def card(index: int, entry: Mapping[str, Any]) -> Card:
    """An image, its counterexample and their difference (Fig. 4 of the paper), from a row of `results.examples`."""
    before, after, change = (decimals(entry[key], 2) for key in ("before", "after", "change"))
    visible = f"SSIM {decimals(entry['ssim'], 4)}, largest change {entry['max_change']:.0f}/255"
    lines = [f"score {after}, {change}", visible] + ["visible: none was below the limit"] * (not entry["found"])
    return page.attacked_card(
        f"example_{index:02d}_{entry['model']}_{entry['fidelity']}",
        f"{entry['model']}, {_heading(entry['fidelity'])}, {entry['image']}",
        entry["pixels"],
        np.asarray(entry["attacked"], np.float64) / 255,
        before=[f"score {before} of 10"],
        after=lines,
    )


def _axis(fidelity: str) -> str:
    return {"chebyshev": "Chebyshev distance (1/255)", "ssim": "1 - SSIM"}.get(fidelity, _heading(fidelity))


def _heading(fidelity: str) -> str:
    return HEADINGS.get(fidelity, fidelity)
