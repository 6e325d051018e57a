"""d' against observers that do what the models say: noisy views of two images, and a criterion."""

import numpy as np
import pytest

from cprl_jax.study.analysis import detection

TRIALS = 400_000


@pytest.mark.parametrize(("sensitivity", "criterion"), [(1.0, 1.5), (2.5, 2.0)], ids=["weak", "strong"])
def test_a_same_different_observer_who_looks_at_the_difference(sensitivity, criterion):
    random = np.random.default_rng(0)
    views = random.standard_normal((2, 2, TRIALS))  # two trials of two images
    false_alarms = np.mean(np.abs(views[0, 0] - views[0, 1]) > criterion)
    hits = np.mean(np.abs(views[1, 0] + sensitivity - views[1, 1]) > criterion)
    assert detection.same_different(hits, false_alarms) == pytest.approx(sensitivity, abs=0.03)


def test_a_yes_no_observer_and_one_of_forced_choices():
    random = np.random.default_rng(1)
    views = random.standard_normal((2, TRIALS))
    assert detection.yes_no(np.mean(views[0] + 1.2 > 0.4), np.mean(views[1] > 0.4)) == pytest.approx(1.2, abs=0.02)
    assert detection.forced_choice(np.mean(views[0] + 1.2 > views[1])) == pytest.approx(1.2, abs=0.02)


def test_chance_is_0_and_never_negative_or_infinite():
    assert detection.same_different(0.1, 0.1) == 0 and detection.same_different(0.05, 0.1) == 0
    nothing, all_of_them = detection.rate(0, 15), detection.rate(15, 15)
    assert 0 < nothing < all_of_them < 1
    assert np.isfinite(detection.same_different(all_of_them, nothing))
    assert detection.same_different(np.array([0.2, 0.9]), 0.1).shape == (2,)
