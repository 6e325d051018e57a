"""What is measured on the validation images during training, and chooses the best checkpoint."""

import functools
import math
from collections.abc import Mapping

import flax.linen as nn
import ml_collections
import numpy as np

from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation import statistics
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.evaluation.table_attacks import ATTACKS


def make_validation(
    config: ml_collections.ConfigDict, module: nn.Module, dataset: QualityDataset, rows: np.ndarray, *, radius: float
):
    """A function from variables to `srcc`, `attacked_srcc` (5 steps of PGD, where `radius` > 0) and `selection`.

    Args:
      config: config.train.validation_crops and config.evaluation say how images are scored.
      module: the network.
      dataset, rows: the validation images.
      radius: the attack's, in units of 1/255.

    Returns:
      None for fewer than three images: a correlation of them says nothing. `selection` is -1 for scores that are all
      the same, and NaN for scores that are not finite.
    """
    if len(rows) < statistics.MIN_IMAGES:
        return None
    evaluation, count, mos = config.evaluation, config.train.validation_crops, dataset.mos[rows]
    places = {"crops": count, "crop_size": evaluation.crop_size, "seed": config.seed}
    cut = functools.cache(lambda: Crops(dataset, rows, **places)[:])  # not before a training that is not done yet
    scorer = Scorer(module, batch_size=evaluation.batch_size, mid=evaluation.mid)

    def validate(variables: Mapping) -> dict[str, float]:
        scores = {"srcc": scorer.scores(variables, cut())}
        if radius:
            attacked = scorer.attack(variables, cut(), mos, ATTACKS["pgd"].at(radius, steps=5))
            scores["attacked_srcc"] = attacked["after"]
        result = {name: float(statistics.srcc(values, mos)) for name, values in scores.items()}
        selection = float(np.mean([*result.values()]))
        if math.isnan(selection) and np.isfinite([*scores.values()]).all():
            selection = -1.0  # constant scores
        return result | {"selection": selection}

    return validate
