"""The figures of a report, each one small panel: legible on a phone, and placed side by side where there is room.

`names` is the list of all methods of the report: a method's place in it gives its colour and marker in every figure.
Drawn on `matplotlib.figure.Figure` objects, without pyplot: no window, no global figure list, and `STYLE` holds only
while a figure is drawn and saved.
"""

import functools
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from cprl_jax.report.results import (
    CLEAN,
    Condition,
    Row,
    attack_name,
    condition,
    condition_name,
    conditions,
    decimals,
    find,
    number,
    shorten,
    value,
)
from cprl_jax.runtime.files import write_file

INK = "#1d2126"  # replaced by the page's own text colour in SVG
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe, Ito: told apart by every eye
MARKERS = "osD^vP"
NAMES = (
    "change",
    "example_",
    "landscape_",
    "scatter_",
    "srcc_",
    "training_",
    "trust_",
)  # how the figures' file names begin
DASHES = ("-", "--", ":", "-.")
MANY_POINTS = 1500  # from here a scatter is embedded in its SVG as pixels
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8.5,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,  # a dollar sign in a file's name is a dollar sign
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "grid.alpha": 0.18,
    "grid.color": INK,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "report",  # the same results give the same file
    "xtick.color": INK,
    "ytick.color": INK,
}


class Panel(NamedTuple):
    """A figure and the words that go with it. `name` is its file name without the ending, `dpi` that of its PNG."""

    name: str
    alt: str
    figure: Figure
    dpi: int = 160


def write_panels(folder: Path, panels: Iterable[Panel], *, names: tuple[str, ...]) -> None:
    """Writes each panel as a PNG, and removes those of an earlier report whose names begin with one of `names`."""
    written = set()
    for panel in panels:
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', panel.name)}.png"
        write_file(path, to_png(panel))
        written.add(path)
    for path in folder.glob("*.png"):
        if path not in written and path.name.startswith(names):
            path.unlink()


def styled(draw: Callable) -> Callable:
    @functools.wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


@styled
def scatters(scores: Sequence[Row], pair: Condition, names: Sequence[str]) -> list[Panel]:
    """One panel per method: score before (x) and after (y) the attack, one dot per image, coloured by its MOS."""
    panels = []
    every = [row for row in scores if condition(row) == pair]
    low, high = _limits([number(row[key]) for row in every for key in ("clean", "score")])
    for method in names:
        rows = [row for row in every if row["method"] == method]
        clean, score, mos = (np.array([number(row[key]) for row in rows]) for key in ("clean", "score", "mos"))
        seen = np.isfinite(clean) & np.isfinite(score)
        if not seen.any():
            continue
        figure, axes = panel_of(shorten(method, 30), height=3.1)
        axes.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        dots = axes.scatter(
            clean[seen],
            score[seen],
            c=mos[seen],
            norm=Normalize(0, 100),
            cmap="viridis",
            s=20 if seen.sum() < 400 else 8,
            linewidths=0.3,
            edgecolors=INK,
            alpha=0.9,
            plotnonfinite=True,
            rasterized=bool(seen.sum() > MANY_POINTS),
        )
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="score before", ylabel="score after")
        bar = figure.colorbar(dots, ax=axes, shrink=0.9, aspect=24)
        bar.set_label("MOS")
        bar.outline.set_visible(False)
        alt = f"{method}: scores before and after {condition_name(pair)}, coloured by MOS"
        panels.append(Panel(f"scatter_{method}", alt, figure))
    return panels


@styled
def curves(rows: Sequence[Row], names: Sequence[str]) -> list[Panel]:
    """One panel per attack: SRCC against MOS over the radius, from the clean value on, with its 95 % band."""
    panels = []
    for attack in dict.fromkeys(pair[0] for pair in conditions(rows) if pair[0] != "none"):
        figure, axes = panel_of(attack_name(attack), height=3.0)
        pairs = [CLEAN, *(pair for pair in conditions(rows) if pair[0] == attack)]
        for method in names:
            line = line_of(names, method)
            found = [find(rows, method, pair, "mos") for pair in pairs]
            radius, srcc = np.array([pair[1] for pair in pairs]), np.array([value(row, "srcc") for row in found])
            low, high = (np.array([value(row, key) for row in found]) for key in ("srcc_low", "srcc_high"))
            seen = np.isfinite(srcc)
            axes.plot(radius[seen], srcc[seen], label=shorten(method, 24), markersize=4.5, **line)
            band = seen & np.isfinite(low) & np.isfinite(high)
            axes.fill_between(radius[band], low[band], high[band], color=line["color"], alpha=0.15, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.8, alpha=0.6)
        axes.set(xlabel="radius of the attack (1/255)", ylabel="SRCC against MOS", ylim=(-1.03, 1.03))
        axes.set_xticks([pair[1] for pair in pairs], [f"{pair[1]:g}" for pair in pairs])
        legend(figure, axes)
        panels.append(Panel(f"srcc_{attack}", f"SRCC against MOS under {attack_name(attack)} by radius", figure))
    return panels


