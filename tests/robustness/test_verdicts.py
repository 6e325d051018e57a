"""What the trust checks conclude from numbers, on cases worked out by hand."""

import numpy as np
import pytest

from cprl_jax.robustness import verdicts
from cprl_jax.robustness.verdicts import SMALLEST, Judge

JUDGE = Judge(np.array([20.0, 40.0, 60.0, 80.0]))


def const(value, size=4):
    return np.full(size, float(value))


def test_order_is_judged_by_margin_and_standard_error():
    judge = Judge(np.array([40.0, 60.0]))  # a thousandth of their standard deviation: 0.01
    strong = np.array([10.0, 12.0, 8.0, 10.0])
    assert not judge.stronger(strong * 1.04, strong), "less than 5 %"
    assert judge.stronger(strong * 1.2, strong)
    assert not judge.stronger(strong + np.array([8.0, -3.0, -2.0, 1.0]), strong), "one image does not decide"
    assert judge.stronger(np.full(4, 0.02), np.zeros(4)) and not judge.stronger(np.full(4, 0.005), np.zeros(4))
    assert judge.stronger(np.array([2.0]), np.array([1.0])), "a single image has no standard error"


def test_comparisons_say_what_they_would_have_seen():
    strong = np.array([10.0, 12.0, 8.0, 10.0])
    # Two standard errors of these differences, whose standard deviation is 2, are 2; 5 % of 10 are half a point.
    other = strong + np.array([np.sqrt(3), np.sqrt(3), -np.sqrt(3), -np.sqrt(3)])
    found = JUDGE.grows("name", {"first": other, "second": strong})
    assert found.verdict == "passed" and found.numbers[SMALLEST] == pytest.approx(2)
    assert "a difference counts from 2 points on" in found.explanation
    assert JUDGE.grows("name", {"first": other + 1.9, "second": strong}).verdict == "passed"
    assert JUDGE.grows("name", {"first": other + 2.1, "second": strong}).verdict == "suspicious"
    assert JUDGE.grows("name", {"a": const(1), "b": const(10)}).numbers[SMALLEST] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("strengths", "floor", "verdict"),
    [
        ([1, 2, 4], 30, "passed"),  # grows, although the floor is far
        ([1, 2, 2], 30, "suspicious"),
        ([1, 2, 2], 2, "passed"),  # at the floor
        ([2, 2, 4], 30, "suspicious"),
        ([0, 0, 0], 30, "suspicious"),
        ([1, 2, np.nan], 30, "suspicious"),
    ],
)
def test_strength_has_to_grow_on_to_the_floor(strengths, floor, verdict):
    found = JUDGE.reaches("name", dict(zip([4.0, 8.0, 16.0], map(const, strengths), strict=True)), const(floor))
    assert found.verdict == verdict
    assert found.numbers["floor"] == floor and "PGD at 16/255" in found.numbers


def test_growth_that_may_be_there_is_not_missed():
    """Four images that differ much cannot show that there is none."""
    growth = np.array([3.0, -3.0, 3.0, -3.0])
    found = JUDGE.reaches("name", {8.0: const(10), 16.0: 10 + growth}, const(30))
    assert found.verdict == "passed" and found.numbers[SMALLEST] == pytest.approx(np.sqrt(12))
    assert found.explanation.endswith("growth is known to within 3.5 points.")


@pytest.mark.parametrize(
    ("before", "after", "verdict"), [(10, 10, "passed"), (10, 10.05, "passed"), (10, 10.2, "suspicious")]
)
def test_a_rise_of_one_per_cent_is_not_converged(before, after, verdict):
    found = JUDGE.converged("name", const(before), const(after))
    assert found.verdict == verdict and found.numbers[SMALLEST] == pytest.approx(0.1)
    assert JUDGE.converged("name", const(0), const(0)).explanation.startswith("No attack along gradients moves any")
    assert JUDGE.converged("name", const(np.nan), const(1)).verdict == "suspicious"


@pytest.mark.parametrize(
    ("noise", "white_box", "promise", "verdict"),
    [
        (0.5, 10, 10, "passed"),
        (6, 10, 20, "suspicious"),  # as an attack
        (6, 20, 10, "suspicious"),  # as nothing should along that gradient
        (1, 0, 0, "suspicious"),
        (0, 0, 0, "passed"),  # other checks say that nothing moves
        (np.nan, 10, 10, "suspicious"),
    ],
)
def test_noise_is_held_against_attack_and_gradient(noise, white_box, promise, verdict):
    assert JUDGE.quiet("name", const(noise), const(white_box), const(promise)).verdict == verdict


def test_neighbours_agree_if_half_of_the_promise_is_kept():
    assert verdicts.neighbours_agree("name", const(0.6), 0.2).verdict == "passed"
    found = verdicts.neighbours_agree("name", np.array([1.0, -1.0]), 0.2)
    assert found.verdict == "suspicious" and found.numbers == {"mean agreement": 0, "lowest agreement": -1}
    assert "0.2/255 away, a gradient keeps 0 % of its promise on average, and -100 % at least" in found.explanation


def test_scores_may_differ_by_rounding_only():
    assert JUDGE.deterministic("name", const(0), const(1e-5)).verdict == "passed"
    for again, elsewhere in ((1, 0), (0, 1), (np.nan, 0), (0, np.nan)):
        assert JUDGE.deterministic("name", const(again), const(elsewhere)).verdict == "suspicious"


@pytest.mark.parametrize(
    ("clean", "promise", "verdict"),
    [
        ([0, 30, 60, 100], [5, 5, 5, 5], "passed"),
        ([0, 30, 60, 100], [0.05, 5, 5, 0.05], "suspicious"),  # half of the images have less than 0.1 points
        ([0, 30, 60, 100], [5, 5, 5, 0], "passed"),
        ([0, 0.5, 99.5, 100], [5, 5, 5, 5], "suspicious"),
        ([0, 0.5, 60, 100], [5, 5, 5, 5], "passed"),  # one more at an end may be chance
        ([0, 100], [5, 5], "passed"),
        ([7, 7, 7, 7], [0, 0, 0, 0], "suspicious"),
        ([7], [5], "not run"),
        ([0, np.nan], [5, 5], "suspicious"),
    ],
)
def test_scores_have_a_range_and_gradients_to_match(clean, promise, verdict):
    assert Judge(np.array(clean, float)).spread("name", np.array(promise, float)).verdict == verdict
