"""Which images a meta step sees: of the right subset, equally often, the same whenever asked."""

import numpy as np
import pytest

from cprl_jax.experiments.causal_iqa import sampling
from cprl_jax.experiments.causal_iqa.division import divide


@pytest.fixture
def division():
    """Subsets of 12, 3 and 5 images; five images are not used."""
    distortions = np.repeat(["jpeg", "blur", "noise", "other"], (12, 3, 5, 5))
    soft = np.random.default_rng(0).dirichlet((5, 1), 25)
    soft = np.sort(soft, axis=1)[:, ::-1]  # all of content 0
    return divide(distortions, soft, rows=np.arange(20), smallest=1)


def test_one_group_a_subset_with_its_weights(division):
    orders = set()
    for step in range(6):
        rows, weights = sampling.draw("cis", division, batch_size=4, seed=1, step=step, groups=3)
        assert rows.shape == weights.shape == (3, 4) and rows.dtype == np.int32
        subset = division.subsets[rows]
        assert (subset == subset[:, :1]).all() and sorted(subset[:, 0]) == [0, 1, 2]
        np.testing.assert_array_equal(weights, division.weights[rows])
        orders.add(tuple(subset[:, 0]))
    assert len(orders) > 1


def test_every_image_of_a_subset_comes_once_an_epoch(division):
    drawn = [sampling.draw("cip", division, batch_size=4, seed=1, step=step, groups=3)[0] for step in range(15)]
    counts = np.bincount(np.concatenate(drawn).ravel(), minlength=25)
    assert counts[:12].tolist() == [5] * 12  # 60 of 12
    assert counts[12:15].tolist() == [20] * 3  # 60 of 3: a batch holds an image twice
    assert counts[15:20].tolist() == [12] * 5
    assert (counts[20:] == 0).all()


def test_tasks_have_different_images_to_support_and_to_query(division):
    seen = set()
    for step in range(3):
        rows, weights = sampling.draw("metaiqa", division, batch_size=3, seed=1, step=step, groups=2)
        assert rows.shape == (2, 3) and (weights == 1).all()
        assert len(set(division.subsets[rows].ravel())) == 1
        assert not set(rows[0]) & set(rows[1])
        seen.add(division.subsets[rows[0, 0]])
    assert seen == {0, 1, 2}  # an epoch of tasks


def test_a_task_of_one_image():
    alone = divide(["jpeg"], np.ones((1, 1)), smallest=1)
    assert sampling.draw("metaiqa", alone, batch_size=2, seed=0, step=0, groups=2)[0].tolist() == [[0, 0], [0, 0]]


def test_plain_batches_are_epochs_of_all_used_images(division):
    drawn = [sampling.draw("erm", division, batch_size=5, seed=1, step=step, groups=2)[0] for step in range(4)]
    assert drawn[0].shape == (2, 5)
    assert np.bincount(np.concatenate(drawn).ravel()).tolist() == [2] * 20


@pytest.mark.parametrize(("update", "groups"), [("cis", 3), ("cip", 3), ("metaiqa", 4), ("erm", 3)])
def test_a_step_depends_on_its_number_and_the_seed_alone(division, update, groups):
    def rows(seed, step):
        return sampling.draw(update, division, batch_size=4, seed=seed, step=step, groups=groups)[0].tolist()

    assert rows(1, 7) == rows(1, 7)
    assert rows(1, 7) != rows(1, 8)
    assert rows(1, 7) != rows(2, 7)


def test_groups_are_divided_among_the_devices():
    batch = {"image": np.arange(3 * 4 * 2).reshape(3, 4, 2), "mos": np.arange(12).reshape(3, 4)}
    divided = sampling.shard(batch)
    assert divided["image"].shape == (2, 3, 2, 2) and divided["image"].base is not None
    np.testing.assert_array_equal(divided["mos"][1], batch["mos"][:, 2:])
    with pytest.raises(ValueError, match="cannot be divided among the 2 devices"):
        sampling.shard({"mos": np.zeros((2, 3))})


def test_options_that_are_not_allowed(division):
    for options, message in (
        ({"update": "maml"}, "allowed: cis, cip, metaiqa, erm"),
        ({"update": "cis", "groups": 4}, "groups=4; cis takes one for each of the 3 subsets"),
        ({"update": "metaiqa"}, "must be even"),
    ):
        with pytest.raises(ValueError, match=message):
            sampling.draw(**{"division": division, "batch_size": 4, "seed": 0, "step": 0, "groups": 3, **options})