@styled
def changes(scores: Sequence[Row], pair: Condition, names: Sequence[str]) -> list[Panel]:
    """How far the attack moved each image's score: a row of dots per method, its middle half and median as a bar."""
    moved = {}
    for method in names:
        rows = [row for row in scores if row["method"] == method and condition(row) == pair]
        change = np.array([number(row["score"]) - number(row["clean"]) for row in rows])
        change = change[np.isfinite(change)]
        if change.size:
            moved[method] = change
    if not moved:
        return []
    figure, axes = panel_of("", height=0.8 + 0.62 * len(moved))
    for place, (method, change) in enumerate(moved.items()):
        # The golden ratio spreads the dots evenly over the row, in the same way every time.
        spread = 0.2 * (2 * (np.arange(change.size) * 0.6180339887 % 1) - 1)
        many = change.size > MANY_POINTS
        axes.scatter(change, place + spread, s=9, color=colour(names, method), alpha=0.6, linewidths=0, rasterized=many)
        low, middle, high = np.quantile(change, [0.25, 0.5, 0.75])
        axes.plot([low, high], [place, place], color=INK, linewidth=1.2)
        axes.plot([middle, middle], [place - 0.13, place + 0.13], color=INK, linewidth=2.2)
        axes.text(0, place - 0.3, shorten(method, 40), transform=axes.get_yaxis_transform(), fontweight="bold")
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
    axes.set(xlabel="change of score (points of 100)", yticks=[], ylim=(len(moved) - 0.6, -0.65))
    return [Panel("change", f"Change of each image's score under {condition_name(pair)}", figure)]


