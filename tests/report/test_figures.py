import io
import math
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cprl_jax.report import figures

NAMES = ["plain", "cprl"]


def size_of(panel):
    pixels = np.asarray(Image.open(io.BytesIO(figures.to_png(panel))).convert("L"))
    assert pixels.std() > 1, "something is drawn"
    return pixels.shape


def curve(names=NAMES):
    """A line for each method."""
    with matplotlib.rc_context(fname=figures._STYLE):
        figure, axes = figures.panel_of("PGD", height=3)
        for name in names:
            axes.plot([0, 1, 2], [0.9, 0.5, 0.1], label=figures.shorten(name, 24), **figures.line_of(names, name))
        figures.legend(figure, axes)
    return figures.Panel("curve", "SRCC", figure)


def history(steps=60):
    """As read from a CSV: text, with validation columns filled now and then."""
    rows = []
    for step in range(1, steps + 1):
        srcc = repr(0.8 - 1 / step) if step % 10 == 0 else ""
        row = {"step": str(step), "loss": repr(10 / step + 1), "validation_srcc": srcc, "validation_attacked_srcc": ""}
        rows.append(row)
    return rows


def attacked(radius=2.0, size=(24, 32)):
    random = np.random.default_rng(1)
    image = random.integers(20, 230, (*size, 3), dtype=np.uint8)
    change = np.float32(radius / 255) * np.sign(random.normal(size=image.shape))
    return image, (np.float32(image / 255) + change).astype(np.float32)


def test_strips_show_every_value_and_the_bar():
    rows = [figures.Strip("plain", "#D55E00", [1.0, 2.0, 9.0]), figures.Strip("b", "#0072B2", [], (0.0, 1.0, 2.0))]
    (panel,) = figures.strips("change", "alt", rows, xlabel="change")
    (axes,) = panel.figure.axes
    assert [sorted(dots.get_offsets()[:, 0]) for dots in axes.collections] == [[1, 2, 9], []]
    bar, middle = axes.lines[:2]
    assert list(bar.get_xdata()) == [1.5, 5.5] and list(middle.get_xdata()) == [2, 2]
    assert figures.strips("change", "alt", [], xlabel="change") == []
    size_of(panel)


def test_training_reads_text_and_skips_empty_cells():
    panels = figures.training({"plain": history(), "cprl": history(30)}, NAMES)
    assert [panel.name for panel in panels] == ["training_loss_plain", "training_loss_cprl", "training_validation"]
    validation = panels[-1].figure.axes[0].lines
    assert [len(line.get_xdata()) for line in validation] == [6, 3], "the column that is always empty draws nothing"
    smooth = panels[0].figure.axes[0].lines[1].get_ydata()
    loss = 10 / np.arange(1.0, 61) + 1
    np.testing.assert_allclose(smooth[5], loss[4:7].mean())
    np.testing.assert_allclose(smooth[0], loss[:2].mean())
    size_of(panels[-1])


@pytest.mark.parametrize("history", [[], [{"step": "1", "loss": ""}], [{"step": 1}], [{"step": 1, "loss": math.nan}]])
def test_training_without_numbers(history):
    assert figures.training({"plain": history}, ["plain"]) == []
    assert figures.training({}, []) == []


def test_training_of_one_step():
    (panel,) = figures.training({"plain": [{"step": 1, "loss": 2.0}]}, ["plain"])
    size_of(panel)


@pytest.mark.parametrize(("radius", "factor"), [(0.5, 255), (1, 127), (2, 63), (4, 31), (128, 1)])
def test_views_amplify_as_far_as_fits(radius, factor):
    image, twin = attacked(radius)
    *shown, amplified = figures.views("a", image, twin)
    assert amplified == factor
    assert all(view.dtype == np.uint8 for view in shown)
    change = twin.astype(np.float64) - image / 255
    literal = np.round(255 * np.clip(0.5 + factor * change, 0, 1))
    np.testing.assert_allclose(shown[2], literal, atol=1)
    np.testing.assert_array_equal(shown[0], image)


def test_views_of_an_unchanged_image():
    image, _ = attacked()
    before, after, difference, factor = figures.views("a", image, image / np.float32(255))
    assert factor == 1 and np.unique(difference).tolist() == [128]
    np.testing.assert_array_equal(after, before)


def test_views_refuse_what_does_not_fit():
    image, twin = attacked()
    with pytest.raises(
        ValueError, match=r"'a': .*must both be \[height, width, 3\], got \(24, 32, 3\) and \(24, 31, 3\)"
    ):
        figures.views("a", image, twin[:, :31])


def test_images_stand_side_by_side_under_their_captions():
    panel = figures.side_by_side("example_01", "a title", list(figures.views("a", *attacked())[:3]), ["x", "y", "z"])
    assert [axes.get_title("left") for axes in panel.figure.axes] == ["x", "y", "z"]
    size_of(panel)


def test_a_method_looks_the_same_everywhere():
    colour = matplotlib.colors.to_hex(curve().figure.axes[0].lines[1].get_color())
    assert colour.upper() == figures.colour(NAMES, "cprl")
    loss = figures.training({"cprl": history()}, NAMES)[0].figure.axes[0].lines[1]
    assert matplotlib.colors.to_hex(loss.get_color()) == colour
    many = [f"method {i}" for i in range(14)]
    looks = [tuple(figures.line_of(many, name).values()) for name in many]
    assert len(set(looks)) == 14


def test_svg_fits_into_a_page():
    panel = curve()
    first, second = figures.to_svg(panel, "a-"), figures.to_svg(panel, "b-")
    assert "http" not in first and "<style" not in first and "<metadata" not in first
    assert "currentColor" in first and figures.INK not in first
    root = ElementTree.fromstring(first)
    assert root.tag == "svg" and "viewBox" in root.attrib and "width" not in root.attrib
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    assert ids and all(name.startswith("a-") for name in ids)
    used = [element.get("href")[1:] for element in root.iter("use")]
    assert used and set(used) <= ids
    assert first == figures.to_svg(panel, "a-"), "the same figure gives the same text"
    assert second.replace("b-", "a-") == first


def test_hostile_names_are_drawn_as_they_are():
    panel = curve([r"a$b_{c$ \frac <&> " + "x" * 60])
    ElementTree.fromstring(figures.to_svg(panel, "a-"))
    size_of(panel)


def test_style_leaves_no_trace():
    before = dict(matplotlib.rcParams)
    backend = matplotlib.get_backend()
    for panel in [curve()]:
        figures.to_png(panel)
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend
