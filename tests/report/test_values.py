import math

import pytest

from cprl_jax.report import values


@pytest.mark.parametrize("absent", ["", None, "abc", math.nan])
def test_number_of_nothing_is_nan(absent):
    assert math.isnan(values.number(absent))
    assert math.isnan(values.value({"a": absent}, "a")) and math.isnan(values.value(None, "a"))


def test_text_of_numbers():
    assert values.number("0.25") == 0.25
    assert values.decimals(-0.001, 2) == "0.00"
    assert values.decimals(-0.126, 2) == "-0.13"
    assert [values.decimals(content, 2) for content in (math.nan, math.inf, -math.inf)] == ["–", "∞", "-∞"]
    signed = [values.decimals(content, 2, signed=True) for content in (0.5, -0.5, 0.001, -0.001)]
    assert signed == ["+0.50", "-0.50", "0.00", "0.00"]


def test_intervals_need_all_three_numbers():
    row = {"srcc": 0.3, "srcc_low": -0.126, "srcc_high": 0.5}
    assert values.interval(row, "srcc") == "[-0.13, 0.50]" and values.interval(row, "srcc", 1) == "[-0.1, 0.5]"
    for missing in row:
        assert values.interval({**row, missing: math.nan}, "srcc") == ""
    assert values.interval(None, "srcc") == ""


@pytest.mark.parametrize(
    ("low", "high", "side"), [(0.01, 0.2, 1), (0.004, 0.2, 0), (-0.2, -0.01, -1), (-0.2, 0.1, 0), (math.nan, 0.1, 0)]
)
def test_an_interval_excludes_zero_only_as_it_is_printed(low, high, side):
    assert values.side_of_zero(low, high, 2) == side


def test_names():
    assert values.shorten("short", 10) == "short"
    for length in (9, 10):
        short = values.shorten("a_very_long_name_2", length)
        assert len(short) == length and short.startswith("a_ve") and short.endswith("me_2")
    assert values.distinct([{"a": 2}, {"a": 1}, {"a": 2}], "a") == ["2", "1"]
    assert [values.listed(list(names)) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"rows\[1\] lacks b, c; it has a"):
        values.check([{"a": 1, "b": 2, "c": 3}, {"a": 1}], ("a", "b", "c"), "rows")
