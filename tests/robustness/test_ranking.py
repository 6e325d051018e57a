"""The lowest rank correlation in intervals, against all rankings that there are."""

import functools
import itertools

import numpy as np
import pytest
from scipy import stats

from cprl_jax.evaluation.statistics import srcc
from cprl_jax.robustness import ranking
from cprl_jax.robustness.ranking import certified_srcc, lowest_srcc


@functools.cache
def weak_orders(count):
    """Every ranking of so many images, ties included, as a row of levels 0, 1, ..."""
    rows = np.array(list(itertools.product(range(count), repeat=count)), np.int8)
    used = np.stack([(rows == level).any(axis=1) | (level > rows.max(axis=1)) for level in range(count)])
    return rows[used.all(axis=0)]


@functools.cache
def made(seed):
    """A case and its answer."""
    lower, upper, mos = case(seed)
    return lower, upper, mos, exhaustive(lower, upper, mos)


def exhaustive(lower, upper, mos):
    """The lowest SRCC over all rankings that the intervals allow; NaN where they allow equal scores alone."""
    levels = weak_orders(len(mos))
    allowed = levels.max(axis=1) > 0
    for i, j in itertools.permutations(range(len(mos)), 2):
        if lower[i] >= upper[j]:
            allowed &= levels[:, i] >= levels[:, j]
        if lower[i] > upper[j]:
            allowed &= levels[:, i] != levels[:, j]
    ranks = stats.rankdata(levels[allowed], axis=1)
    ranks, labels = ranks - (len(mos) + 1) / 2, stats.rankdata(mos) - (len(mos) + 1) / 2
    correlations = ranks @ labels / np.sqrt((ranks**2).sum(axis=1) * (labels @ labels))
    return correlations.min() if len(correlations) else np.nan


def case(seed, count=None):
    """Intervals and labels: of real numbers, or of few values with ends that touch, points and equal labels."""
    random = np.random.default_rng(seed)
    count = count or int(random.integers(2, 8))
    mos = random.permutation(count).astype(float)
    if seed % 2:
        mos = np.append(0.0, random.integers(1, 4, count - 1))
    follows = mos * random.choice([0.0, 1.0, 2.0])
    if seed % 3 == 0:
        middle, reach = follows + random.normal(0, 3, count), random.exponential(2, (2, count))
        return middle - reach[0], middle + reach[1], mos
    ends = follows + random.integers(0, 7, (2, count))
    points = random.random(count) < (0.5 if seed % 3 == 1 else 0)
    return ends.min(axis=0), np.where(points, ends.min(axis=0), ends.max(axis=0)), mos


def assert_reached(found, lower, upper, mos):
    assert np.all((found.scores >= lower) & (found.scores <= upper))
    assert found.achieved == pytest.approx(stats.spearmanr(found.scores, mos).statistic, abs=1e-12)
    assert -1 <= found.bound <= found.achieved <= 1


def test_equals_exhaustive_search():
    ties = 0
    for seed in range(200):
        lower, upper, mos, truth = made(seed)
        found = lowest_srcc(lower, upper, mos)
        if np.isnan(truth):
            assert np.isnan(found.achieved) and np.isnan(found.bound)
            continue
        assert_reached(found, lower, upper, mos)
        assert found.achieved == pytest.approx(truth, abs=1e-9), seed
        # By itself: the public one is never above what was achieved.
        assert ranking._bound(lower, upper, ranking._ranks(mos)) <= truth + 1e-12, seed
        ties += len(np.unique(found.scores)) < len(mos)
    assert ties > 40, "cases in which equal scores are the worst"


def test_the_search_among_many_is_nearly_as_good_among_few():
    gaps = []
    for seed in range(200):
        lower, upper, mos, truth = made(seed)
        q = ranking._ranks(mos)
        scores = ranking._inside(ranking._search(lower, upper, q), lower, upper)
        assert np.all((scores >= lower) & (scores <= upper))
        if np.isfinite(truth):
            gaps.append(stats.spearmanr(scores, mos).statistic - truth)
    assert min(gaps) > -1e-9 and np.mean(gaps) < 0.01 and np.mean(np.array(gaps) < 1e-9) > 0.9


def test_ends_that_touch_in_floating_point():
    """Sums of tenths, whose order must not depend on the last bit."""
    for seed in range(60):
        random = np.random.default_rng(seed)
        count, tenths = int(random.integers(9, 40)), np.cumsum(np.full(12, 0.1)) * random.choice([1, 1e-7, 1e7])
        ends = np.sort(tenths[random.integers(0, 12, (2, count))], axis=0)
        mos = np.append(-1, random.integers(0, 6, count - 1)).astype(float)
        found, q = lowest_srcc(*ends, mos), ranking._ranks(mos)
        assert_reached(found, *ends, mos)
        assert ranking._bound(*ends, q) <= found.achieved + 1e-12


@pytest.mark.parametrize("count", [5, 60])
@pytest.mark.parametrize("seed", range(4))
def test_no_draw_from_the_intervals_is_below(seed, count):
    lower, upper, mos = case(seed, count)
    found = lowest_srcc(lower, upper, mos)
    assert_reached(found, lower, upper, mos)
    random = np.random.default_rng(seed)
    share = random.beta(0.3, 0.3, (500, count))
    draws = [lower + part * (upper - lower) for part in share]
    # Against the labels, as far as each score goes, with a random number of exceptions.
    draws += [np.where((mos > np.median(mos)) ^ (random.random(count) < 0.1), lower, upper) for _ in range(200)]
    assert found.achieved <= np.nanmin(srcc(np.stack(draws), np.broadcast_to(mos, (700, count)))) + 1e-12


