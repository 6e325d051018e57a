"""Leave-one-distortion-out: each held-out distortion x seed x update is a cell, trained, tested and kept in a file.

A cell trains on all images of the other distortions (undistorted ones included, where a data set rates them) and tests
on all images of the held-out one, as in Table 3 of Causal-IQA. Scenes are shared between both: the question is what an
unseen distortion does.
"""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from cprl_jax.data import splits
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation import statistics
from cprl_jax.experiments.causal_iqa.study import Study, severe
from cprl_jax.experiments.causal_iqa.training import Plan, Trainer
from cprl_jax.runtime import cells as cells_lib
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import Arrays, file_name
from cprl_jax.runtime.stamps import stamp


class Cell(NamedTuple):
    """One training and its test: what is computed and kept as one file."""

    held_out: str
    update: str
    seed: int
    path: Path
    stamp: str


def held_out(config: ml_collections.ConfigDict, dataset: QualityDataset) -> list[str]:
    """The distortions to hold out, one after the other.

    Raises:
      UserError: one that the data set does not have or has too few images of, or fewer than two in all.
    """
    names, counts = np.unique(dataset.distortions[dataset.distortions != ""], return_counts=True)
    present = dict(zip(names.tolist(), counts.tolist(), strict=True))
    if len(present) < 2:
        raise UserError(f"{dataset.name} names {len(present)} distortions; to leave one out takes at least two")
    chosen = list(config.causal_iqa.held_out) or list(present)
    if unknown := [name for name in chosen if name not in present]:
        raise UserError(
            f"config.causal_iqa.held_out names {unknown[0]!r}, which {dataset.name} does not have; it has "
            f"{', '.join(present)}"
        )
    if few := [name for name in chosen if present[name] < statistics.MIN_IMAGES]:
        raise UserError(
            f"{dataset.name} has {present[few[0]]} images of {few[0]}; a correlation needs {statistics.MIN_IMAGES}: "
            "name others in config.causal_iqa.held_out"
        )
    return list(dict.fromkeys(chosen))


def make_cells(
    config: ml_collections.ConfigDict, study: Study, distortions: Sequence[str], plan: Plan, folder: Path
) -> list[Cell]:
    """All cells, distortion by distortion: what is done first is a comparison of all updates."""
    evaluation = {name: config.evaluation[name] for name in ("crop_size", "crops")}
    starts = {seed: stamp(seed=seed, start=study.start(seed)) for seed in study.seeds}
    shared = {"study": study.stamp, "plan": plan, "evaluation": evaluation}
    cells = []
    for distortion, seed, update in itertools.product(distortions, study.seeds, config.causal_iqa.updates):
        path = folder / file_name(distortion) / f"{update}-seed{seed}.npz"
        cell_stamp = stamp(held_out=distortion, update=update, start=starts[seed], **shared)
        cells.append(Cell(distortion, update, seed, path, cell_stamp))
    return cells


def compute(
    config: ml_collections.ConfigDict, study: Study, trainer: Trainer, dataset: QualityDataset, cells: Sequence[Cell]
) -> list[Arrays]:
    """Trains and tests the cells that are not there yet.

    Returns:
      of each cell, `names`, `scores` and `mos` of its test images, `seconds`, and as `history_...` the metrics of its
      training; for the first seed also `saliency_row` and `saliency_map`, those of the image of lowest MOS.
    """

    def compute_one(cell: Cell) -> Arrays:
        started = time.monotonic()
        split = splits.leave_one_distortion_out(dataset, cell.held_out, seed=config.seed, validation_fraction=0.0)
        division = study.divide(np.sort(splits.rows(dataset, split.train)))
        start = study.start(cell.seed)
        variables, history = trainer.train(cell.update, dataset, division, seed=cell.seed, variables=start)
        tested = np.sort(splits.rows(dataset, split.test))
        scores = study.scores(variables, study.crops(tested))
        arrays = {"names": dataset.names[tested], "scores": scores, "mos": dataset.mos[tested]}
        arrays |= {f"history_{name}": np.array([row[name] for row in history]) for name in (history or [{}])[0]}
        if cell.seed == config.seed:
            row = severe(dataset, tested, 1)
            arrays |= {"saliency_row": row[0], "saliency_map": study.saliency(variables, row)[0]}
        return arrays | {"seconds": np.array(time.monotonic() - started)}

    return cells_lib.compute(
        cells,
        compute_one,
        job="leave one out",
        shared=True,
        describe=lambda cell: f"{cell.update} without {cell.held_out}, seed {cell.seed}",
    )


def history_of(arrays: Arrays) -> list[dict[str, float]]:
    """The metrics of a cell's training, one row a meta step."""
    names = [name for name in arrays if name.startswith("history_")]
    columns = zip(*(arrays[name].tolist() for name in names), strict=True)
    return [dict(zip((name.removeprefix("history_") for name in names), values, strict=True)) for values in columns]
