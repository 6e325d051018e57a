"""The table of Causal-IQA: its numbers, its best marks, and a verdict that says no more than the intervals."""

import math

import numpy as np
import pytest

from cprl_jax.experiments.causal_iqa import results
from cprl_jax.experiments.causal_iqa.report import format_table
from cprl_jax.experiments.causal_iqa.table import Comparison, over_seeds

SRCC = {
    ("erm", "jpeg"): (0.80, 0.84),
    ("erm", "blur|<b>"): (0.50, 0.40),
    ("cis", "jpeg"): (0.90, 0.70),
    ("cis", "blur|<b>"): (0.60, 0.70),
}


def rows(srcc=None):
    return [
        {"update": update, "distortion": distortion, "seed": seed, "images": 30, "srcc": value, "plcc": value / 2}
        for (update, distortion), values in (SRCC if srcc is None else srcc).items()
        for seed, value in enumerate(values)
    ]


def average(update, srcc, difference=math.nan, low=math.nan, high=math.nan):
    return {
        "update": update,
        "srcc": srcc,
        "srcc_low": srcc - 0.1,
        "srcc_high": srcc + 0.1,
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "wins": 3,
        "cells": 4,
    }


AVERAGES = [average("erm", 0.635, 0.0, 0.0, 0.0), average("cis", 0.725, 0.09, 0.012, 0.134)]


def shown(rows, averages=AVERAGES):
    """{(name of the line, update): cell}."""
    table = Comparison(rows, averages).table()
    updates = [column.of for column in table.columns[1:]]
    lines = [line for block in table.blocks().values() for line in block]
    return {(line.name, u): cell for line in lines for u, cell in zip(updates, line.cells[1:], strict=True)}


def verdict(rows, averages):
    return Comparison(rows, averages).verdict()


def test_cells_are_means_and_ranges_over_seeds():
    cells = shown(rows())
    assert [cells[key][:2] for key in (("jpeg", "erm"), ("blur|<b>", "cis"))] == [
        ("0.820", "0.80 to 0.84"),
        ("0.650", "0.60 to 0.70"),
    ]
    assert {key for key, cell in cells.items() if cell.best} == {
        ("jpeg", "erm"),
        ("blur|<b>", "cis"),
        ("average", "cis"),
    }


def test_lines_and_averages_agree_also_where_an_srcc_is_not_known():
    found = rows({**SRCC, ("cis", "jpeg"): (0.9, math.nan), ("erm", "(test part)"): (1.0, 1.0)})
    averages = results.averages(found, seed=0, resamples=50)
    cells = shown(found, averages)
    for row in averages:
        lines = [float(cells[distortion, row["update"]].text) for distortion in ("jpeg", "blur|<b>")]
        assert np.mean(lines) == pytest.approx(row["srcc"], abs=1e-3)


def test_the_terminal_shows_every_number():
    lines = [line.split() for line in format_table(rows(), AVERAGES).splitlines()]
    assert lines[0] == ["held", "out", "images", "ERM", "CIS"]
    assert lines[1] == ["jpeg", "30", "0.820*", "0.80", "to", "0.84", "0.800", "0.70", "to", "0.90"]
    assert lines[2] == ["blur|<b>", "30", "0.450", "0.40", "to", "0.50", "0.650*", "0.60", "to", "0.70"]
    assert lines[4] == ["average", "0.635", "[0.54,", "0.73]", "0.725*", "[0.62,", "0.82]"]
    assert lines[5] == ["less", "ERM's", "–", "+0.090", "[0.012,", "0.134]"]
    assert lines[6] == ["cells", "above", "ERM's", "–", "3", "of", "4"]


def test_a_wide_table_fits_the_terminal():
    many = {(update, "kadid/non-eccentricity"): (0.5, -0.5) for update in ("erm", "metaiqa", "cis", "cip")}
    text = format_table(rows(many), [average(update, 0.5) for update, _ in many])
    assert max(map(len, text.splitlines())) <= 120


def test_markdown_shows_the_same_numbers():
    lines = Comparison(rows(), AVERAGES).table().markdown().splitlines()
    assert "|  | jpeg | 30 | **0.820** 0.80 to 0.84 | 0.800 0.70 to 0.90 |" in lines
    assert r"|  | blur\|\<b\> | 30 | 0.450 0.40 to 0.50 | **0.650** 0.60 to 0.70 |" in lines
    assert "| all distortions | average |  | 0.635 [0.54, 0.73] | **0.725** [0.62, 0.82] |" in lines


def test_equal_values_as_printed_are_both_the_best():
    cells = shown(rows({("erm", "jpeg"): (0.80041,), ("cis", "jpeg"): (0.79961,)}), [])
    assert all(cell.best for cell in cells.values()) and len(cells) == 2


def test_what_is_not_there_is_a_dash_and_nothing_is_decided():
    part = {key: values for key, values in SRCC.items() if key != ("cis", "blur|<b>")} | {("cis", "jpeg"): (0.99,)}
    cells = shown(rows(part))
    assert Comparison(rows(part), AVERAGES).missing == 3
    assert cells["blur|<b>", "cis"][:2] == ("–", "")
    assert cells["jpeg", "cis"][:2] == ("0.990", "1 of 2 seeds")
    assert not any(cell.best for cell in cells.values()), "half a cell and half an average do not compete"
    said = verdict(rows(part), AVERAGES)
    assert said.startswith("This comparison is not complete: 5 of 8 results are there.") and "beats" not in said