@styled
def training(histories: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> list[Panel]:
    """The loss of each method over the steps in a panel of its own (objectives differ), and validation SRCC in one."""
    panels = []
    for method in histories:
        steps, loss = _series(histories[method], "loss")
        if not steps.size:
            continue
        figure, axes = panel_of(f"{shorten(method, 24)}: loss", height=2.5)
        axes.plot(steps, loss, color=colour(names, method), alpha=0.3, linewidth=0.8)
        axes.plot(steps, _smooth(loss), color=colour(names, method))
        axes.set(xlabel="step")
        axes.set_ylim(*_limits(np.concatenate([_smooth(loss), np.quantile(loss, [0.02, 0.98])])))
        panels.append(Panel(f"training_loss_{method}", f"{method}: training loss by step", figure))
    keys = dict.fromkeys(key for rows in histories.values() for row in rows for key in row if "srcc" in key.lower())
    figure, axes = panel_of("validation SRCC", height=2.5)
    for key, dash in zip(keys, DASHES, strict=False):
        kind = f", {key.removeprefix('validation_').replace('_', ' ')}" if len(keys) > 1 else ""
        for method in histories:
            steps, srcc = _series(histories[method], key)
            if steps.size:
                line = line_of(names, method) | {"linestyle": dash}
                every = max(1, steps.size // 12)
                axes.plot(steps, srcc, label=shorten(method, 24) + kind, markersize=3.5, markevery=every, **line)
    if axes.lines:
        axes.set(xlabel="step")
        legend(figure, axes, columns=1 if len(keys) > 1 else 2)
        panels.append(Panel("training_validation", "SRCC on the validation images by step, per method", figure))
    return panels


class Views(NamedTuple):
    """An attacked image for the eye: before, after, and their difference around mid-grey, `factor` times as large."""

    image: UInt8[np.ndarray, "height width 3"]
    attacked: UInt8[np.ndarray, "height width 3"]
    difference: UInt8[np.ndarray, "height width 3"]
    factor: int


def views(example: Mapping[str, Any]) -> Views:
    """Rounded to 8 bits; the difference is amplified by the whole number that just keeps the largest one in range.

    Raises ValueError if image and attacked image are not both [height, width, 3].
    """
    image, attacked = np.asarray(example["image"]), np.asarray(example["attacked"], np.float64)
    if image.shape != attacked.shape or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"example {example['name']!r}: image and attacked must both be [height, width, 3], "
            f"got {image.shape} and {attacked.shape}"
        )
    change = np.nan_to_num(attacked - image / 255)
    change[np.abs(change) < 1e-6] = 0  # float32 rounding of the same pixels is no attack
    largest = np.abs(change).max(initial=0)
    # The same rounding must not cost a radius of 0.5/255 its factor of 255.
    factor = max(1, math.floor(0.5 / largest + 0.02)) if largest > 0 else 1
    return Views(image.astype(np.uint8), _bytes(image / 255 + change), _bytes(0.5 + factor * change), factor)


@styled
def example(entry: Mapping[str, Any], index: int) -> Panel:
    """An image, its attacked twin and the amplified difference, with scores and MOS, for use outside the report."""
    shown = views(entry)
    before, after = number(entry["before"]), number(entry["after"])
    captions = (
        f"score {decimals(before, 1)} (MOS {decimals(number(entry['mos']), 1)})",
        f"attacked: score {decimals(after, 1)}",
        f"difference, {shown.factor} times",
    )
    height, width = shown.image.shape[:2]
    figure = Figure(figsize=(8.4, 0.75 + 2.7 * height / width))
    for axes, image, caption in zip(np.ravel(figure.subplots(1, 3)), shown[:3], captions, strict=True):
        axes.imshow(image, interpolation="nearest" if width < 96 else "antialiased")
        axes.set_title(caption, fontweight="normal", fontsize=9)
        axes.axis("off")
    pair = condition(entry)
    title = f"{shorten(entry['method'], 30)}, {condition_name(pair)}: {shorten(str(entry['name']), 44)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return Panel(f"example_{index + 1:02d}_{entry['method']}", title, figure, dpi=110)


@styled
def to_png(panel: Panel) -> bytes:
    """The figure on white."""
    _lay_out(panel.figure)
    file = io.BytesIO()
    # Weak compression: photographs and noise take far longer to compress than to draw, for little gain.
    panel.figure.savefig(
        file, format="png", dpi=panel.dpi, metadata={"Software": None}, pil_kwargs={"compress_level": 3}
    )
    return file.getvalue()


@styled
def to_svg(panel: Panel, prefix: str) -> str:
    """An <svg> element to put into a page: transparent, in the page's text colour, every id beginning with `prefix`."""
    _lay_out(panel.figure)
    file = io.StringIO()
    panel.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, content in list(element.attrib.items()):
            del element.attrib[key]
            if key == "id":
                content = prefix + content
            elif key.endswith("href") and content.startswith("#"):
                content = f"#{prefix}{content[1:]}"
            content = content.replace("url(#", f"url(#{prefix}").replace(INK, "currentColor")
            element.set(key.rpartition("}")[2], content)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    return ElementTree.tostring(root, encoding="unicode")


def _lay_out(figure: Figure) -> None:
    """Places everything for good, so that saving once more does not have to find the layout again."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def panel_of(title: str, *, height: float, width: float = 3.7) -> tuple[Figure, Axes]:
    """A figure of one panel; inches."""
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.set_title(title)
    axes.tick_params(length=0)
    return figure, axes


def colour(names: Sequence[str], method: str) -> str:
    """The colour of a method, '#rrggbb', wherever it appears."""
    return COLOURS[names.index(method) % len(COLOURS)]


def line_of(names: Sequence[str], method: str) -> dict[str, Any]:
    """A method looks the same in every figure; beyond six methods the dashes change instead of the colours."""
    turn, place = divmod(names.index(method), len(COLOURS))
    return {"color": colour(names, method), "marker": MARKERS[place], "linestyle": DASHES[turn % len(DASHES)]}


def legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """The legend beneath the axes, and the height that it needs."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels), default=0) > 18 else columns
    figure.set_figheight(figure.get_figheight() + 0.17 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1.2)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    finite = np.asarray(values, float)[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    margin = 0.05 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one column, without the rows where it is empty."""
    points = np.array([(number(row.get("step")), number(row.get(key))) for row in rows]).reshape(-1, 2)
    steps, values = points[np.isfinite(points).all(-1)].T
    return steps, values


def _smooth(values: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """Centred running mean over about a thirtieth of the run."""
    window = min(2 * (values.size // 60) + 1, values.size)
    weight = np.ones(window)
    return np.convolve(values, weight, "same") / np.convolve(np.ones_like(values), weight, "same")


def _bytes(image: Float[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
