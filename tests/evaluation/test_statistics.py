import time

import numpy as np
import pytest
from scipy import stats

from cprl_jax.evaluation import statistics

STATISTICS = [statistics.srcc, statistics.plcc, statistics.rmse]


@pytest.fixture
def scores():
    random = np.random.default_rng(3)
    targets = random.uniform(0, 100, 40)
    return targets + random.normal(0, 15, 40), targets


@pytest.mark.filterwarnings("error")
def test_correlations_match_scipy(scores):
    predictions, targets = scores
    assert statistics.srcc(predictions, targets) == pytest.approx(stats.spearmanr(predictions, targets).statistic)
    assert statistics.plcc(predictions, targets) == pytest.approx(np.corrcoef(predictions, targets)[0, 1])
    tied = np.round(predictions, -1)
    assert statistics.srcc(tied, targets) == pytest.approx(stats.spearmanr(tied, targets).statistic)


def test_closed_forms():
    targets = np.array([10.0, 20.0, 30.0, 40.0])
    # Without ties, SRCC = 1 - 6 sum d^2 / (n (n^2 - 1)); one neighbouring pair swapped: 1 - 6 * 2 / 60.
    assert statistics.srcc(np.array([1.0, 3.0, 2.0, 4.0]), targets) == pytest.approx(0.8)
    assert statistics.srcc(targets**3, targets) == pytest.approx(1)
    assert statistics.srcc(-(targets**3), targets) == pytest.approx(-1)
    assert statistics.plcc(2 * targets - 7, targets) == pytest.approx(1)
    assert statistics.plcc(-targets, targets) == pytest.approx(-1)
    assert statistics.rmse(targets + 3, targets) == pytest.approx(3)
    assert statistics.rmse(targets + np.array([3, -3, 3, -3]), targets) == pytest.approx(3)
    assert statistics.rmse(targets, targets) == 0


@pytest.mark.parametrize("statistic", STATISTICS)
def test_rows_are_independent_and_symmetric(scores, statistic):
    predictions, targets = scores
    stacked = statistic(np.stack([predictions, targets, predictions]), np.stack([targets, targets, targets]))
    assert stacked.shape == (3,)
    assert stacked[0] == pytest.approx(float(statistic(predictions, targets)))
    assert stacked[2] == pytest.approx(float(statistic(targets, predictions)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 0.1, 57.3])
