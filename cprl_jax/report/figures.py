"""Figures of a report, each one small panel: legible on a phone, and placed side by side where there is room.

`names` is the list of all methods of a report: a method's place in it gives its colour and marker in every figure.
Drawn on `matplotlib.figure.Figure` objects, without pyplot: no window, no global figure list, and the style
sheet holds only while a figure is drawn and saved.
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
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cprl_jax.report.values import Row, number, shorten
from cprl_jax.runtime.files import write_file

INK = "#1d2126"  # replaced by the page's text colour in SVG
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe, Ito: told apart by every eye
MARKERS = "osD^vP"
DASHES = ("-", "--", ":", "-.")
MANY_POINTS = 1500  # from here a scatter is embedded in its SVG as pixels
_STYLE = Path(__file__).with_name("figures.mplstyle")


class Panel(NamedTuple):
    """A figure, its file name without the ending, its description, and the resolution of its PNG."""

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
    """Draws in the style of the report."""

    @functools.wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(fname=_STYLE):
            return draw(*args, **kwargs)

    return wrapped


class Strip(NamedTuple):
    """A row of dots, one for each value, under its label, with a bar: by default from quartile to quartile."""

    label: str
    colour: str
    values: Sequence[float]
    bar: tuple[float, float, float] | None = None  # low end, mark, high end


@styled
def strips(name: str, alt: str, rows: Sequence[Strip], *, xlabel: str) -> list[Panel]:
    """One panel of all strips; none without any."""
    if not rows:
        return []
    figure, axes = panel_of("", height=0.8 + 0.62 * len(rows))
    for place, row in enumerate(rows):
        # The golden ratio distributes the dots evenly over the row, in the same way every time.
        shifts = 0.18 * (2 * (np.arange(len(row.values)) * 0.6180339887 % 1) - 1)
        many = len(row.values) > MANY_POINTS
        axes.scatter(row.values, place + shifts, s=9, color=row.colour, alpha=0.55, linewidths=0, rasterized=many)
        low, middle, high = row.bar or np.quantile(row.values, (0.25, 0.5, 0.75))
        axes.plot([low, high], [place, place], color=INK, linewidth=1.2)
        axes.plot([middle, middle], [place - 0.13, place + 0.13], color=INK, linewidth=2.2)
        axes.text(0, place - 0.3, shorten(row.label, 40), transform=axes.get_yaxis_transform(), fontweight="bold")
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
    axes.locator_params(axis="x", nbins=6)
    axes.set(xlabel=xlabel, yticks=[], ylim=(len(rows) - 0.6, -0.65))
    return [Panel(name, alt, figure)]


@styled
def training(histories: Mapping[str, Sequence[Row]], names: Sequence[str]) -> list[Panel]:
    """The loss of each method over the steps in separate panels (objectives differ), and validation SRCC in one."""
    panels = []
    for method in histories:
        steps, loss = _series(histories[method], "loss")
        if not steps.size:
            continue
        figure, axes = panel_of(f"{shorten(method, 24)}: loss", height=2.5)
        axes.plot(steps, loss, color=colour(names, method), alpha=0.3, linewidth=0.8)
        axes.plot(steps, _smooth(loss), color=colour(names, method))
        axes.set(xlabel="step")
        axes.set_ylim(*limits(np.concatenate([_smooth(loss), np.quantile(loss, [0.02, 0.98])])))
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


def views(name: str, image: np.ndarray, attacked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """An attacked image for the eye, as uint8: before, after, their difference around mid-grey, and its factor.

    The difference is amplified by the whole number that just keeps the largest one in range.

    Args:
      name: for the error message.
      image: uint8 [height, width, 3].
      attacked: the same shape, in [0, 1].

    Raises:
      ValueError: other shapes.
    """
    image, attacked = np.asarray(image), np.asarray(attacked, np.float64)
    if image.shape != attacked.shape or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"{name!r}: image and attacked must both be [height, width, 3], got {image.shape} and {attacked.shape}"
        )
    change = np.nan_to_num(attacked - image / 255)
    change[np.abs(change) < 1e-6] = 0  # float32 rounding of the same pixels is no attack
    largest = np.abs(change).max(initial=0)
    # The same rounding must not cost a radius of 0.5/255 its factor of 255.
    factor = max(1, math.floor(0.5 / largest + 0.02)) if largest > 0 else 1
    shown = (np.round(255 * np.clip(each, 0, 1)) for each in (image / 255, image / 255 + change, 0.5 + factor * change))
    return *(each.astype(np.uint8) for each in shown), factor


@styled
def side_by_side(name: str, title: str, images: Sequence[np.ndarray], captions: Sequence[str]) -> Panel:
    """Images of one size in a row, each under its caption."""
    height, width = images[0].shape[:2]
    figure = Figure(figsize=(2.8 * len(images), 0.75 + 2.7 * height / width))
    for axes, image, caption in zip(np.ravel(figure.subplots(1, len(images))), images, captions, strict=True):
        axes.imshow(image, interpolation="nearest" if width < 96 else "antialiased")
        axes.set_title(shorten(caption, 40), fontweight="normal", fontsize=9)
        axes.axis("off")
    figure.suptitle(shorten(title, 100), x=0.01, ha="left", fontsize=10, fontweight="bold")
    return Panel(name, title, figure, dpi=110)


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


def colour_bar(figure: Figure, axes: Axes, mappable: Any, label: str) -> None:
    bar = figure.colorbar(mappable, ax=axes, shrink=0.9, aspect=24)
    bar.set_label(label)
    bar.outline.set_visible(False)


def limits(values: Sequence[float]) -> tuple[float, float]:
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
