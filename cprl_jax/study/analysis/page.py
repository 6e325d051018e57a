"""The page of an analysed study, and the files beside it. It computes nothing."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cprl_jax.experiments.perceptual import published
from cprl_jax.experiments.perceptual import report as attack_report
from cprl_jax.experiments.perceptual.observers import LIMITS
from cprl_jax.report import figures
from cprl_jax.report import page as page_lib
from cprl_jax.report.figures import INK, Panel, legend, panel_of, styled
from cprl_jax.report.page import Section
from cprl_jax.report.table import Column, Table, csv_text
from cprl_jax.report.values import Row, bounds, distinct, grouped, value
from cprl_jax.study.analysis import exclusion
from cprl_jax.study.analysis.answers import Answers, seen
from cprl_jax.study.analysis.psychometric import Fit
from cprl_jax.study.analysis.thresholds import FEWEST_ANSWERS, decibels

_BINS = 8  # points of a psychometric function's figure
JND_LEGEND = (
    "JND: the distance at which half of the differences are detected, corrected for guesses and lapses, with its 95 % "
    "bootstrap interval over observers and images; Chebyshev in grey levels, the others as they are. Limit: where the "
    "share of answers that see a difference reaches {limit:g} %, below which a candidate counts as invisible. d': of a "
    "pair at the JND, {model}. Beyond the distances that were shown, answers only tell on which side the JND lies: "
    "intervals are open there (inf). Groups of fewer than {fewest} answers are left out."
)
_MODELS = {
    "yesno": "by the differencing model of the same-different task, which takes answers to identical pairs",
    "flicker": "z(hits) - z(false alarms at identical pairs)",
    "2afc": "sqrt 2 z(correct)",
}


def write(
    folder: Path,
    *,
    answers: Answers,
    counted: exclusion.Counted,
    rows: Mapping[str, Sequence[Row]],
    candidates: Sequence[Row],
    examples: Sequence[Row],
    logarithm: str,
    limit: float,
    shape: str,
    missing_transfer: bool,
) -> list[Table | str]:
    """Writes every table of `rows` as NAME.csv, published.csv, tables.md, figures and report.html; returns what a
    terminal shows."""
    names = distinct(rows["intra"], "model")
    tables = {
        "Models under their own attack (Table 1)": attack_report.intra_table(rows["intra"], logarithm=logarithm),
        "Models under attacks on others (Table 2)": attack_report.transfer_table(
            rows["intra"], rows["transfer"], logarithm=logarithm
        ),
        "Beside the published numbers": published.beside(rows["intra"], rows["transfer"]),
        "Verdicts": verdict_table(rows["verdicts"], rows["counterexamples"], limit),
        "Just-noticeable differences": jnd_table(rows["jnd"], answers.trial),
        "Observers": observer_table(counted.observers),
    }
    panels = {
        "Just-noticeable differences": functions(answers, counted, rows["jnd"], shape),
        "Verdicts": attack_report.trade_offs(candidates, {}, names),
    }
    written = {**rows, "published": tables["Beside the published numbers"].rows}
    sections = [Section(title, [table, panels.get(title, [])], table.legend) for title, table in tables.items()]
    cards = [attack_report.card(index, entry) for index, entry in enumerate(examples, start=1)]
    sections.insert(
        5,
        Section(
            "Counterexamples",
            [cards],
            "Left the image, in the middle the strongest candidate that observers missed, right the difference of the "
            "two, amplified; grey is no change.",
        ),
    )
    sections.append(Section("Exclusion rules", [exclusion.stated(answers.settings)], "Stated before the data."))
    included = [row for row in counted.observers if not row["excluded"]]
    summary = (
        f"{len(included)} of {len(counted.observers)} observers count, with {len(counted.tests)} answers to "
        f"{len({row['pair'] for row in counted.tests})} pairs (trial: {answers.trial})."
    )
    notes = [
        f"Below the JND: a difference was seen in fewer than {100 * limit:g} % of the answers. Intervals of shares are "
        "Wilson's, those of the tables bootstrap intervals over observers and images, in which each draw of observers "
        "chooses its own counterexamples; that of SRCC takes ten images."
    ]
    if not rows["jnd"]:
        notes.append(f"No JNDs: no model and fidelity has {FEWEST_ANSWERS} answers at two distances or more.")
    if missing_transfer:
        notes.append(
            "No Table 2: the run is of an earlier version; give its command again, which scores every candidate by the "
            "other models."
        )
    texts = {"title": "What observers saw", "summary": [summary], "notes": notes}
    page_lib.write(
        folder,
        page_lib.Page(sections=sections, **texts),
        files={f"{name}.csv": csv_text(table, ()) if table else "" for name, table in written.items()}
        | {"tables.md": page_lib.markdown(texts["title"], [summary, *tables.values(), Section("Notes", [notes])])},
        figure_names=("psychometric_", "perceptual_", "example_"),
    )
    return [summary, *tables.values(), *notes]


def observer_table(rows: Sequence[Row]) -> Table:
    """Who counts, and what he did in catch trials and repeats."""

    def share(part: str, whole: str) -> Column:
        return Column(part, part.replace("_", " "), text=lambda row: f"{row[part]}/{row[whole]}")

    columns = [
        Column("counted", "counted", text=lambda row: f"{row['counted']}/{row['given']}"),
        share("detected", "tests"),
        share("catch_errors", "catches"),
        share("repeats_alike", "repeats"),
        Column("excluded", "left out", text=lambda row: row["excluded"] or "–"),
    ]
    legend_text = (
        "Counted: answers that count, of all given. Detected: differences seen, of the pairs shown. Catch errors: "
        "wrong answers to identical and plainly different pairs. Repeats alike: same answer to a pair shown again."
    )
    return Table(rows, columns, line=("observer",), heading="observer", legend=legend_text)


def verdict_table(verdicts: Sequence[Row], counterexamples: Sequence[Row], limit: float) -> Table:
    """How many candidates are below the JND, of each model and fidelity."""
    found = grouped(counterexamples, ("model", "fidelity"))
    rows = []
    for (model, fidelity), group in grouped(verdicts, ("model", "fidelity")).items():
        undecided = [row["share_seen_low"] < limit <= row["share_seen_high"] for row in group]
        rows.append(
            {
                "model": model,
                "fidelity": fidelity,
                "candidates": len(group),
                "answers": sum(row["answers"] for row in group) / len(group),
                "below": sum(bool(row["below_jnd"]) for row in group),
                "undecided": sum(undecided),
                "found": sum(row["found"] for row in found[model, fidelity]),
                "images": len(found[model, fidelity]),
            }
        )
    columns = [
        Column("candidates", "shown", digits=0),
        Column("answers", "answers each", digits=1),
        Column("below", "below the JND", digits=0),
        Column("undecided", "undecided", digits=0),
        Column("found", "counterexamples", text=lambda row: f"{row['found']}/{row['images']}"),
    ]
    text = (
        f"Below the JND: fewer than {100 * limit:g} % of the answers saw a difference. Undecided: the 95 % interval of "
        "that share has the limit in it. Counterexamples: images with a candidate below the JND (one that equals its "
        "original was not shown, and is). In the figures, rings are candidates that observers told from the original."
    )
    return Table(rows, columns, line=("model", "fidelity"), heading="model", name=_group_name, legend=text)


def jnd_table(rows: Sequence[Row], trial: str) -> Table:
    """A line per model and fidelity."""

    def decibel(key: str) -> dict:
        def ends(row: Row) -> str:
            low, high = value(row, f"{key}_low"), value(row, f"{key}_high")
            return bounds(low, high) or f"[{low:.2f}, {high:.2f}]"

        return {"digits": 2, "note": ends}

    def scaled(row: Row) -> str:
        if not math.isnan(row["jnd"]):
            return f"{row['jnd']:.3g} [{row['jnd_low']:.3g}, {row['jnd_high']:.3g}]"
        if math.isinf(row["jnd_high"]):  # the side of which answers tell
            return f"above {row['jnd_low']:.3g}" if row["jnd_low"] > 0 else "–"
        return f"below {row['jnd_high']:.3g}"

    columns = [
        Column("answers", "answers", digits=0),
        Column("jnd", "JND", text=scaled),
        Column("jnd_db", "JND (dB)", **decibel("jnd_db")),
        Column("limit_db", "limit (dB)", **decibel("limit_db")),
        Column("width_db", "width (dB)", digits=1),
        Column("guess", "guess", digits=2),
        Column("lapse", "lapse", digits=2),
        Column("d_prime", "d'", digits=2),
    ]
    text = JND_LEGEND.format(limit=100 * LIMITS[trial], model=_MODELS[trial], fewest=FEWEST_ANSWERS)
    return Table(rows, columns, line=("model", "fidelity"), heading="model", name=_group_name, legend=text)


@styled
def functions(answers: Answers, counted: exclusion.Counted, jnds: Sequence[Row], shape: str) -> list[Panel]:
    """One panel per fidelity: the share of detections over the distance in dB, all models together."""
    panels = []
    pairs = {row["pair"]: row for row in reversed(answers.pairs)}
    for jnd in jnds:
        if jnd["model"] != "all":
            continue
        own = [row for row in counted.tests if pairs[row["pair"]]["fidelity"] == jnd["fidelity"]]
        x = np.array([decibels(pairs[row["pair"]]["distance"], jnd["fidelity"]) for row in own])
        y = np.array([seen(row, answers.trial) for row in own], float)
        x, y = x[np.isfinite(x)], y[np.isfinite(x)]
        if not x.size:
            continue
        figure, axes = panel_of(attack_report.HEADINGS.get(jnd["fidelity"], jnd["fidelity"]), height=2.8)
        for part in np.array_split(np.argsort(x, kind="stable"), min(_BINS, np.unique(x).size)):
            axes.plot(x[part].mean(), y[part].mean(), "o", color=figures.COLOURS[1], markersize=4)
        line = np.linspace(x.min(), x.max(), 200)
        fit = Fit(shape, *(np.float64(jnd[key]) for key in ("jnd_db", "width_db", "guess", "lapse")))
        axes.plot(line, fit.share(line), color=figures.COLOURS[1], label="all models")  # nothing where it is not known
        axes.axhline(LIMITS[answers.trial], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7)
        axes.set(xlabel="distance (dB)", ylabel="share that saw a difference", ylim=(0, 1.02))
        legend(figure, axes)
        alt = f"Share of detections by distance, {jnd['fidelity']}, with the fitted function"
        panels.append(Panel(f"psychometric_{jnd['fidelity']}", alt, figure))
    return panels


def _group_name(row: Row) -> str:
    return f"{row['model']}, {attack_report.HEADINGS.get(row['fidelity'], row['fidelity'])}"
