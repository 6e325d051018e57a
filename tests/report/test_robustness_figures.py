import io
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from cprl_jax.report import figures, robustness_figures

NAMES = ["plain", "cprl"]


def drawn(panel):
    pixels = np.asarray(Image.open(io.BytesIO(figures.to_png(panel))).convert("L"))
    assert pixels.std() > 1
    figures.to_svg(panel, "a-")


def test_landscapes_share_their_colours(made):
    found = [made.robustness("plain"), made.robustness("cprl", flat=0.1)]
    panels = robustness_figures.landscapes(found, NAMES)
    assert [panel.name for panel in panels] == ["landscape_plain", "landscape_cprl"]
    pictures = [panel.figure.axes[0].images[0] for panel in panels]
    for picture in pictures:
        np.testing.assert_allclose(picture.get_clim(), (-8.4, 8.4))
    # Along the gradient from left to right, the image in the middle, each cell around its point.
    shown = pictures[0].get_array()
    np.testing.assert_allclose(shown[2], [-8, -4, 0, 4, 8])
    np.testing.assert_allclose(shown[:, 2], [-0.4, -0.2, 0, 0.2, 0.4], atol=1e-12)
    np.testing.assert_allclose(pictures[0].get_extent(), (-5, 5, -5, 5))
    for panel in panels:
        drawn(panel)


def test_flat_undefined_and_missing_landscapes(made):
    assert robustness_figures.landscapes([], NAMES) == []
    assert robustness_figures.landscapes([{"method": "plain"}], NAMES) == []
    flat, undefined = made.robustness("plain", flat=0.0), made.robustness("cprl")
    undefined["landscape"]["scores"] = undefined["landscape"]["scores"] * math.nan
    for panel in robustness_figures.landscapes([flat, undefined], NAMES):
        drawn(panel)


def test_strengths_have_a_row_for_every_attack(made):
    found = [made.robustness("plain"), made.robustness("cprl", masked=True)]
    (panel,) = robustness_figures.strengths(found, NAMES)
    axes = panel.figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["FGSM", "PGD-10"]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(4, 0), (5, 1)])
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [0, 0])
    assert to_hex(axes.lines[1].get_color()).upper() == figures.colour(NAMES, "cprl")
    drawn(panel)


@pytest.mark.parametrize("found", [[], [{"method": "plain"}], [{"method": "plain", "checks": []}]])
def test_strengths_without_checks(found):
    assert robustness_figures.strengths(found, NAMES) == []


def test_strengths_leave_out_what_is_not_finite(made):
    found = made.robustness("plain")
    found["checks"][1]["numbers"]["FGSM"] = math.nan
    (panel,) = robustness_figures.strengths([found], NAMES)
    np.testing.assert_allclose(panel.figure.axes[0].lines[0].get_xydata(), [(5, 1)])
    drawn(panel)


def test_names_of_the_checks_are_those_of_the_checks():
    """The report imports nothing that computes, so it has to repeat two names."""
    from cprl_jax.robustness import trust

    assert robustness_figures.NOT_STRENGTHS == (trust.ZERO_GRADIENTS, trust.UNBOUNDED)
