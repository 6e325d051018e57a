"""From what the attack `reach` does to each image's score to the lowest rank correlation of the whole test set."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from cprl_jax.evaluation.table_attacks.reach import ATTACK, HIGH, LOW
from cprl_jax.robustness.ranking import lowest_srcc
from cprl_jax.runtime.files import Arrays

_LOW, _HIGH = f"{ATTACK.name}:{LOW}", f"{ATTACK.name}:{HIGH}"


def lowest_columns(
    results: Mapping[tuple[str, float], Arrays], attack: str, radius: float, targets: Float[np.ndarray, " images"]
) -> dict[str, float]:
    """`lowest_srcc` and `lowest_srcc_bound` for the rows of 'reach:low'; nothing for those of other attacks.

    The score of an image, which is the mean over its crops, can be anything between the means of both ends: it changes
    continuously on the way from one attacked image to the other, which stays inside the radius (but for small jumps
    where a network has gates, as SortMask's). An attack that ends on the wrong side of the clean score has found
    nothing, and that score is the end.

    Args:
      results: `evaluation.table.Results` of a method.
      attack, radius: of the row.
      targets: what the row's numbers are against: labels, or clean scores.

    Returns:
      `robustness.ranking.lowest_srcc`; NaN where a score is not finite or the targets are all the same.
    """
    if attack != _LOW or (_HIGH, radius) not in results:
        return {}
    low, high = results[_LOW, radius], results[_HIGH, radius]
    lower, upper = np.minimum(low["after"], low["before"]), np.maximum(high["after"], low["before"])
    achieved = bound = np.nan
    if np.isfinite([lower, upper, targets]).all() and np.ptp(targets) > 0:
        achieved, bound, _ = lowest_srcc(lower, upper, targets)
    return {"lowest_srcc": achieved, "lowest_srcc_bound": bound}