@pytest.mark.parametrize("count", [6, 300])
@pytest.mark.parametrize("levels", [3, 1000])
class TestKnownAnswers:
    def labels(self, count, levels):
        return np.append(0.0, np.random.default_rng(count).integers(1, levels, count - 1))

    def test_points_are_the_plain_correlation(self, count, levels):
        mos = self.labels(count, levels)
        for scores in (
            np.random.default_rng(0).integers(0, 4, count) / 1.0,
            np.random.default_rng(1).normal(size=count),
        ):
            found, expected = lowest_srcc(scores, scores, mos), stats.spearmanr(scores, mos).statistic
            np.testing.assert_allclose([found.achieved, found.bound], expected, atol=1e-12)

    def test_all_overlapping_can_be_reversed(self, count, levels):
        mos = self.labels(count, levels)
        reach = np.random.default_rng(0).uniform(1, 5, (2, count))
        found = lowest_srcc(50 - reach[0], 50 + reach[1], mos)
        np.testing.assert_allclose([found.achieved, found.bound], -1, atol=1e-12)
        assert_reached(found, 50 - reach[0], 50 + reach[1], mos)

    def test_disjoint_ones_keep_their_order(self, count, levels):
        mos = self.labels(count, levels)
        middle = np.random.default_rng(0).permutation(count)
        for scores in (middle, np.argsort(np.argsort(-mos, kind="stable"))):
            found = lowest_srcc(scores - 0.4, scores + 0.4, mos)
            expected = stats.spearmanr(scores, mos).statistic
            np.testing.assert_allclose([found.achieved, found.bound], expected, atol=1e-12)


def test_wider_intervals_and_another_scale():
    lower, upper, mos = case(0, 100)
    narrow, wide = lowest_srcc(lower, upper, mos), lowest_srcc(lower - 1, upper + 1, mos)
    assert wide.achieved <= narrow.achieved and wide.bound <= narrow.bound
    other = lowest_srcc(7 * lower - 3, 7 * upper - 3, mos**3)
    assert other.achieved == pytest.approx(narrow.achieved, abs=1e-3)
    assert other.bound == pytest.approx(narrow.bound, abs=1e-12)


def test_equal_points_have_no_correlation():
    for count in (3, 12, 30):
        found = lowest_srcc(np.full(count, 5.0), np.full(count, 5.0), np.arange(count))
        assert np.isnan(found.achieved) and np.isnan(found.bound) and np.all(found.scores == 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lower": [0, np.nan, 2]}, "lower must be finite: 1 of 3"),
        ({"upper": [5, np.inf, 6]}, "upper must be finite: 1 of 3"),
        ({"mos": [1, np.nan, np.nan]}, "mos must be finite: 2 of 3"),
        ({"lower": [0, 7, 2]}, "lower must not be above upper: it is for 1 of 3"),
        ({"upper": [5, 6]}, "upper has 2 numbers for 3 labels"),
        ({"mos": [[1, 2, 3]]}, r"mos must be one number for each .* shape \(1, 3\)"),
        ({"lower": [1], "upper": [2], "mos": [3]}, "lower must be one number for each of two images or more"),
        ({"mos": [4, 4, 4]}, "mos must not be the same for all"),
    ],
    ids=["nan", "infinite", "unlabelled", "crossed", "short", "shape", "one image", "constant"],
)
def test_bad_input_is_named(change, message):
    arguments = {"lower": [0, 1, 2], "upper": [5, 6, 7], "mos": [1, 2, 3]} | change
    with pytest.raises(ValueError, match=message):
        lowest_srcc(**arguments)


@pytest.mark.parametrize("count", [7, 40])
def test_certified_srcc_is_undercut_by_no_scores_inside(count):
    random = np.random.default_rng(count)
    for _ in range(10):
        mos, scores = random.integers(0, 6, count).astype(float), random.normal(0, 2, count)
        mos[0], mos[1] = 0, 5
        lower, upper = scores + mos - random.exponential(1, count), scores + mos + random.exponential(1, count)
        lower[random.random(count) < 0.1], upper[random.random(count) < 0.1] = -np.inf, np.inf
        certified = certified_srcc(lower, upper, mos)
        ends = np.maximum(lower, -1e3), np.minimum(upper, 1e3)
        for _ in range(50):
            inside = ends[0] + random.random(count) * (ends[1] - ends[0])
            assert certified <= srcc(inside, mos) + 1e-12
        # The adversary's own choice, with ends far enough to be anywhere.
        assert certified <= lowest_srcc(*ends, mos).achieved + 1e-12
        assert certified == pytest.approx(lowest_srcc(*ends, mos).bound)


def test_certified_srcc_of_points_is_their_srcc_and_of_nothing_is_the_worst():
    mos = np.arange(12.0)
    scores = np.random.default_rng(0).permutation(mos)
    assert certified_srcc(scores, scores, mos) == pytest.approx(srcc(scores, mos))
    anywhere = np.full(12, np.inf)
    assert certified_srcc(-anywhere, anywhere, mos) == pytest.approx(-1)
    assert certified_srcc(mos - 0.4, mos + 0.4, mos) == pytest.approx(1)
    # One image without a certificate can go to the wrong end of a ranking that is otherwise fixed.
    lower = np.where(mos == 11, -np.inf, mos)
    assert certified_srcc(lower, mos, mos) == pytest.approx(srcc(np.where(mos == 11, -1, mos), mos), abs=0.02)


def test_certified_srcc_refuses_what_is_no_interval():
    mos = np.arange(3.0)
    for lower, upper in ((np.array([0, np.nan, 0]), mos + 5), (mos, mos - 1), (np.full(3, np.inf), np.full(3, np.inf))):
        with pytest.raises(ValueError, match="lower"):
            certified_srcc(lower, upper, mos)
