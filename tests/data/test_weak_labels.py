"""Label rules: 100 for the reference, falling with the damage, and the formulas that they name."""

import numpy as np
import pytest

from cprl_jax.data import labels
from cprl_jax.data.distortions import distort
from cprl_jax.data.weak_labels import RULES

RNG = np.random.default_rng(0)
REFERENCE = np.kron(RNG.integers(0, 256, (8, 10, 3)), np.ones((4, 4, 1))).astype(np.uint8)


@pytest.mark.parametrize("name", RULES)
def test_rules(name):
    score = RULES[name].score
    assert score(REFERENCE, REFERENCE) == 100
    for distortion in ("gaussian-blur", "white-noise"):
        ladder = [100] + [score(distort(REFERENCE, distortion, level=k, key=0), REFERENCE) for k in range(1, 6)]
        assert np.all(np.diff(ladder) < 0) and ladder[-1] >= 0, distortion
    if name != "gmsd":  # which sees no more than the size of gradients
        assert 0 <= score(255 - REFERENCE, REFERENCE) < 50


def test_values():
    noisy = distort(REFERENCE, "white-noise", level=1, key=0)
    assert RULES["ours"].score(noisy, REFERENCE) == labels.quality(noisy[None], REFERENCE)[0]
    for decibels, expected in ((30, 50), (40, 1000 / 11), (20, 100 / 11)):
        error = 255 / 10 ** (decibels / 20)  # everywhere
        flat = np.full((16, 16, 3), 100, np.uint8)
        assert RULES["psnr"].score(flat + np.uint8(round(error)), flat) == pytest.approx(
            100 / (1 + round(error) ** 2 / 65.025)
        )
        assert 100 / (1 + error**2 / 65.025) == pytest.approx(expected)
