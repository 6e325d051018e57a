"""Trained models on other data sets, as they are: every image of the set, nothing fine-tuned on it."""

import functools
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import ml_collections

from cprl_jax import data
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation import statistics
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.runtime import parallel
from cprl_jax.runtime.cells import cached
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import file_name, user_path
from cprl_jax.runtime.stamps import stamp


def load_datasets(config: ml_collections.ConfigDict) -> dict[str, QualityDataset]:
    """The data sets of config.evaluation.datasets by name: releases in config.dataset.manual_dir, and 'own:FOLDER'.

    Raises:
      UserError: the set that the models are trained on, or one that cannot be read.
    """
    for name in config.evaluation.datasets:
        kind, _, folder = name.partition(":")
        if kind in config.dataset.name.split("+") and (not folder or _same(folder, config.dataset.manual_dir)):
            raise UserError(
                f"config.evaluation.datasets names {name!r}, on which the models are trained: its test part is "
                "evaluated anyway; name other sets"
            )
    return {name: load_dataset(config, name) for name in config.evaluation.datasets}


def _same(*folders: str) -> bool:
    return len({user_path(folder, field="a data set").resolve() for folder in folders}) == 1


def load_dataset(config: ml_collections.ConfigDict, name: str) -> QualityDataset:
    """One data set by name, or 'own:FOLDER', with the options of config.dataset."""
    options = config.dataset.copy_and_resolve_references()
    options.name, _, folder = name.partition(":")
    if folder:
        options.manual_dir, options.labels = folder, ""
    try:
        return parallel.main_process_first(lambda: data.load(options))
    except UserError as error:  # which speaks of config.dataset
        scale = ""
        if folder and "mos_worst" in str(error):  # which a run has once
            scale = f"; all data sets of a run have one scale, here {options.mos_worst:g}..{options.mos_best:g}"
        raise UserError(f"config.evaluation.datasets, {name}: {error}{scale}") from None


def evaluate(
    config: ml_collections.ConfigDict,
    method: str,
    module: nn.Module,
    variables: Mapping,
    datasets: Mapping[str, QualityDataset],
    *,
    folder: Path,
) -> list[dict]:
    """One row per data set: `method`, `dataset`, `images`, `srcc`, `plcc`, `rmse` and their 95 % intervals.

    Each image's score is its mean over config.evaluation.crops crops. Labels and scores are on 0..100, but a model
    keeps to the scale of the set that it was trained on: RMSE shows how far the scales agree, SRCC does not depend on
    them.

    Args:
      config: config.evaluation says how images are scored.
      method, module, variables: the model.
      datasets: from `load_datasets`.
      folder: the method's; scores are kept in zero_shot/ there until the model or a pixel changes.
    """
    evaluation, rows = config.evaluation, []
    scorer = Scorer(module, batch_size=evaluation.batch_size)
    for name, dataset in datasets.items():
        crops = _all_crops(dataset, evaluation.crops, evaluation.crop_size, config.seed)
        scores = cached(
            folder / "zero_shot" / f"{file_name(name)}.npz",
            stamp(module=module, variables=variables, crops=crops.stamp),
            lambda name=name, crops=crops: {"scores": scorer.scores(variables, crops, progress=f"{method} on {name}")},
        )["scores"]
        options = {"seed": config.seed, "resamples": evaluation.resamples}
        measures = statistics.measures_with_intervals(scores, dataset.mos, **options)
        rows.append({"method": method, "dataset": name, "images": len(dataset), **measures})
    return rows


@functools.lru_cache(maxsize=8)  # their stamp is computed once, for all methods
def _all_crops(dataset: QualityDataset, crops: int, crop_size: int, seed: int) -> Crops:
    return Crops(dataset, range(len(dataset)), crops=crops, crop_size=crop_size, seed=seed)
