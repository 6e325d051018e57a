import io
import math
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cprl_jax.report import figures

NAMES = ["plain", "cprl"]
PGD = ("pgd", 2.0)


def size_of(panel):
    pixels = np.asarray(Image.open(io.BytesIO(figures.to_png(panel))).convert("L"))
    assert pixels.std() > 1, "something is drawn"
    return pixels.shape


def test_curves_one_panel_per_attack_with_clean_value_at_zero(made):
    panels = figures.curves(made.collapse, NAMES)
    assert [panel.name for panel in panels] == ["srcc_fgsm", "srcc_pgd"]
    lines = panels[1].figure.axes[0].lines
    np.testing.assert_allclose(lines[0].get_xydata(), [(0, 0.86), (1, -0.31), (2, -0.52)])
    np.testing.assert_allclose(lines[1].get_ydata(), [0.84, 0.65, 0.52])
    assert size_of(panels[0])[0] > 300


def test_curves_without_attacks_or_numbers(made):
    assert figures.curves([made.row()], NAMES) == []
    (panel,) = figures.curves([made.row(attack="pgd", radius=1.0, srcc=math.nan)], NAMES)
    size_of(panel)


def test_scatters_share_their_axes(made):
    panels = figures.scatters(made.scores(), PGD, NAMES)
    assert [panel.name for panel in panels] == ["scatter_plain", "scatter_cprl"]
    axes = [panel.figure.axes[0] for panel in panels]
    assert len({limits for one in axes for limits in (one.get_xlim(), one.get_ylim())}) == 1
    dots = panels[0].figure.axes[0].collections[0]
    expected = [(row["clean"], row["score"]) for row in made.scores(("plain",), (PGD,))]
    np.testing.assert_allclose(dots.get_offsets(), expected)
    size_of(panels[0])


def test_scatters_leave_out_what_is_not_finite(made):
    scores = made.scores(("plain",), (PGD,))
    for row in scores[:4]:
        row["score"] = math.nan
    scores[5]["mos"] = math.nan
    (panel,) = figures.scatters(scores, PGD, NAMES)
    assert len(panel.figure.axes[0].collections[0].get_offsets()) == len(scores) - 4
    for row in scores:
        row["clean"] = math.nan
    assert figures.scatters(scores, PGD, NAMES) == []
    assert figures.changes(scores, PGD, NAMES) == []


def test_changes_show_every_image_and_the_median(made):
    (panel,) = figures.changes(made.scores(), PGD, NAMES)
    axes = panel.figure.axes[0]
    assert [len(dots.get_offsets()) for dots in axes.collections] == [12, 12]
    rows = made.scores(("plain",), (PGD,))
    assert axes.lines[1].get_xdata()[0] == pytest.approx(np.median([row["score"] - row["clean"] for row in rows]))
    size_of(panel)


def test_training_reads_text_and_skips_empty_cells(made):
    panels = figures.training({"plain": made.history(), "cprl": made.history(30)}, NAMES)
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
def test_views_amplify_as_far_as_fits(made, radius, factor):
    entry = made.example(radius=radius)
    shown = figures.views(entry)
    assert shown.factor == factor
    assert shown.image.dtype == shown.attacked.dtype == shown.difference.dtype == np.uint8
    change = entry["attacked"].astype(np.float64) - entry["image"] / 255
    literal = np.round(255 * np.clip(0.5 + factor * change, 0, 1))
    np.testing.assert_allclose(shown.difference, literal, atol=1)
    np.testing.assert_array_equal(shown.image, entry["image"])


def test_views_of_an_unchanged_image(made):
    entry = made.example()
    shown = figures.views(entry | {"attacked": entry["image"] / np.float32(255)})
    assert shown.factor == 1 and np.unique(shown.difference).tolist() == [128]
    np.testing.assert_array_equal(shown.attacked, shown.image)


def test_views_refuse_what_does_not_fit(made):
    entry = made.example()
    with pytest.raises(ValueError, match=r"must both be \[height, width, 3\], got \(24, 32, 3\) and \(24, 31, 3\)"):
        figures.views(entry | {"attacked": entry["attacked"][:, :31]})


def test_example_states_scores_mos_and_factor(made):
    panel = figures.example(made.example(), 0)
    titles = [axes.get_title("left") for axes in panel.figure.axes]
    assert titles == ["score 68.0 (MOS 71.2)", "attacked: score 21.3", "difference, 63 times"]
    assert panel.name == "example_01_plain"
    size_of(panel)


def test_a_method_looks_the_same_everywhere(made):
    colour = matplotlib.colors.to_hex(figures.curves(made.collapse, NAMES)[0].figure.axes[0].lines[1].get_color())
    assert colour.upper() == figures.colour(NAMES, "cprl")
    loss = figures.training({"cprl": made.history()}, NAMES)[0].figure.axes[0].lines[1]
    assert matplotlib.colors.to_hex(loss.get_color()) == colour
    many = [f"method {i}" for i in range(14)]
    looks = [tuple(figures.line_of(many, name).values()) for name in many]
    assert len(set(looks)) == 14


def test_svg_fits_into_a_page(made):
    panel = figures.curves(made.collapse, NAMES)[0]
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


def test_hostile_names_are_drawn_as_they_are(made):
    name = r"a$b_{c$ \frac <&> " + "x" * 60
    rows = made.rows({name: {("none", 0): 0.8, ("pgd", 2): 0.1}})
    for panel in (*figures.curves(rows, [name]), *figures.scatters(made.scores((name,)), PGD, [name])):
        ElementTree.fromstring(figures.to_svg(panel, "a-"))
        size_of(panel)


def test_style_leaves_no_trace(made):
    before = dict(matplotlib.rcParams)
    backend = matplotlib.get_backend()
    for panel in figures.curves(made.collapse, NAMES):
        figures.to_png(panel)
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend
