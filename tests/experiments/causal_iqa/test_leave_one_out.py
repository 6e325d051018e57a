"""The cells of leave-one-distortion-out: which there are, and what they depend on."""

import dataclasses

import numpy as np
import pytest

from cprl_jax.data.dataset import QualityDataset
from cprl_jax.experiments.causal_iqa.leave_one_out import held_out, history_of, make_cells
from cprl_jax.experiments.causal_iqa.study import Study
from cprl_jax.experiments.causal_iqa.training import make_plan
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import file_name


def named(distortions):
    count = len(distortions)
    names = [str(row) for row in range(count)]
    zeros = [0.0] * count
    return QualityDataset(
        "set", [np.zeros((8, 8, 3), np.uint8)] * count, names, zeros, zeros, zeros, names, distortions, [0] * count
    )


def test_held_out(config):
    assert held_out(config, named(["b", "a", "", "c"] * 3)) == ["a", "b", "c"]
    config.causal_iqa.held_out = ("c", "a", "c")
    assert held_out(config, named(["b", "a", "", "c"] * 3)) == ["c", "a"]
    assert held_out(config, named(["a", "c"] * 3 + ["few"])) == ["c", "a"]
    config.causal_iqa.held_out = ()
    for distortions, said in (
        (["a", "c"] * 3 + ["few"], "set has 1 images of few; a correlation needs 3: name others in config.causal_iqa"),
        (["a", ""] * 3, "set names 1 distortions; to leave one out takes at least two"),
    ):
        with pytest.raises(UserError, match=said):
            held_out(config, named(distortions))


@pytest.mark.slow
def test_cells_of_other_settings_have_another_stamp(config, dataset, tmp_path):
    def stamps(dataset=dataset):
        study = Study(config, dataset, np.arange(len(dataset)), folder=tmp_path)
        plan = make_plan(config, study.divide(np.arange(len(dataset))))
        return {cell.stamp for cell in make_cells(config, study, ["blur", "noise"], plan, tmp_path)}

    first = stamps()
    assert len(first) == 4 and stamps() == first
    for field, value in (
        ("causal_iqa.meta_rate", 0.4),
        ("causal_iqa.clusters", 1),
        ("causal_iqa.epochs", 3),
        ("evaluation.crops", 1),
        ("train.crop_size", 13),
        ("model.score_std", 9.0),
        ("seed", 1),
    ):
        changed = config.copy_and_resolve_references()
        config.update_from_flattened_dict({field: value})
        if field != "causal_iqa.epochs":
            assert not stamps() & first, field
        config.update(changed)
    for field, value in (("saliency", 0), ("seeds", 2), ("updates", ("erm", "cis", "cip")), ("evaluate_every", 1)):
        config.causal_iqa[field] = value
        assert stamps() >= first, field
    images = [*dataset.images[:-1], 255 - dataset.images[-1]]  # under the same name
    assert not stamps(dataclasses.replace(dataset, images=images)) & first


def test_cells_come_distortion_by_distortion_in_files_of_their_own(config, dataset, tmp_path):
    config.causal_iqa.seeds = 2
    study = Study(config, dataset, np.arange(len(dataset)), folder=tmp_path)
    plan = make_plan(config, study.divide(np.arange(len(dataset))))
    cells = make_cells(config, study, ["set/contrast", "set contrast"], plan, tmp_path)
    assert [(cell.held_out[3], cell.seed, cell.update) for cell in cells] == [
        (sign, seed, update) for sign in "/ " for seed in (0, 1) for update in ("erm", "cis")
    ]
    assert len({cell.path for cell in cells}) == len({cell.stamp for cell in cells}) == 8
    assert all(cell.path.parent.parent == tmp_path for cell in cells)
    assert file_name("jpeg") == "jpeg"


def test_history_of_a_cell():
    arrays = {"history_step": np.array([1, 2]), "history_loss": np.array([3.5, 2.5]), "scores": np.zeros(4)}
    assert history_of(arrays) == [{"step": 1, "loss": 3.5}, {"step": 2, "loss": 2.5}]
    assert history_of({"scores": np.zeros(4)}) == []
