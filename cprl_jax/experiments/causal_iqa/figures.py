"""The figures of the Causal-IQA report: SRCC by distortion, differences to ERM, the division, saliency maps.

`names` is the list of all updates: an update's place in it gives its colour and marker, as in `figures`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import UInt8

from cprl_jax.experiments.causal_iqa.results import BASELINE, WHOLE
from cprl_jax.experiments.causal_iqa.table import of_cell, title_of
from cprl_jax.report import figures
from cprl_jax.report.figures import COLOURS, INK, Panel, Strip, legend, line_of, panel_of, styled
from cprl_jax.report.values import Row, distinct, shorten, value

NAMES = ("division", "saliency_", "srcc_", "training_")  # how the figures' file names begin
_FEW_POINTS = 30  # so many names still fit beside their dots
_BRIGHTEST = 0.99  # share of a map's pixels below its brightest colour: single pixels would darken the rest


@styled
def by_distortion(rows: Sequence[Row], names: Sequence[str]) -> list[Panel]:
    """A line per distortion, best for ERM on top: a faint dot per seed, and the mark of each update at its mean."""
    cells = {(name, update): of_cell(rows, name, update) for name in distinct(rows, "distortion") for update in names}
    cells = {key: srcc for key, srcc in cells.items() if srcc.size}

    def rank(distortion: str) -> tuple[bool, float]:
        """By falling SRCC of ERM, or of the first update that has one; the whole test part beneath all."""
        first = next(u for u in sorted(names, key=lambda update: update != BASELINE) if (distortion, u) in cells)
        return distortion == WHOLE, -cells[distortion, first].mean()

    order = sorted(dict.fromkeys(distortion for distortion, _ in cells), key=rank)
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
            if (srcc := cells.get((distortion, update))) is None:
                continue
            if srcc.size > 1:
                axes.plot(srcc, np.full(srcc.size, place + shift), ".", color=line["color"], alpha=0.5, markersize=3.5)
            means.append((srcc.mean(), place + shift))
        x, y = np.reshape(means, (-1, 2)).T
        axes.plot(x, y, label=shorten(title_of(update), 24), markersize=4.5, markeredgewidth=0, **line)
    if axes.get_xlim()[0] < 0 < axes.get_xlim()[1]:
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
    axes.set_yticks(
        range(len(order)), ["all of the test part" if name == WHOLE else shorten(name, 28) for name in order]
    )
    axes.set(xlabel="SRCC", ylim=(len(order) - 0.5, -0.5))
    axes.grid(False, axis="y")
    legend(figure, axes, columns=4)
    return [Panel("srcc_by_distortion", "SRCC on each distortion, by update", figure)]


def differences(rows: Sequence[Row], averages: Sequence[Row], names: Sequence[str]) -> list[Panel]:
    """Each update less ERM: the average as a mark, its 95 % interval as a bar, a faint dot per distortion."""
    strips = []
    for row in averages:
        update, bar = row["update"], tuple(value(row, f"difference{end}") for end in ("_low", "", "_high"))
        if update != BASELINE and np.isfinite(bar[1]):
            kinds = [name for name in distinct(rows, "distortion") if name != WHOLE]
            pairs = [(of_cell(rows, kind, update), of_cell(rows, kind, BASELINE)) for kind in kinds]
            dots = [srcc.mean() - other.mean() for srcc, other in pairs if srcc.size and other.size]
            strips.append(Strip(title_of(update), figures.colour(names, update), dots, bar))
    alt = "Difference of each update's SRCC to ERM's, with its 95 % interval"
    return figures.strips("srcc_differences", alt, strips, xlabel=f"SRCC less that of {title_of(BASELINE)}")


@styled
def division(described: Mapping[str, Any]) -> list[Panel]:
    """The clustered images in two dimensions, coloured by cluster, and how many images each subset has."""
    return _clusters(described) + _sizes(described.get("sizes", {}))


def _clusters(described: Mapping[str, Any]) -> list[Panel]:
    points = np.asarray(described.get("points", ()), float).reshape(-1, 2)
    if not len(points):
        return []
    clusters = np.asarray(described["clusters"], int)
    labels = [str(cluster) for cluster in range(clusters.max() + 1)]
    figure, axes = panel_of("images by content", height=3.4)
    for cluster, label in enumerate(labels):
        chosen = clusters == cluster
        look = {key: line_of(labels, label)[key] for key in ("color", "marker")}
        look |= {"s": 22 if len(points) < 400 else 8, "rasterized": len(points) > figures.MANY_POINTS}
        axes.scatter(*points[chosen].T, alpha=0.8, linewidths=0, label=f"content {label}: {chosen.sum()}", **look)
    if len(points) <= _FEW_POINTS:
        for (x, y), name in zip(points, described.get("names", ()), strict=False):
            axes.annotate(shorten(str(name), 14), (x, y), (2.5, 2.5), textcoords="offset points", fontsize=5, alpha=0.8)
    axes.set(xlabel="first principal component", ylabel="second principal component")
    legend(figure, axes, columns=3)
    return [Panel("division", "The clustered images in two dimensions, coloured by cluster of content", figure)]


def _sizes(sizes: Mapping[str, int]) -> list[Panel]:
    """A bar per distortion, a piece per subset: their names are 'distortion | level 3 | content 0+1' or shorter."""
    pieces = []
    for name, images in sizes.items():
        kind, *others = name.split(" | ")
        pieces.append((kind, next((part for part in others if part.startswith("content ")), ""), images))
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
            (kinds.index(kind), sum(piece[2] for piece in pieces[:i] if piece[0] == kind), images)
            for i, (kind, other, images) in enumerate(pieces)
            if other == content
        ]
        places, left, width = zip(*bars, strict=True)
        axes.barh(places, width, left=left, height=0.72, color=tone, edgecolor="white", linewidth=0.7, label=content)
    axes.set_yticks(range(len(kinds)), [shorten(kind, 26) for kind in kinds])
    axes.set(xlabel="images", ylim=(len(kinds) - 0.45, -0.55))
    axes.grid(False, axis="y")
    if any(contents):
        legend(figure, axes, columns=3)
    return [Panel("division_sizes", "How many images each subset has", figure)]


def overlay(entry: Mapping[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
    """The map in colour over the image in grey: dark where the score does not look, bright where it does.

    Each map has the whole range of colours, up to its 99th percentile: gradients of different models differ in size.
    Values that are not finite count as 0. Raises ValueError for a map and an image that do not fit together.
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
