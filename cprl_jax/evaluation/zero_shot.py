"""Trained models on other data sets, as they are: every image of the set, nothing fine-tuned on it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float

from cprl_jax import data
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation import statistics
from cprl_jax.evaluation.scoring import Scorer, score_images
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import read_cache, write_cache

MEASURES = ("srcc", "plcc", "rmse")


def load_datasets(config: ml_collections.ConfigDict) -> dict[str, QualityDataset]:
    """The data sets of config.evaluation.datasets by name: official releases in config.dataset.manual_dir, own folders.

    Raises:
      UserError: the set that the models are trained on, or one that cannot be read.
    """
    if trained := set(config.dataset.name.split("+")) & set(config.evaluation.datasets):
        raise UserError(
            f"config.evaluation.datasets names {sorted(trained)[0]!r}, on which the models are trained: its test "
            "part is evaluated anyway; name other sets"
        )
    return {name: load_dataset(config, name) for name in config.evaluation.datasets}


def load_dataset(config: ml_collections.ConfigDict, name: str) -> QualityDataset:
    """One data set by name, or 'own:FOLDER', with the options of config.dataset."""
    options = config.dataset.copy_and_resolve_references()
    options.name, _, folder = name.partition(":")
    if folder:
        options.manual_dir, options.labels = folder, ""
    return parallel.main_process_first(lambda: data.load(options))


def evaluate(
    config: ml_collections.ConfigDict,
    method: str,
    module: nn.Module,
    variables: Mapping,
    datasets: Mapping[str, QualityDataset],
    *,
    folder: Path,
    identity: Mapping,
) -> list[dict]:
    """One row per data set: `method`, `dataset`, `images`, `srcc`, `plcc`, `rmse` and their 95 % intervals.

    Each image's score is its mean over config.evaluation.crops crops. Labels and scores are on 0..100, but a model
    keeps to the scale of the set that it was trained on: RMSE shows how far the scales agree, SRCC does not depend on
    them.

    Args:
      config: config.evaluation says how images are scored.
      method, module, variables: the model.
      datasets: from `load_datasets`.
      folder: of the method; scores are kept in zero_shot/ there until the model changes.
      identity: what the scores depend on beside config.evaluation (the checkpoint's step and the like).
    """
    evaluation = config.evaluation
    rows = []
    for name, dataset in datasets.items():
        scores = _scores(config, method, module, variables, name, dataset, folder=folder, identity=identity)
        row = {"method": method, "dataset": name, "images": len(dataset)}
        for measure in MEASURES:
            statistic = getattr(statistics, measure)
            row[measure] = float(statistic(scores, dataset.mos))
            row[f"{measure}_low"], row[f"{measure}_high"] = statistics.bootstrap_interval(
                scores, dataset.mos, statistic, seed=config.seed, resamples=evaluation.resamples
            )
        rows.append(row)
    return rows


def _scores(
    config, method, module, variables, name: str, dataset: QualityDataset, *, folder: Path, identity: Mapping
) -> Float[np.ndarray, " images"]:
    evaluation = config.evaluation
    names = hashlib.sha256("\n".join(dataset.names.tolist()).encode()).hexdigest()
    settings = {"crops": evaluation.crops, "crop_size": evaluation.crop_size, "seed": config.seed, "names": names}
    stamp = json.dumps({**settings, **identity}, sort_keys=True)
    cache = folder / "zero_shot" / f"{name.replace(':', '_').replace('/', '_')}.npz"
    if (kept := read_cache(cache, stamp)) is not None:
        return kept["scores"]
    scorer = Scorer(module, batch_size=evaluation.batch_size, pgd_steps=1, mid=evaluation.mid)
    logging.info("%s: scoring the %d images of %s", method, len(dataset), name)
    result = score_images(
        scorer, variables, dataset, range(len(dataset)), evaluation, seed=config.seed, progress=f"{method} on {name}"
    )
    if parallel.is_main_process():
        write_cache(cache, stamp, {"scores": result})
    return result
