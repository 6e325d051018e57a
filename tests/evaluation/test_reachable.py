"""The attack `reach` and the lowest rank correlation that follows from it."""

import math

import numpy as np
import pytest

from cprl_jax import attacks, models
from cprl_jax.config import defaults as config_lib
from cprl_jax.evaluation import reachable, table, table_attacks
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.robustness.ranking import lowest_srcc


@pytest.fixture
def config():
    config = config_lib.default()
    config.evaluation.attacks, config.evaluation.radii, config.evaluation.resamples = ("reach",), (2.0,), 5
    config.evaluation.reach.steps = 3
    return config


@pytest.mark.sampled
@pytest.mark.parametrize("restarts", [1, 2])
def test_the_ends_are_pgd_down_and_up(config, network, crops, mos, crop_keys, restarts):
    config.evaluation.reach.restarts = restarts
    module, variables = network()
    low, high = table_attacks.conditions(config.evaluation)
    assert (low.label, high.label) == ("reach:low", "reach:high")
    assert low.columns == {"direction": "away", "steps": 3, "restarts": restarts}
    images = crops.reshape(-1, 16, 16, 3) / np.float32(255)
    for condition, direction in ((low, attacks.down()), (high, attacks.up())):
        found = Scorer(module, batch_size=18).attack(variables, crops, mos, condition)
        options = {"steps": 3, "restarts": restarts, "key": crop_keys(0) if restarts > 1 else None}
        score_fn = models.score_fn(module, variables)
        expected = attacks.pgd(score_fn, images, radius=2 / 255, direction=direction, **options)
        np.testing.assert_allclose(found["after"], expected.after.reshape(6, 3).mean(axis=1), rtol=1e-5)


def of_scores(before, after):
    arrays = {name: np.asarray(after, float) for name in ("after", "after_8bit")}
    nothing = dict.fromkeys(("ssim", "max_change", "zero_gradient_fraction"), np.zeros(len(after)))
    return arrays | nothing | {"before": np.asarray(before, float)}


def test_the_rows_of_the_lower_ends_have_the_lowest_correlation(config):
    mos = np.array([10.0, 20, 30, 40, 50, 60, 70])
    clean = mos + np.array([3.0, -2, 1, 0, 4, -1, 2])
    lower, upper = clean - 12, clean + np.array([12.0, 3, 25, 12, 6, 12, 1])
    lost, gained = lower.copy(), upper.copy()
    lost[2], gained[4] = clean[2] + 1, clean[4] - 1  # attacks that went the wrong way
    results = {
        table.CLEAN: of_scores(clean, clean),
        ("reach:low", 2.0): of_scores(clean, lost),
        ("reach:high", 2.0): of_scores(clean, gained),
        ("reach:low", 4.0): of_scores(clean, lost),  # without the other end
    }
    config.evaluation.radii = (2.0, 4.0)
    rows = table.table_rows(config, "plain", results, mos)
    lower[2], upper[4] = clean[2], clean[4]
    for row in rows:
        if (row["attack"], row["radius"]) == ("reach:low", 2.0):
            expected = lowest_srcc(lower, upper, mos if row["against"] == "mos" else clean)
            assert (row["lowest_srcc"], row["lowest_srcc_bound"]) == (expected.achieved, expected.bound)
            assert row["lowest_srcc"] < row["srcc"] - 0.3
        else:
            assert "lowest_srcc" not in row and "lowest_srcc_bound" not in row


@pytest.mark.parametrize("spoiled", ["score", "targets"])
def test_what_has_no_correlation_is_nan(spoiled):
    after, targets = np.array([1.0, 2, 3]), np.array([1.0, 2, 3])
    if spoiled == "score":
        after[1] = np.nan
    else:
        targets[:] = 5
    results = {("reach:low", 1.0): of_scores(after, after - 1), ("reach:high", 1.0): of_scores(after, after + 1)}
    columns = reachable.lowest_columns(results, "reach:low", 1.0, targets)
    assert list(columns) == ["lowest_srcc", "lowest_srcc_bound"] and all(map(math.isnan, columns.values()))
