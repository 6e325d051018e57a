import io
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from cprl_jax.experiments.cprl import figures as pictures
from cprl_jax.report import figures
from cprl_jax.robustness import trust

NAMES = ["plain", "cprl"]
PGD = ("pgd", 2.0)


def drawn(panel):
    pixels = np.asarray(Image.open(io.BytesIO(figures.to_png(panel))).convert("L"))
    assert pixels.std() > 1
    figures.to_svg(panel, "a-")


def test_curves_one_panel_per_attack_with_clean_value_at_zero(made):
    panels = pictures.curves(made.results(made.collapse))
    assert [panel.name for panel in panels] == ["srcc_fgsm", "srcc_pgd"]
    lines = panels[1].figure.axes[0].lines
    np.testing.assert_allclose(lines[0].get_xydata(), [(0, 0.86), (1, -0.31), (2, -0.52)])
    np.testing.assert_allclose(lines[1].get_ydata(), [0.84, 0.65, 0.52])
    drawn(panels[0])


def test_curves_without_attacks_or_numbers(made):
    assert pictures.curves(made.results([made.row()])) == []
    (panel,) = pictures.curves(made.results([made.row(attack="pgd", radius=1.0, srcc=math.nan)]))
    drawn(panel)


def test_scatters_share_their_axes(made):
    panels = pictures.scatters(made.results(scores=made.scores()))
    assert [panel.name for panel in panels] == ["scatter_plain", "scatter_cprl"]
    axes = [panel.figure.axes[0] for panel in panels]
    assert len({limits for one in axes for limits in (one.get_xlim(), one.get_ylim())}) == 1
    dots = panels[0].figure.axes[0].collections[0]
    expected = [(row["clean"], row["score"]) for row in made.scores(("plain",), (PGD,))]
    np.testing.assert_allclose(dots.get_offsets(), expected)
    drawn(panels[0])


def test_scatters_leave_out_what_is_not_finite(made):
    scores = made.scores(("plain",), (PGD,))
    for row in scores[:4]:
        row["score"] = math.nan
    scores[5]["mos"] = math.nan
    (panel,) = pictures.scatters(made.results(scores=scores))
    assert len(panel.figure.axes[0].collections[0].get_offsets()) == len(scores) - 4
    for row in scores:
        row["clean"] = math.nan
    assert pictures.scatters(made.results(scores=scores)) == []
    assert pictures.changes(made.results(scores=scores)) == []


def test_changes_show_every_image_and_the_median(made):
    (panel,) = pictures.changes(made.results(scores=made.scores()))
    axes = panel.figure.axes[0]
    assert [len(dots.get_offsets()) for dots in axes.collections] == [12, 12]
    rows = made.scores(("plain",), (PGD,))
    assert axes.lines[1].get_xdata()[0] == pytest.approx(np.median([row["score"] - row["clean"] for row in rows]))
    drawn(panel)


def test_landscapes_share_their_colours(made):
    found = [made.robustness("plain"), made.robustness("cprl", flat=0.1)]
    panels = pictures.landscapes(made.results(robustness=found))
    assert [panel.name for panel in panels] == ["landscape_plain", "landscape_cprl"]
    images = [panel.figure.axes[0].images[0] for panel in panels]
    for picture in images:
        np.testing.assert_allclose(picture.get_clim(), (-8.4, 8.4))
    # Along the gradient from left to right, the image in the middle, each cell around its point.
    shown = images[0].get_array()
    np.testing.assert_allclose(shown[2], [-8, -4, 0, 4, 8])
    np.testing.assert_allclose(shown[:, 2], [-0.4, -0.2, 0, 0.2, 0.4], atol=1e-12)
    np.testing.assert_allclose(images[0].get_extent(), (-5, 5, -5, 5))
    for panel in panels:
        drawn(panel)


def test_flat_undefined_and_missing_landscapes(made):
    assert pictures.landscapes(made.results(robustness=[])) == []
    assert pictures.landscapes(made.results(robustness=[{"method": "plain"}])) == []
    flat, undefined = made.robustness("plain", flat=0.0), made.robustness("cprl")
    undefined["landscape"]["scores"] = undefined["landscape"]["scores"] * math.nan
    for panel in pictures.landscapes(made.results(robustness=[flat, undefined])):
        drawn(panel)


def test_strengths_have_a_row_for_every_attack(made):
    found = [made.robustness("plain"), made.robustness("cprl", masked=True)]
    (panel,) = pictures.strengths(made.results(robustness=found))
    axes = panel.figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["FGSM", "PGD-10"]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(4, 0), (5, 1)])
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [0, 0])
    assert to_hex(axes.lines[1].get_color()).upper() == figures.colour(NAMES, "cprl")
    drawn(panel)


@pytest.mark.parametrize("found", [[], [{"method": "plain"}], [{"method": "plain", "checks": []}]])
def test_strengths_without_checks(made, found):
    assert pictures.strengths(made.results(robustness=found)) == []


def test_strengths_leave_out_what_is_not_finite_or_no_strength(made):
    found = made.robustness("plain")
    found["checks"][1]["numbers"] |= {"FGSM": math.nan, trust.SMALLEST: 3.0}
    found["checks"].append({**found["checks"][0], "name": trust.NOISE, "numbers": {"noise": 2.0}})
    (panel,) = pictures.strengths(made.results(robustness=[found]))
    np.testing.assert_allclose(panel.figure.axes[0].lines[0].get_xydata(), [(5, 1)])
    drawn(panel)


def test_channels_are_in_the_order_of_their_activation_without_attack(made):
    entries = [made.robustness("plain"), made.robustness("cprl")]
    entries[0]["activations"] = {"clean": [0.2, 0.5, 0.1], "attacked": [0.4, 0.3, 0.1], "radius": 2.0}
    (panel,) = pictures.activations(made.results(robustness=entries))
    attacked, clean = panel.figure.axes[0].lines
    np.testing.assert_allclose(clean.get_ydata(), [0.5, 0.2, 0.1])
    np.testing.assert_allclose(attacked.get_ydata(), [0.3, 0.4, 0.1])
    assert (panel.name, attacked.get_label()) == ("activations_plain", "PGD at 2/255")
    assert panel.name.startswith(pictures.NAMES)
    drawn(panel)
    assert pictures.activations(made.results()) == []


def test_every_method_has_its_landscape(made):
    names = [f"method_{number}" for number in range(13)]
    panels = pictures.landscapes(made.results(robustness=[made.robustness(name) for name in names]))
    assert [panel.name for panel in panels] == [f"landscape_{name}" for name in names]
