"""The figures of the Causal-IQA report: what is drawn is what was given."""

import math

import matplotlib
import numpy as np
import pytest

from cprl_jax.experiments.causal_iqa import figures as pictures

NAMES = ["cis", "erm"]
SRCC = {
    ("cis", "(test part)"): (0.99,),
    ("erm", "(test part)"): (0.98,),
    ("cis", "jpeg"): (0.5, 0.7),
    ("erm", "jpeg"): (0.4, 0.5),
    ("cis", "blur"): (0.1, 0.3),
    ("erm", "blur"): (0.8, 0.9),
    ("cis", "$only_cis$"): (0.6,),
}
ROWS = [
    {"update": update, "distortion": distortion, "seed": seed, "srcc": value}
    for (update, distortion), values in SRCC.items()
    for seed, value in enumerate(values)
]


def entry(update="cis", name="a", size=(6, 8)):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
    return {"name": name, "update": update, "image": image, "map": generator.random(size)}


def test_distortions_are_in_the_order_of_erm_and_marks_are_means():
    (panel,) = pictures.by_distortion(ROWS, NAMES)
    (axes,) = panel.figure.axes
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert shown == ["blur", "$only_cis$", "jpeg", "all of the test part"]
    marks = {line.get_label(): line for line in axes.lines if line.get_label() in ("CIS", "ERM")}
    places = dict(zip(np.round(marks["ERM"].get_ydata()).astype(int), marks["ERM"].get_xdata(), strict=True))
    assert places == pytest.approx({0: 0.85, 2: 0.45, 3: 0.98})
    assert marks["CIS"].get_xdata() == pytest.approx([0.2, 0.6, 0.6, 0.99])
    dots = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "."]
    assert sorted(dots) == [[0.1, 0.3], [0.4, 0.5], [0.5, 0.7], [0.8, 0.9]]
    assert marks["CIS"].get_color() == matplotlib.colors.to_hex(pictures.COLOURS[0]).upper()


def test_differences_have_their_intervals_and_a_dot_per_distortion():
    averages = [
        {"update": "erm", "difference": 0.0, "difference_low": 0.0, "difference_high": 0.0},
        {"update": "cis", "difference": -0.25, "difference_low": -0.65, "difference_high": 0.15},
    ]
    (panel,) = pictures.differences(ROWS, averages, NAMES)
    (axes,) = panel.figure.axes
    bar, mark = axes.lines[:2]
    assert list(bar.get_xdata()) == [-0.65, 0.15] and list(mark.get_xdata()) == [-0.25, -0.25]
    (dots,) = axes.collections
    assert sorted(dots.get_offsets()[:, 0]) == pytest.approx([-0.65, 0.15]), "no dot for what ERM lacks, nor for all"
    assert pictures.differences(ROWS, [{**averages[1], "difference": math.nan}], NAMES) == []


def test_the_division_shows_every_image_and_every_subset():
    sizes = {"jpeg | content 0": 5, "jpeg | content 1": 3, "blur | level 2 | content 0+1": 7, "undistorted": 2}
    found = {"points": np.eye(3, 2), "clusters": [0, 1, 0], "names": ["a", "b", "c"], "sizes": sizes}
    view, bars = pictures.division(found)
    assert [len(dots.get_offsets()) for dots in view.figure.axes[0].collections] == [2, 1]
    assert [text.get_text() for text in view.figure.axes[0].texts] == ["a", "b", "c"]
    (axes,) = bars.figure.axes
    pieces = sorted((round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width()) for bar in axes.patches)
    assert pieces == [(0, 0, 5), (0, 5, 3), (1, 0, 7), (2, 0, 2)]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["jpeg", "blur", "undistorted"]
    tones = [matplotlib.colors.to_hex(dots.get_facecolor()) for dots in view.figure.axes[0].collections]
    assert tones == [colour.lower() for colour in pictures.COLOURS[:2]]
    assert pictures.division({}) == []


def test_an_overlay_is_brightest_where_the_map_is():
    image = np.full((4, 5, 3), 128, np.uint8)
    heat = np.zeros((4, 5))
    heat[1, 2] = 1e-9
    shown = pictures.overlay({"name": "a", "update": "cis", "image": image, "map": heat})
    assert shown.shape == image.shape and shown.dtype == np.uint8
    assert np.unravel_index(shown.sum(-1).argmax(), heat.shape) == (1, 2)
    scaled = pictures.overlay({"name": "a", "update": "cis", "image": image, "map": 1e6 * heat})
    np.testing.assert_array_equal(shown, scaled)
    empty = pictures.overlay({"name": "a", "update": "cis", "image": image, "map": np.full((4, 5), np.nan)})
    assert len(np.unique(empty.reshape(-1, 3), axis=0)) == 1


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"saliency of 'a' by 'cis'.*got \(6, 8, 3\) and \(8, 6\)"):
        pictures.overlay({**entry(), "map": np.ones((8, 6))})