def test_constant_predictions_have_no_correlation_and_give_no_warning(value):
    constant, targets = np.full(7, value, np.float32), np.arange(7.0)
    for statistic in (statistics.srcc, statistics.plcc):
        assert np.isnan(statistic(constant, targets))
        assert np.isnan(statistic(targets, constant))
        assert np.isnan(statistics.bootstrap_interval(constant, targets, statistic, seed=0)).all()
    assert np.isfinite(statistics.rmse(constant, targets))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_float32_is_computed_in_float64(scores, statistic):
    predictions, targets = (x.astype(np.float32) for x in scores)
    value = statistic(predictions, targets)
    assert value.dtype == np.float64
    assert value == statistic(predictions.astype(np.float64), targets.astype(np.float64))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_wrong_inputs_are_named(statistic):
    good = np.arange(5.0)
    with pytest.raises(ValueError, match=r"same shape, got \(5,\) and \(4,\)"):
        statistic(good, good[:4])
    with pytest.raises(ValueError, match="a last axis of images"):
        statistic(np.float64(1), np.float64(1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_scores_that_are_not_finite_have_no_statistic(statistic, bad):
    good = np.arange(5.0)
    wrong = np.array([0, 1, bad, 3, 4])
    assert np.isnan(statistic(wrong, good)) and np.isnan(statistic(good, wrong))
    np.testing.assert_array_equal(np.isnan(statistic(np.stack([wrong, good]), np.stack([good, good]))), [True, False])
    assert np.isnan(statistics.bootstrap_interval(wrong, good, statistic, seed=0)).all()
    assert np.isnan(statistics.paired_difference(good, wrong, good, statistic, seed=0)).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("images", [1, 2])
def test_one_or_two_images_have_an_error_but_no_correlation(images):
    predictions, targets = np.arange(images) + 2.0, np.arange(images)
    row = statistics.measures_with_intervals(predictions, targets, seed=0, resamples=9)
    for name in ("srcc", "plcc"):
        assert np.isnan([row[name + end] for end in ("", "_low", "_high")]).all()
    assert row["rmse"] == row["rmse_low"] == row["rmse_high"] == 2
    assert np.isnan(statistics.paired_difference(predictions, targets, targets, statistics.srcc, seed=0)).all()


def test_wrong_bootstrap_options_are_named():
    x = np.arange(5.0)
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        statistics.bootstrap_interval(x, x, statistics.srcc, seed=0, resamples=0)
    with pytest.raises(ValueError, match="one number per image"):
        statistics.bootstrap_interval(x.reshape(1, 5), x.reshape(1, 5), statistics.srcc, seed=0)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_bootstrap_equals_a_literal_loop(scores, statistic):
    predictions, targets = scores
    random = np.random.default_rng(11)
    values = []
    for chosen in random.integers(40, size=(50, 40)):
        values.append(float(statistic(predictions[chosen], targets[chosen])))
    expected = np.quantile(values, [0.025, 0.975])
    got = statistics.bootstrap_interval(predictions, targets, statistic, seed=11, resamples=50)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_bootstrap_agrees_with_scipy(scores, statistic):
    expected = stats.bootstrap(
        scores, lambda x, y, axis: statistic(x, y), paired=True, vectorized=True, n_resamples=3000, method="percentile"
    ).confidence_interval
    got = statistics.bootstrap_interval(*scores, statistic, seed=0, resamples=3000)
    width = expected.high - expected.low
    np.testing.assert_allclose(got, expected, atol=0.1 * width)


def test_bootstrap_of_the_mean_matches_its_normal_interval():
    random = np.random.default_rng(0)
    x = random.normal(50, 10, 400)

    def mean(predictions, targets):
        return predictions.mean(-1)

    low, high = statistics.bootstrap_interval(x, x, mean, seed=1, resamples=4000)
    half = 1.96 * x.std() / np.sqrt(x.size)
    assert low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_bootstrap_properties(scores):
    first = statistics.bootstrap_interval(*scores, statistics.srcc, seed=5)
    assert first == statistics.bootstrap_interval(*scores, statistics.srcc, seed=5)
    assert first != statistics.bootstrap_interval(*scores, statistics.srcc, seed=6)
    low, high = first
    assert -1 <= low < float(statistics.srcc(*scores)) < high <= 1
    assert all(isinstance(bound, float) for bound in first)


@pytest.mark.filterwarnings("error")
def test_bootstrap_of_three_images_survives_constant_resamples():
    """One resample in nine draws the same image three times and has no correlation."""
    x = np.array([10.0, 50.0, 90.0])
    assert statistics.bootstrap_interval(x, x, statistics.plcc, seed=0) == pytest.approx((1, 1))


def test_bootstrap_is_quick():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 300))
    start = time.process_time()
    statistics.bootstrap_interval(x, y, statistics.srcc, seed=0, resamples=1000)
    assert time.process_time() - start < 2, "1000 resamples of 300 images take about 0.2 s"


@pytest.mark.parametrize("statistic", STATISTICS)
def test_paired_difference_equals_a_literal_loop(scores, statistic):
    first, targets = scores
    second = 0.5 * first + np.random.default_rng(4).normal(0, 20, 40)
    values = []
    for chosen in np.random.default_rng(11).integers(40, size=(50, 40)):
        values.append(float(statistic(first[chosen], targets[chosen]) - statistic(second[chosen], targets[chosen])))
    expected = [statistic(first, targets) - statistic(second, targets), *np.quantile(values, [0.025, 0.975])]
    found = statistics.paired_difference(first, second, targets, statistic, seed=11, resamples=50)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_paired_difference_is_sharper_than_two_intervals():
    """Two models with errors in common: their own intervals overlap, their difference is never 0."""
    random = np.random.default_rng(0)
    targets, shared = random.uniform(0, 100, 60), random.normal(0, 30, 60)
    better, worse = targets + shared, targets + 1.3 * shared
    intervals = [statistics.bootstrap_interval(x, targets, statistics.srcc, seed=1) for x in (better, worse)]
    difference, low, high = statistics.paired_difference(better, worse, targets, statistics.srcc, seed=1)
    assert intervals[0][0] < intervals[1][1] and 0 < low < difference < high
    backwards = statistics.paired_difference(worse, better, targets, statistics.srcc, seed=1)
    np.testing.assert_allclose(backwards, [-difference, -high, -low])


def test_paired_difference_of_what_has_no_value():
    targets = np.arange(10.0)
    assert np.isnan(statistics.paired_difference(np.ones(10), targets, targets, statistics.srcc, seed=0)).all()
    with pytest.raises(ValueError, match=r"same shape, got \(9,\) and \(10,\)"):
        statistics.paired_difference(targets, targets[:9], targets, statistics.srcc, seed=0)
