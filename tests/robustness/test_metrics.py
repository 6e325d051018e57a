import math

import numpy as np
import pytest
from scipy import stats

from cprl_jax.robustness import metrics


def test_r_of_hand_cases():
    # One image at 8 of 10 that falls to 6: it could have fallen by 8. One at 1 that rises to 10: it could not do worse.
    assert metrics.r_robustness([8.0], [6.0]) == pytest.approx(math.log(4))
    assert metrics.r_robustness([1.0], [10.0]) == 0.0
    assert metrics.r_robustness([8.0, 1.0], [6.0, 10.0]) == pytest.approx(math.log(4) / 2)
    assert metrics.r_robustness([80.0], [60.0], highest=100) == pytest.approx(math.log(4))
    assert metrics.r_robustness([3.0], [2.0], lowest=1, highest=5) == pytest.approx(math.log(2))


def test_r_to_other_bases():
    before, after = [8.0, 3.0, 5.0], [6.0, 3.5, 1.0]
    natural = metrics.r_robustness(before, after)
    assert metrics.r_robustness(before, after, base=10) == pytest.approx(natural / math.log(10))
    assert metrics.r_robustness(before, after, base=math.e) == pytest.approx(natural)
    assert metrics.r_robustness([8.0], [6.0], base=2) == pytest.approx(2)


def test_r_of_an_unchanged_score_is_infinite_unless_told_otherwise():
    assert metrics.r_robustness([5.0, 5.0], [5.0, 4.0]) == math.inf
    assert metrics.r_robustness([5.0, 5.0], [5.0, 4.0], smallest_change=0.5) == pytest.approx(
        (math.log(10) + math.log(5)) / 2
    )


def test_r_notices_another_scale():
    with pytest.raises(ValueError, match="median of 62, outside of the scale 0..10.*100 for MOS"):
        metrics.r_robustness([62.0, 71.0, 9.0], [10.0, 20.0, 1.0])


@pytest.mark.parametrize("base", [1, 0.5, -3, "ten"])
def test_r_refuses_a_base_that_is_none(base):
    with pytest.raises(ValueError, match="base must be 'e' or a number above 1"):
        metrics.r_robustness([5.0], [4.0], base=base)


def test_gains_of_hand_cases():
    before, after = [20.0, 60.0, 100.0], [40.0, 100.0, 60.0]
    # Scaled by the clean scores: 0, 0.5, 1 before; 0.25, 1, 0.5 after.
    assert metrics.absolute_gain(before, after) == pytest.approx((0.25 + 0.5 - 0.5) / 3)
    assert metrics.relative_gain(before, after) == pytest.approx((0.25 / 1 + 0.5 / 1.5 - 0.5 / 2) / 3)
    assert metrics.absolute_gain(before, after, lowest=0, highest=100) == pytest.approx(0.2 / 3)
    expected = (0.2 / 1.2 + 0.4 / 1.6 - 0.4 / 2) / 3
    assert metrics.relative_gain(before, after, lowest=0, highest=100) == pytest.approx(expected)


def test_gains_do_not_depend_on_the_scale():
    random = np.random.default_rng(0)
    before, after = random.normal(size=20), random.normal(size=20)
    for gain in (metrics.absolute_gain, metrics.relative_gain):
        assert gain(7 * before + 3, 7 * after + 3) == pytest.approx(gain(before, after))
        assert gain(before, before) == 0


@pytest.mark.parametrize("signed", [False, True])
def test_distances_are_those_of_scipy(signed):
    random = np.random.default_rng(1)
    before, after = random.normal(50, 10, 30), random.normal(30, 15, 30)
    sign = -1 if signed else 1
    wasserstein = metrics.wasserstein_distance(before, after, signed=signed)
    assert wasserstein == pytest.approx(sign * np.abs(np.sort(before) - np.sort(after)).mean())
    assert wasserstein == pytest.approx(sign * stats.wasserstein_distance(before, after))
    pairs = [np.abs(a[:, None] - b[None]).mean() for a, b in ((before, after), (before, before), (after, after))]
    literal = math.sqrt(2 * pairs[0] - pairs[1] - pairs[2])
    assert metrics.energy_distance(before, after, signed=signed) == pytest.approx(sign * literal)


