"""JNDs against the thresholds of modelled observers: how far off they are, and how often the interval has the truth."""

import math

import numpy as np
import pytest
from scipy import special

from cprl_jax.experiments.perceptual.observers import LIMITS
from cprl_jax.study.analysis import answers, detection, thresholds

OBSERVERS, IMAGES, LEVELS = 15, 12, np.linspace(-14, 14, 8)
PLANTED = 1.0  # dB


def experiment(seed, *, trial="yesno", planted=PLANTED):
    """Tests, catch trials and strengths, of observers and images whose own thresholds vary around the planted one; and
    the mean of those that were drawn."""
    random = np.random.default_rng([seed, 77])
    strengths = LEVELS + random.uniform(-1, 1, (IMAGES, LEVELS.size))
    own = planted + random.normal(0, 2, (OBSERVERS, 1, 1)) + random.normal(0, 1.5, (1, IMAGES, 1))
    guess = np.full((OBSERVERS, 1, 1), 0.5) if trial == "2afc" else random.uniform(0.02, 0.15, (OBSERVERS, 1, 1))
    lapse = random.uniform(0, 0.04, (OBSERVERS, 1, 1))
    seen = random.random((OBSERVERS, IMAGES, LEVELS.size)) < guess + (1 - guess - lapse) * special.ndtr(
        (strengths - own) / 3
    )
    words = ("second", "first") if trial == "2afc" else ("same", "different")

    def row(observer, role, value, **names):
        return {"observer": observer, "role": role, "answer": words[int(value)], "expected": words[1], **names}

    tests = [
        row(observer, "test", seen[observer, image, level], pair=f"{image} {level}", image=image)
        for observer, image, level in np.ndindex(*seen.shape)
    ]
    catches = []
    for observer in range(OBSERVERS):
        for _ in range(8):
            if trial != "2afc":
                catches.append(row(observer, "catch_same", random.random() < guess[observer, 0, 0]))
            catches.append(row(observer, "catch_different", random.random() < 1 - lapse[observer, 0, 0]))
    shown = {f"{image} {level}": strengths[image, level] for image, level in np.ndindex(strengths.shape)}
    return (tests, catches, shown), own.mean()


def recovered(runs, *, trial="yesno", resamples):
    rows = []
    for seed in range(runs):
        answers, drawn = experiment(seed, trial=trial)
        row = thresholds.jnd(*answers, trial=trial, seed=seed, resamples=resamples)
        rows.append((row["jnd_db"] - drawn, row["jnd_db_low"], row["jnd_db_high"]))
    errors, low, high = np.array(rows).T
    return errors.mean(), np.mean((low <= PLANTED) & (high >= PLANTED))


@pytest.mark.parametrize("trial", ["yesno", "2afc"])
def test_planted_thresholds_are_recovered(trial):
    bias, coverage = recovered(8, trial=trial, resamples=60)
    assert abs(bias) < 0.5 and coverage >= 0.75


@pytest.mark.slow
@pytest.mark.parametrize("trial", ["yesno", "2afc"])
def test_intervals_have_their_coverage_over_500_runs(trial):
    bias, coverage = recovered(500, trial=trial, resamples=200)
    assert abs(bias) < 0.5 and 0.93 <= coverage <= 0.97, (bias, coverage)


def test_without_identical_pairs_there_is_no_rate_of_false_alarms_and_no_sensitivity():
    (tests, catches, shown), _ = experiment(3)
    plain = [row for row in catches if row["role"] == "catch_different"]
    row = thresholds.jnd(tests, plain, shown, trial="yesno", resamples=20)
    assert math.isnan(row["false_alarms"]) and math.isnan(row["d_prime"]) and math.isfinite(row["jnd_db"])


@pytest.mark.parametrize("trial", ["yesno", "2afc"])
@pytest.mark.parametrize("planted", [-40, -20, 20, 40])
def test_a_threshold_beyond_all_distances_is_known_by_its_side(trial, planted):
    """Observers who see all but for lapses, or nothing but by guessing: no slope was seen to go on from."""
    (tests, catches, shown), _ = experiment(3, trial=trial, planted=planted)
    row = thresholds.jnd(tests, catches, shown, trial=trial, resamples=60)
    lowest, highest = min(shown.values()), max(shown.values())
    low, high = row["jnd_db_low"], row["jnd_db_high"]
    assert low <= planted <= high and (high == math.inf if planted > 0 else low == -math.inf)
    if abs(planted) == 40:
        assert math.isnan(row["jnd_db"]) and math.isnan(row["d_prime"]) and math.isnan(row["width_db"])
        assert (low, high) == ((highest, math.inf) if planted > 0 else (-math.inf, lowest))


@pytest.mark.parametrize(
    ("estimate", "draws", "expected"),
    [
        (0.0, [-1, 0, 1], (0.0, -1, 1)),
        (2.0, [1, 2, 9], (2.0, 1, math.inf)),
        (9.0, [1, 9, 9], (math.nan, 1, math.inf)),
        (9.0, [7, 8, 9], (math.nan, 5, math.inf)),
        (-9.0, [-9, -8, -7], (math.nan, -math.inf, -5)),
        (0.0, [-9, 0, 9], (0.0, -math.inf, math.inf)),
        (math.inf, [math.inf] * 3, (math.nan, 5, math.inf)),
        (5.1, [3, 4, 4.9], (math.nan, 3, math.inf)),
        (-5.1, [-4.9, -4, -3], (math.nan, -math.inf, -3)),
    ],
)
def test_an_interval_is_open_where_it_leaves_the_strengths_that_were_shown(estimate, draws, expected):
    np.testing.assert_equal(thresholds.within(estimate, np.array(draws, float), (-5.0, 5.0)), expected)


def test_every_group_has_a_row_and_its_numbers_agree(made):
    pairs = made.pairs_of()
    given = answers.combine(
        {"x": made.export(pairs, made.modelled(pairs), [made.observer(number) for number in range(1, 16)])}
    )
    tests, catches = ([row for row in given.answers if row["role"].startswith(role)] for role in ("test", "catch_"))
    rows = thresholds.rows(given, tests, catches, resamples=40)
    groups = [("all", fidelity) for fidelity in made.FIDELITIES]
    groups += [(model, fidelity) for model in made.MODELS for fidelity in made.FIDELITIES]
    assert [(row["model"], row["fidelity"]) for row in rows] == groups
    for row in rows:
        assert row["jnd_low"] <= row["jnd"] <= row["jnd_high"]
        np.testing.assert_allclose(row["jnd"], 10 ** (row["jnd_db"] / 20))
        assert row["limit_db"] < row["jnd_db"]  # a quarter is less than half
        hits = row["guess"] + (1 - row["guess"] - row["lapse"]) / 2
        np.testing.assert_allclose(row["d_prime"], detection.same_different(hits, row["false_alarms"]), rtol=1e-6)
    assert rows[0]["answers"] == 2 * rows[2]["answers"]
    few = thresholds.rows(given, tests[:5], catches, resamples=40)
    assert few == []


def test_decibels_of_grey_levels_and_of_nothing():
    assert thresholds.decibels(1 / 255, "chebyshev") == pytest.approx(0)
    assert thresholds.decibels(0.01, "ssim") == pytest.approx(-40)
    assert thresholds.decibels(0.0, "ssim") == -math.inf
    assert set(LIMITS) == {"yesno", "flicker", "2afc"}
