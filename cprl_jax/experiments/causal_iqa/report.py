"""The report of Causal-IQA: the table of unseen distortions, figures, and one HTML page. It measures nothing."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cprl_jax.experiments.causal_iqa import figures as pictures
from cprl_jax.experiments.causal_iqa.table import AVERAGE_KEYS, ROW_KEYS, TITLES, Comparison, over_seeds, title_of
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
    rows: Sequence[Row],
    averages: Sequence[Row],
    zero_shot: Sequence[Row],
    division: Mapping[str, Any],
    saliency: Sequence[Mapping[str, Any]],
    histories: Mapping[str, Sequence[Row]],
    **texts: Any,
) -> Path:
    """Writes table.csv, averages.csv, zero_shot.csv, table.md, figures/*.png and report.html; returns the page's path.

    Anything may be empty; what has nothing to show is left out of the page.

    Args:
      folder: where to write; made if it does not exist.
      rows, averages: see `Comparison`.
      zero_shot: rows of `evaluation.zero_shot.evaluate` with the update as `method`, and a `seed`.
      division: made by `Study.described`; any of its parts.
      saliency: maps to show: `name`, `update`, `image` (uint8 [height, width, 3]), `map` ([height, width], at least 0).
      histories: update -> rows with `step` and `loss`; empty cells are skipped.
      **texts: `title`, `summary`, `notes` and `config_text` of `page.Page`.

    Raises:
      ValueError: an entry lacks a key, or an image and its map do not fit together. Nothing has been written then.
    """
    comparison = Comparison(rows, averages)
    check(zero_shot, ZERO_SHOT_KEYS, "zero_shot")
    check(saliency, SALIENCY_KEYS, "saliency")
    names = list(dict.fromkeys([*comparison.updates, *histories, *distinct(saliency, "update")]))
    losses = {title_of(update): history for update, history in histories.items()}
    lines = list(division.get("report", ()))
    folded = [Folded(lines[0], "\n".join(lines[1:]) or lines[0])] if lines else []
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
            [pictures.division(division), folded],
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
    unused = set(TITLES.values()) - set(map(title_of, comparison.updates))
    unused |= set() if comparison.held_out else {"Held out"}
    words = {word: text for word, text in WORDS.items() if word not in unused} if table else {}
    parts = [comparison.verdict(), table, others, means, Section("Notes", [page.paragraphs(texts["notes"])])]
    return page.write(
        folder,
        page.Page(sections=sections, verdict=comparison.verdict(), words=words, **texts),
        files={
            "table.csv": csv_text(rows, ROW_KEYS),
            "averages.csv": csv_text(averages, AVERAGE_KEYS),
            "zero_shot.csv": csv_text(zero_shot, ZERO_SHOT_KEYS) if zero_shot else "",
            "table.md": page.markdown(texts["title"], parts),
        },
        figure_names=pictures.NAMES,
    )


def format_table(rows: Sequence[Row], averages: Sequence[Row]) -> str:
    """The table for a terminal, with the differences to ERM and the verdict beneath."""
    comparison = Comparison(rows, averages)
    return page.terminal([comparison.table(), comparison.verdict()])


def _maps(saliency: Sequence[Mapping[str, Any]]) -> list[Card]:
    """A card per image: the image, and beside it the map of each update over it."""
    cards = []
    for index, name in enumerate(distinct(saliency, "name"), start=1):
        rows = [row for row in saliency if str(row["name"]) == name]
        shown = [("image", rows[0]["image"]), *((title_of(row["update"]), pictures.overlay(row)) for row in rows)]
        cards.append(Card(f"saliency_{index:02d}", name, [View(image, title, [title]) for title, image in shown]))
    return cards
