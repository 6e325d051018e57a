"""What is measured on the validation images during training, and chooses the best checkpoint."""

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
      None for fewer than three images: a correlation of them says nothing.
    """
    if len(rows) < statistics.MIN_IMAGES:
        return None
    evaluation, count, mos = config.evaluation, config.train.validation_crops, dataset.mos[rows]
    crops = Crops(dataset, rows, crops=count, crop_size=evaluation.crop_size, seed=config.seed)[:]
    scorer = Scorer(module, batch_size=evaluation.batch_size, mid=evaluation.mid)

    def validate(variables: Mapping) -> dict[str, float]:
        result = {"srcc": statistics.srcc(scorer.scores(variables, crops), mos)}
        if radius:
            attacked = scorer.attack(variables, crops, mos, ATTACKS["pgd"].at(radius, steps=5))["after"]
            result["attacked_srcc"] = statistics.srcc(attacked, mos)
        selection = float(np.mean([*result.values()]))
        return result | {"selection": selection if math.isfinite(selection) else -1.0}  # constant scores

    return validate
