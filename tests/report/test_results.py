import math

import numpy as np
import pytest

from cprl_jax.report import results


def test_conditions_are_ordered_for_reading(made):
    entries = [
        made.row(attack="pgd", radius=4),
        made.row(attack="target_free", radius=1),
        made.row(attack="fgsm", radius=2.0),
        made.row(attack="pgd", radius=0.5),
        made.row(),
    ]
    expected = [("none", 0.0), ("fgsm", 2.0), ("pgd", 0.5), ("pgd", 4.0), ("target_free", 1.0)]
    assert results.conditions(entries) == expected


def test_radii_that_print_alike_are_one(made):
    entries = [made.row(attack="pgd", radius=2 / 255 * 255), made.row(attack="pgd", radius=np.float32(2.0000001))]
    assert results.conditions(entries) == [("pgd", 2.0)]
    assert results.conditions([made.row(radius="")]) == [results.CLEAN]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([("none", 0.0)], None),
        ([], None),
        ([("fgsm", 2.0), ("pgd", 0.5), ("pgd", 1.0), ("pgd", 4.0)], ("pgd", 1.0)),
        ([("none", 0.0), ("fgsm", 8.0)], ("fgsm", 8.0)),
        ([("universal", 2.0), ("universal", 9.0)], ("universal", 2.0)),
        ([("pgd", 1.0), ("pgd", 3.0)], ("pgd", 1.0)),
    ],
)
def test_headline_is_pgd_nearest_to_two(found, expected):
    assert results.headline(found) == expected


def test_check_names_what_is_wrong(made):
    with pytest.raises(ValueError, match=r"rows\[1\] lacks plcc, rmse; it has method, attack"):
        broken = {k: v for k, v in made.row().items() if k not in ("plcc", "rmse")}
        results.check([made.row(), broken], results.ROW_KEYS, "rows")
    with pytest.raises(ValueError, match="against must be one of mos, prediction, got 'dmos'"):
        results.check([made.row(against="dmos")], results.ROW_KEYS, "rows")
    with pytest.raises(ValueError, match=r"radius must be a number \(units of 1/255\), got nan"):
        results.check([made.row(attack="pgd", radius=math.nan)], results.ROW_KEYS, "rows")


@pytest.mark.parametrize("absent", ["", None, "abc", math.nan])
def test_number_of_nothing_is_nan(absent):
    assert math.isnan(results.number(absent))


def test_text_of_numbers():
    assert results.number("0.25") == 0.25
    assert results.decimals(-0.001, 2) == "0.00"
    assert results.decimals(-0.126, 2) == "-0.13"
    assert results.decimals(math.nan, 2) == "–"
    assert results.decimals(math.inf, 2, "?") == "?"


def test_names():
    assert results.condition_name(("none", 0.0)) == "no attack"
    assert results.condition_name(("pgd", 0.5)) == "PGD at 0.5/255"
    assert results.condition_name(("target_free", 2.0)) == "target free at 2/255"
    assert results.shorten("short", 10) == "short"
    for length in (9, 10):
        short = results.shorten("a_very_long_name_2", length)
        assert len(short) == length and short.startswith("a_ve") and short.endswith("me_2")


def test_find_distinguishes_all_keys(made):
    found = results.find(made.collapse, "cprl", ("pgd", 2.0), "mos")
    assert found["srcc"] == 0.52 and found["against"] == "mos"
    assert results.find(made.collapse, "at", ("pgd", 2.0), "mos") is None
    assert math.isnan(results.value(None, "srcc"))