def test_scores_that_are_all_the_same_count_as_zero_and_are_told():
    constant = rows({**SRCC, ("cis", "jpeg"): (0.9, math.nan)})
    assert shown(constant)["jpeg", "cis"][:2] == ("0.450", "0.00 to 0.90")
    assert "1 of the 8 results has no SRCC" in verdict(constant, AVERAGES)


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ((0.09, 0.012, 0.134), "CIS beats ERM by 0.090 [0.012, 0.134]."),
        ((-0.09, -0.134, -0.012), "CIS is worse than ERM by 0.090 [0.012, 0.134]. No update is shown to be better"),
        ((0.09, -0.001, 0.2), "CIS cannot be told from ERM, the difference is +0.090 [-0.001, 0.200]. No update"),
        ((0.09, 0.0, 0.2), "CIS cannot be told from ERM"),
        ((0.09, 0.0004, 0.2), "CIS cannot be told from ERM, the difference is +0.090 [0.000, 0.200]"),
        ((-0.01, -0.2, -0.0), "CIS cannot be told from ERM, the difference is -0.010 [-0.200, 0.000]"),
        ((0.09, math.nan, math.nan), "CIS has no interval of its difference to ERM (+0.090), which decides nothing"),
        ((0.0, 0.0, 0.0), "CIS cannot be told from ERM, the difference is 0.000 [0.000, 0.000]"),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(difference, expected):
    averages = [AVERAGES[0], average("cis", 0.725, *difference)]
    said = verdict(rows(), averages)
    assert said.startswith("CIS has the highest average SRCC on distortions that training did not see, 0.725 ")
    assert expected in said
    assert ("beats" in said) == (difference[1] >= 0.0005)
    assert "trained once" not in said


def test_the_verdict_speaks_of_each_update_and_of_one_seed():
    single = rows({(update, "jpeg"): (0.5,) for update in ("erm", "cis", "cip", "own")})
    averages = [
        average("erm", 0.5),
        average("cis", 0.5, 0.1, 0.05, 0.2),
        average("cip", 0.4, -0.1, -0.2, -0.05),
        average("own", 0.5, 0.0, -0.1, 0.1),
    ]
    said = verdict(single, averages)
    assert said.startswith("ERM, CIS and own have the highest average SRCC")
    assert "CIS beats ERM by 0.100 [0.050, 0.200]; CIP is worse than ERM by 0.100 [0.050, 0.200]; own cannot" in said
    assert "No update" not in said
    assert "Every model was trained once" in said


def test_the_verdict_without_a_comparison():
    assert verdict([], []) == "There are no results yet."
    assert format_table([], []) == "There are no results yet."
    alone = {key: values for key, values in SRCC.items() if key[0] == "erm"}
    assert "No other update was trained" in verdict(rows(alone), AVERAGES[:1])
    others = {key: values for key, values in SRCC.items() if key[0] == "cis"}
    assert "Without ERM among the updates" in verdict(rows(others), [average("cis", 0.7)])


def test_a_test_part_is_not_called_unseen_and_stands_last():
    parts = {("erm", "(test part)"): (0.9,), ("erm", "jpeg"): (0.8,)}
    assert [name for name, _ in shown(rows(parts), AVERAGES[:1])] == ["jpeg", "all of the test part", "average"]
    text = format_table(rows(parts), AVERAGES[:1])
    assert "held out" not in text and "did not see" not in text
    whole = rows({("erm", "(test part)"): (0.9,)})
    assert "SRCC on the test part, 0.635" in verdict(whole, AVERAGES[:1])
    assert "bootstrap" not in format_table(whole, AVERAGES[:1])


def test_zero_shot_numbers_are_means_over_seeds():
    found = [
        {
            "method": "cis",
            "dataset": "livec",
            "images": 450,
            "seed": seed,
            "srcc": srcc,
            "srcc_low": srcc - 0.1,
            "srcc_high": srcc + 0.1,
            "plcc": 0.5,
            "plcc_low": math.nan,
            "plcc_high": math.nan,
            "rmse": 20 + seed,
        }
        for seed, srcc in enumerate((0.3, 0.5))
    ]
    (row,) = over_seeds(found)
    assert row["method"] == "CIS" and row["images"] == 450
    assert [row[key] for key in ("srcc", "srcc_low", "srcc_high", "plcc", "rmse")] == pytest.approx(
        [0.4, 0.3, 0.5, 0.5, 20.5]
    )
    assert math.isnan(row["plcc_low"])


def test_a_row_that_lacks_a_key_is_named():
    with pytest.raises(ValueError, match=r"rows\[0\] lacks seed, plcc; it has update"):
        Comparison([{"update": "erm", "distortion": "a", "images": 3, "srcc": 0.1}], [])
    with pytest.raises(ValueError, match=r"averages\[0\] lacks srcc_low"):
        Comparison([], [{"update": "erm", "srcc": 0.1}])
