"""The figures of the Causal-IQA report: SRCC by distortion, differences to ERM, the division, saliency maps.

`names` is the list of all updates: an update's place in it gives its colour and marker, as in `figures`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from cprl_jax.experiments.causal_iqa.results import BASELINE, WHOLE
from cprl_jax.experiments.causal_iqa.table import of_cell, title_of
from cprl_jax.report import figures
from cprl_jax.report.figures import COLOURS, INK, Panel, legend, line_of, panel_of, styled
from cprl_jax.report.results import Row, number, shorten, value

NAMES = ("division", "saliency_", "srcc_", "training_")  # how the figures' file names begin
_FEW_POINTS = 30  # so many names still fit beside their dots
_BRIGHTEST = 0.99  # share of a map's pixels below its brightest colour: single pixels would darken the rest


@styled
def by_distortion(rows: Sequence[Row], names: Sequence[str]) -> list[Panel]:
    """A line per distortion, best for ERM on top: a faint dot per seed, and the mark of each update at its mean."""
    cells = {
        (distortion, update): of_cell(rows, distortion, update)
        for distortion in dict.fromkeys(row["distortion"] for row in rows)
        for update in names
    }
    order = sorted(
        {distortion for (distortion, _), srcc in cells.items() if srcc.size},
        key=lambda distortion: _rank(cells, distortion, names),
    )
    if not order:
        return []
    height = max(0.26, 0.085 * len(names))
    figure, axes = panel_of("", height=0.7 + height * len(order), width=4.6)
    for place in range(0, len(order), 2):
        axes.axhspan(place - 0.5, place + 0.5, color=INK, alpha=0.045, linewidth=0)
    for index, update in enumerate(names):
        shift = 0.62 * ((index + 0.5) / len(names) - 0.5)
        line = line_of(names, update) | {"linestyle": ""}
        means = []
        for place, distortion in enumerate(order):
            srcc = cells[distortion, update]
            if srcc.size > 1:
                axes.plot(srcc, np.full(srcc.size, place + shift), ".", color=line["color"], alpha=0.5, markersize=3.5)
            if srcc.size:
                means.append((srcc.mean(), place + shift))
        axes.plot(
            *zip(*means, strict=True) if means else ([], []),
            label=shorten(title_of(update), 24),
            markersize=4.5,
            markeredgewidth=0,
            **line,
        )
    if axes.get_xlim()[0] < 0 < axes.get_xlim()[1]:
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
    axes.set_yticks(
        range(len(order)), ["all of the test part" if name == WHOLE else shorten(str(name), 28) for name in order]
    )
    axes.set(xlabel="SRCC", ylim=(len(order) - 0.5, -0.5))
    axes.grid(False, axis="y")
    legend(figure, axes, columns=4)
    return [Panel("srcc_by_distortion", "SRCC on each distortion, by update", figure)]


def _rank(cells: Mapping, distortion: str, names: Sequence[str]) -> tuple[bool, float]:
    """By falling SRCC of ERM, or of the first update that has one; the whole test part beneath all."""
    order = sorted(names, key=lambda update: update != BASELINE)
    srcc = next((cells[distortion, update].mean() for update in order if cells[distortion, update].size), -np.inf)
    return distortion == WHOLE, -srcc


@styled
def differences(rows: Sequence[Row], averages: Sequence[Row], names: Sequence[str]) -> list[Panel]:
    """Each update less ERM: the average as a mark, its 95 % interval as a bar, a faint dot per distortion."""
    shown = [row for row in averages if row["update"] != BASELINE and np.isfinite(value(row, "difference"))]
    if not shown:
        return []
    figure, axes = panel_of("", height=0.75 + 0.62 * len(shown))
    for place, row in enumerate(shown):
        update, line = row["update"], line_of(names, row["update"])
        pairs = [
            (of_cell(rows, distortion, update), of_cell(rows, distortion, BASELINE))
            for distortion in dict.fromkeys(row["distortion"] for row in rows)
            if distortion != WHOLE
        ]
        dots = [own.mean() - other.mean() for own, other in pairs if own.size and other.size]
        # The golden ratio spreads the dots evenly over the row, in the same way every time.
        spread = 0.16 * (2 * (np.arange(len(dots)) * 0.6180339887 % 1) - 1)
        axes.scatter(dots, place + spread, s=9, color=line["color"], alpha=0.45, linewidths=0)
        low, high = value(row, "difference_low"), value(row, "difference_high")
        axes.plot([low, high], [place, place], color=line["color"], linewidth=2.6, solid_capstyle="butt")
        axes.plot(
            number(row["difference"]),
            place,
            color=line["color"],
            marker=line["marker"],
            markersize=7,
            markeredgecolor=INK,
            markeredgewidth=0.8,
        )
        axes.text(
            0, place - 0.3, shorten(title_of(update), 40), transform=axes.get_yaxis_transform(), fontweight="bold"
        )
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.7)
    axes.locator_params(axis="x", nbins=6)
    axes.set(xlabel=f"SRCC less that of {title_of(BASELINE)}", yticks=[], ylim=(len(shown) - 0.6, -0.65))
    return [Panel("srcc_differences", "Difference of each update's SRCC to ERM's, with its 95 % interval", figure)]


@styled
def division(found: Mapping[str, Any]) -> list[Panel]:
    """The clustered images in two dimensions, coloured by cluster, and how many images each subset has."""
    return [*_clusters(found), *_sizes(found.get("sizes", {}))]


def _clusters(found: Mapping[str, Any]) -> list[Panel]:
    points = np.asarray(found.get("points", ()), float).reshape(-1, 2)
    if not len(points):
        return []
    clusters = np.asarray(found["clusters"], int)
    labels = [str(cluster) for cluster in range(clusters.max() + 1)]
    figure, axes = panel_of("images by content", height=3.4)
    for cluster, label in enumerate(labels):
        own = clusters == cluster
        line = line_of(labels, label)
        axes.scatter(
            *points[own].T,
            s=22 if len(points) < 400 else 8,
            color=line["color"],
            marker=line["marker"],
            alpha=0.8,
            linewidths=0,
            label=f"content {label}: {own.sum()}",
            rasterized=len(points) > figures.MANY_POINTS,
        )
    if len(points) <= _FEW_POINTS:
        for (x, y), name in zip(points, found.get("names", ()), strict=False):
            axes.annotate(shorten(str(name), 14), (x, y), (2.5, 2.5), textcoords="offset points", fontsize=5, alpha=0.8)
    axes.set(xlabel="first principal component", ylabel="second principal component")
    legend(figure, axes, columns=3)
    return [Panel("division", "The clustered images in two dimensions, coloured by cluster of content", figure)]


def _sizes(sizes: Mapping[str, int]) -> list[Panel]:
    """A bar per distortion, a piece per subset: their names are 'distortion | level 3 | content 0+1' or shorter."""
    pieces = []
    for name, images in sizes.items():
        kind, *others = str(name).split(" | ")
        content = others[-1] if others and others[-1].startswith("content ") else ""
        pieces.append((kind, content, int(images)))
    if not pieces:
        return []
    kinds = list(dict.fromkeys(kind for kind, _, _ in pieces))
    contents = sorted({content for _, content, _ in pieces}, key=lambda content: ("+" in content, content))
    figure, axes = panel_of("images in each subset", height=0.75 + 0.19 * len(kinds))
    for content in contents:
        cluster = content.removeprefix("content ")
        # Clusters have the colours of the two-dimensional view; what was joined has none of its own.
        tone = COLOURS[int(cluster) % len(COLOURS)] if cluster.isdigit() else "#999999" if content else COLOURS[0]
        bars = [
            (kinds.index(kind), sum(other[2] for other in pieces[:i] if other[0] == kind), images)
            for i, (kind, own, images) in enumerate(pieces)
            if own == content
        ]
        places, left, width = zip(*bars, strict=True)
        axes.barh(places, width, left=left, height=0.72, color=tone, edgecolor="white", linewidth=0.7, label=content)
    axes.set_yticks(range(len(kinds)), [shorten(kind, 26) for kind in kinds])
    axes.set(xlabel="images", ylim=(len(kinds) - 0.45, -0.55))
    axes.grid(False, axis="y")
    if any(contents):
        legend(figure, axes, columns=3)
    return [Panel("division_sizes", "How many images each subset has", figure)]


@styled
def saliency(entries: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """A panel per image: the image, and beside it the map of each update laid over it."""
    panels = []
    for index, (name, own) in enumerate(by_image(entries).items(), start=1):
        height, width = own[0]["image"].shape[:2]
        figure = Figure(figsize=(2.1 * (1 + len(own)), 0.75 + 2.1 * height / width))
        views = [("image", own[0]["image"]), *((title_of(entry["update"]), overlay(entry)) for entry in own)]
        for axes, (caption, pixels) in zip(np.ravel(figure.subplots(1, len(views))), views, strict=True):
            axes.imshow(pixels, interpolation="nearest" if width < 96 else "antialiased")
            axes.set_title(shorten(caption, 24), fontweight="normal", fontsize=9)
            axes.axis("off")
        figure.suptitle(shorten(name, 60), x=0.01, ha="left", fontsize=10, fontweight="bold")
        panels.append(Panel(f"saliency_{index:02d}", f"Saliency maps of {name}", figure, dpi=110))
    return panels


def by_image(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The entries of each image, under its name."""
    return {
        name: [entry for entry in entries if str(entry["name"]) == name]
        for name in dict.fromkeys(str(entry["name"]) for entry in entries)
    }


def overlay(entry: Mapping[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
    """The map in colour over the image in grey: dark where the score does not look, bright where it does.

    Each map has the whole range of colours, up to its 99th percentile: gradients of different models have different
    heights. Values that are not finite count as 0.

    Raises:
      ValueError: map and image do not fit together.
    """
    image, heat = np.asarray(entry["image"]), np.nan_to_num(np.asarray(entry["map"], float), posinf=0, neginf=0)
    if image.ndim != 3 or image.shape[-1] != 3 or image.shape[:2] != heat.shape:
        raise ValueError(
            f"saliency of {entry['name']!r} by {entry['update']!r}: the image must be [height, width, 3] and the map "
            f"[height, width], got {image.shape} and {heat.shape}"
        )
    brightest = np.quantile(heat, _BRIGHTEST) or heat.max() or 1.0
    heat = np.clip(heat / brightest, 0, 1)
    grey = (image / 255) @ np.array([0.299, 0.587, 0.114])
    alpha = (0.35 + 0.5 * heat)[..., None]
    colour = matplotlib.colormaps["inferno"](heat)[..., :3]
    return np.round(255 * ((1 - alpha) * grey[..., None] + alpha * colour)).astype(np.uint8)
