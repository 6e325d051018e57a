"""The report of Causal-IQA: the table of unseen distortions, figures, and one HTML page. It measures nothing."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cprl_jax.experiments.causal_iqa import figures as pictures
from cprl_jax.experiments.causal_iqa.table import AVERAGE_KEYS, ROW_KEYS, Comparison, over_seeds, title_of
from cprl_jax.report import agreement, figures, page
from cprl_jax.report.page import Card, Folded, Section, View
from cprl_jax.report.table import csv_text
from cprl_jax.report.values import Row, check, distinct

ZERO_SHOT_KEYS = ("method", "dataset", "images", "srcc", "plcc", "rmse")
SALIENCY_KEYS = ("name", "update", "image", "map")
WORDS = {
    "SRCC": agreement.WORDS["SRCC"],
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
    histories: Mapping[str, Sequence[Row]] | None = None,
    config_text: str,
    notes: str | Sequence[str] = (),
) -> Path:
    """Writes table.csv, averages.csv, zero_shot.csv, table.md, figures/*.png and report.html; returns the page's path.

    Each file appears whole or not at all, the CSV files first. Figures of an earlier report that this one does not have
    are removed. Anything may be empty; what has nothing to show is left out of the page.

    Args:
      folder: where to; made if it does not exist.
      summary: what was trained on what, in a paragraph or several, beneath the title.
      rows, averages: see `Comparison`.
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
    division = division or {}
    comparison = Comparison(rows, averages)
    check(zero_shot, ZERO_SHOT_KEYS, "zero_shot")
    check(saliency, SALIENCY_KEYS, "saliency")
    names = list(dict.fromkeys([*comparison.updates, *(histories or {}), *(str(row["update"]) for row in saliency)]))
    losses = {title_of(update): history for update, history in (histories or {}).items()}
    seeds = len({row.get("seed") for row in zero_shot})
    table, others = comparison.table(), agreement.zero_shot(over_seeds(zero_shot))
    means = f"All numbers, the ends of the intervals too, are means over {seeds} seeds." if seeds > 1 else ""
    sections = [
        Section(
            "Distortions that training did not see" if comparison.held_out else "Distortions of the test part",
            [table],
            table.explained(),
        ),
        Section(
            "Distortion by distortion",
            [pictures.by_distortion(rows, names) + pictures.differences(rows, averages, names)],
            "A mark is the mean of an update, a faint dot one seed; the distortions are in the order of ERM's SRCC. In "
            "the figure of differences the bar is the average's 95 % interval, a dot one distortion; right of the line "
            "is better than ERM.",
        ),
        Section("On data sets that training did not see", [others], f"{others.explained()} {means}".strip()),
        Section(
            "How the training images were divided",
            [pictures.division(division), _described(division.get("report", ()))],
            "First the images that were clustered by content, seen along the two directions in which they differ most; "
            "the clusters come from more directions than these two. Then the subsets: a bar for a distortion, a piece "
            "for each content of it, grey where contents were joined.",
        ),
        Section(
            "Where the model looks",
            [_maps(saliency)],
            "Saliency: how much the score would change with each pixel, dark for little and bright for much. Each map "
            "has its own scale: compare places, not brightness.",
        ),
        Section(
            "Training",
            [figures.training(losses, list(map(title_of, names)))],
            "The faint line is the loss of each meta step, the strong one its running mean. CIS and MetaIQA adapt "
            "between the batches of a meta step, so that their losses are not those of one model: compare the course, "
            "not the height.",
        ),
    ]
    unused = {"MetaIQA", "CIS", "CIP", "ERM"} - set(map(title_of, comparison.updates))
    unused |= set() if comparison.held_out else {"Held out"}
    parts = [comparison.verdict(), table, others, means, Section("Notes", [page.paragraphs(notes)])]
    return page.write(
        folder,
        page.Page(
            title,
            sections,
            summary=summary,
            verdict=comparison.verdict(),
            notes=notes,
            config_text=config_text,
            words={word: text for word, text in WORDS.items() if word not in unused} if table else {},
        ),
        files={
            "table.csv": csv_text(rows, ROW_KEYS),
            "averages.csv": csv_text(averages, AVERAGE_KEYS),
            "zero_shot.csv": csv_text(zero_shot, ZERO_SHOT_KEYS) if zero_shot else "",
            "table.md": page.markdown(title, parts),
        },
        figure_names=pictures.NAMES,
    )


def format_table(rows: Sequence[Row], averages: Sequence[Row]) -> str:
    """The table for a terminal, with the differences to ERM and the verdict beneath.

    Raises:
      ValueError: a row lacks a key.
    """
    comparison = Comparison(rows, averages)
    return page.terminal([comparison.table(), comparison.verdict()])


def _described(lines: Sequence[str]) -> list[Folded]:
    return [Folded(lines[0], "\n".join(lines[1:]) or lines[0])] if lines else []


def _maps(saliency: Sequence[Mapping[str, Any]]) -> list[Card]:
    """A card per image: the image, and beside it the map of each update over it."""
    cards = []
    for index, name in enumerate(distinct(saliency, "name"), start=1):
        rows = [row for row in saliency if str(row["name"]) == name]
        views = [View(rows[0]["image"], "image", ["image"])]
        views += [
            View(pictures.overlay(row), title, [title]) for row in rows for title in [title_of(str(row["update"]))]
        ]
        cards.append(Card(f"saliency_{index:02d}", name, views))
    return cards