def test_distances_do_not_see_which_image_is_which():
    assert metrics.wasserstein_distance([1.0, 2.0, 3.0], [3.0, 1.0, 2.0]) == 0
    assert metrics.energy_distance([1.0, 2.0, 3.0], [3.0, 1.0, 2.0]) == pytest.approx(0, abs=1e-7)
    assert metrics.wasserstein_distance([1.0, 2.0], [4.0, 5.0]) == pytest.approx(3)


def test_integral_robustness_of_hand_cases():
    assert metrics.integral_robustness([0, 1, 2], [1.0, 1.0, 1.0]) == 1
    assert metrics.integral_robustness([0, 4], [1.0, 0.0]) == 0.5
    # Trapezoids of 0.5 * (1 + 0.5) and 3 * (0.5 - 0.1), over 4.
    assert metrics.integral_robustness([0, 0.5, 1, 4], [1.0, 1.0, 0.5, -0.3]) == pytest.approx(
        (0.5 + 0.5 * 0.75 + 3 * 0.1) / 4
    )
    assert math.isnan(metrics.integral_robustness([0, 1, 2], [1.0, math.nan, 1.0]))


def test_integral_robustness_does_not_depend_on_units_and_takes_batches():
    values = np.random.default_rng(2).uniform(-1, 1, (3, 5))
    radii = np.array([0, 0.5, 1, 2, 4])
    mean = metrics.integral_robustness(radii, values)
    assert mean.shape == (3,)
    np.testing.assert_allclose(metrics.integral_robustness(radii / 255, values), mean)
    # A piecewise linear curve is integrated exactly, so that points on its lines change nothing.
    finer = np.linspace(0, 4, 81)
    again = [metrics.integral_robustness(finer, np.interp(finer, radii, row)) for row in values]
    np.testing.assert_allclose(again, mean)


@pytest.mark.parametrize("radii", [[0], [0, 0], [1, 0], [0, math.inf], [[0, 1]]])
def test_integral_robustness_refuses_radii_that_do_not_grow(radii):
    with pytest.raises(ValueError, match="radii must be at least two finite, growing numbers"):
        metrics.integral_robustness(radii, np.zeros(len(radii)))
    with pytest.raises(ValueError, match="one number per radius"):
        metrics.integral_robustness([0, 1], [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "function",
    [
        metrics.r_robustness,
        metrics.absolute_gain,
        metrics.relative_gain,
        metrics.wasserstein_distance,
        metrics.energy_distance,
    ],
)
def test_scores_are_checked(function):
    with pytest.raises(ValueError, match=r"one score per image, got shapes \(2,\), \(3,\)"):
        function([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="one score per image"):
        function([], [])
    with pytest.raises(ValueError, match="after must be finite: 1 of 2 are not"):
        function([1.0, 2.0], [1.0, math.nan])


def test_scales_are_checked():
    for gain in (metrics.absolute_gain, metrics.relative_gain):
        with pytest.raises(ValueError, match="highest must be above lowest"):
            gain([2.0, 2.0], [1.0, 3.0])
    with pytest.raises(ValueError, match="no gain is defined"):
        metrics.relative_gain([-10.0, 5.0], [1.0, 3.0], lowest=0, highest=10)
    with pytest.raises(ValueError, match="highest must be above lowest"):
        metrics.r_robustness([2.0], [1.0], lowest=3, highest=3)
    for ends in ((0, math.inf), (-math.inf, 10), (math.nan, 10)):
        with pytest.raises(ValueError, match="highest must be above lowest, both finite"):
            metrics.r_robustness([2.0], [1.0], lowest=ends[0], highest=ends[1])
    for wrong in (math.nan, math.inf, -1):
        with pytest.raises(ValueError, match="smallest_change must be finite"):
            metrics.r_robustness([2.0], [1.0], smallest_change=wrong)
