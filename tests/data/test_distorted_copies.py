"""Distorted copies: what their draws depend on, that they are what the registry makes, and what is refused."""

import numpy as np
import pytest

from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.distorted_copies import KINDS, LEVELS, distorted_copies
from cprl_jax.data.distortions import distort
from cprl_jax.runtime.errors import UserError

NAMES = [f"{number}.png" for number in range(40)]


@pytest.fixture
def photographs():
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (18, 17, 3), np.uint8) for _ in NAMES]
    mos = random.uniform(0, 100, len(NAMES))
    scenes = [f"scene {number}" for number in range(len(NAMES))]
    zeros = np.zeros(len(NAMES), int)
    return QualityDataset("own", images, NAMES, mos, mos, zeros, scenes, [""] * len(NAMES), zeros)


def copies_of(photographs, rows, copies=2, seed=0):
    return distorted_copies(photographs, rows, copies, seed=seed, cache_gib=0.1)


def test_each_photograph_comes_so_many_times_as_the_registry_distorts_it(photographs):
    copies = copies_of(photographs, [5, 2], copies=3)
    assert copies.names.tolist() == [f"{copy}/{name}" for name in ("5.png", "2.png") for copy in range(3)]
    assert copies.references.tolist() == 3 * ["scene 5"] + 3 * ["scene 2"]
    for row, original in enumerate([5, 5, 5, 2, 2, 2]):
        kind, level, photograph = copies.distortions[row], int(copies.levels[row]), photographs.images[original]
        assert kind in KINDS and level in LEVELS and copies.images[row].shape == photograph.shape
        if not kind.endswith(("noise", "component")):  # nothing is drawn
            np.testing.assert_array_equal(copies.images[row], distort(photograph, kind, level=level, key=0))
    assert any((copies.images[row] != photographs.images[5]).any() for row in range(3))


def test_draws_depend_on_seed_name_and_number_of_the_copy_alone(photographs):
    one, many = copies_of(photographs, [7]), copies_of(photographs, range(40), copies=4)
    other = copies_of(photographs, range(40), copies=4, seed=1)
    for row in range(2):
        place = many.names.tolist().index(one.names[row])
        assert (one.distortions[row], one.levels[row]) == (many.distortions[place], many.levels[place])
        np.testing.assert_array_equal(one.images[row], many.images[place])
    assert other.distortions.tolist() != many.distortions.tolist()
    assert set(many.levels) == set(LEVELS) and set(many.distortions) == set(KINDS)


def test_a_photograph_too_small_to_be_distorted_is_named():
    zeros = [0.0, 0.0]
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    small = QualityDataset("own", images, ["a", "b"], zeros, zeros, zeros, ["a", "b"], ["", ""], [0, 0])
    copies = copies_of(small, [1], copies=1)
    with pytest.raises(UserError, match="b cannot be distorted"):
        copies.images[0]
