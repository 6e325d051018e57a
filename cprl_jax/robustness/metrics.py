"""Robustness in numbers, from scores before and after an attack (NumPy, on the host).

`before` and `after` are one score per image, in the same order; `lowest` and `highest` are the ends of the scores'
scale. Every function raises ValueError for arrays that are not of one shape [images], are empty, or are not finite.
"""

import numpy as np
from jaxtyping import Float
from scipy import stats


def r_robustness(
    before: Float[np.ndarray, " images"],
    after: Float[np.ndarray, " images"],
    *,
    lowest: float = 0.0,
    highest: float = 10.0,
    base: float | str = "e",
    smallest_change: float = 0.0,
) -> float:
    """The R robustness score, called R in tables: larger is more robust.

    Zhang et al., "Perceptual Attacks of No-Reference Image Quality Models with Human-in-the-Loop", NeurIPS 2022, Eq. 6:

        R = mean over images of log(max(highest - q, q - lowest) / |q - q*|),

    with q the score before and q* the score after the attack: the largest change that the scale allows, over the change
    that happened. 0 where an attack moves scores as far as they can go. It knows nothing of how right the scores are.

    Args:
      before, after: scores q and q*.
      lowest, highest: ends of the scale (beta_2 and beta_1). The paper maps all scores to 0..10 first; for scores on
        0..100 say `highest=100`.
      base: the logarithm's, which the paper does not state: "e", or a number above 1 (10 in later work on the defence
        of quality models). R to base 10 is R to base e divided by ln 10.
      smallest_change: changes below it, in score points, count as this large. With 0, a score that did not change at
        all makes its image's ratio, and so R, infinite.

    Raises:
      ValueError: also for highest <= lowest, a base that is none, a negative smallest_change, or scores most of which
        lie outside of the scale.
    """
    before, after = _checked(before, after)
    _check_scale(lowest, highest)
    if not lowest <= np.median(before) <= highest:
        raise ValueError(
            f"the scores before the attack have a median of {np.median(before):g}, outside of the scale "
            f"{lowest:g}..{highest:g}: give lowest and highest of their scale (100 for MOS on 0..100)."
        )
    if not 0 <= smallest_change < np.inf:
        raise ValueError(f"smallest_change must be finite and at least 0, got {smallest_change}.")
    change = np.maximum(np.abs(before - after), smallest_change)
    with np.errstate(divide="ignore"):
        ratios = np.maximum(highest - before, before - lowest) / change
    if base != "e" and (isinstance(base, str) or not 1 < base < np.inf):
        raise ValueError(f"base must be 'e' or a number above 1 (10 for the decimal logarithm), got {base!r}.")
    return float(np.mean(np.log(ratios)) / (1.0 if base == "e" else np.log(base)))


def absolute_gain(
    before: Float[np.ndarray, " images"],
    after: Float[np.ndarray, " images"],
    *,
    lowest: float | None = None,
    highest: float | None = None,
) -> float:
    """Mean of q*' - q', with scores scaled to q' = (q - lowest) / (highest - lowest): how far the attack raised them.

    The MSU robustness benchmark's "absolute gain" (Antsiferova et al., "Comparing the Robustness of Modern No-Reference
    Image- and Video-Quality Metrics to Adversarial Attacks", AAAI 2024). 0 is no change, negative a fall; give
    -before and -after to measure an attack that lowers scores.

    Args:
      lowest, highest: ends of the scale; default, as in the benchmark, the least and greatest score in `before`.

    Raises:
      ValueError: also for highest <= lowest (without them: `before` is constant).
    """
    before, after = _scaled(*_checked(before, after), lowest, highest)
    return float(np.mean(after - before))


def relative_gain(
    before: Float[np.ndarray, " images"],
    after: Float[np.ndarray, " images"],
    *,
    lowest: float | None = None,
    highest: float | None = None,
) -> float:
    """Mean of (q*' - q') / (q' + 1), scores scaled as in `absolute_gain`: low scores weigh up to twice as much.

    "Relative gain" of the same benchmark, whose 1 keeps the ratio finite at q' = 0. Arguments and errors are those of
    `absolute_gain`; raises ValueError also where a scaled score before the attack is -1 or less.
    """
    before, after = _scaled(*_checked(before, after), lowest, highest)
    if np.any(before <= -1):
        raise ValueError("a score before the attack lies a whole scale or more below lowest: no gain is defined.")
    return float(np.mean((after - before) / (before + 1)))


def wasserstein_distance(
    before: Float[np.ndarray, " images"], after: Float[np.ndarray, " images"], *, signed: bool = False
) -> float:
    """First Wasserstein distance between the two distributions of scores, in score points (`scipy.stats`).

    The least mean way that scores must go for one distribution to become the other, whichever image they belong to: an
    attack that only swaps the scores of images has distance 0. `signed=True`, the benchmark's "Wasserstein score": with
    the sign of the change of the mean.
    """
    before, after = _checked(before, after)
    return _with_sign(stats.wasserstein_distance(before, after), before, after, signed)


def energy_distance(
    before: Float[np.ndarray, " images"], after: Float[np.ndarray, " images"], *, signed: bool = False
) -> float:
    """Energy distance between the two distributions of scores, in the root of score points (`scipy.stats`).

    sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|) for independent draws X, X' from `before` and Y, Y' from `after`.
    `signed` as in `wasserstein_distance`.
    """
    before, after = _checked(before, after)
    return _with_sign(stats.energy_distance(before, after), before, after, signed)


def integral_robustness(
    radii: Float[np.ndarray, " radii"], values: Float[np.ndarray, "*batch radii"]
) -> Float[np.ndarray, "*batch"] | float:
    """Area under a curve over the attack's radius (trapezoids), divided by the range of radii: the curve's mean height.

    With SRCC as `values`: 1 for a model that ranks perfectly up to the largest radius. Numbers are comparable only for
    the same radii; begin with 0 (no attack) to count the whole curve. NaN where a value is NaN.

    Args:
      radii: growing, at least two, in any unit.
      values: what was measured at each (SRCC, accuracy, ...), along the last axis.

    Raises:
      ValueError: radii that do not grow, are fewer than two or not finite, or do not fit the values.
    """
    radii, values = np.asarray(radii, np.float64), np.asarray(values, np.float64)
    if radii.ndim != 1 or radii.size < 2 or not np.all(np.isfinite(radii)) or np.any(np.diff(radii) <= 0):
        raise ValueError(f"radii must be at least two finite, growing numbers, got {radii.tolist()}.")
    if values.ndim < 1 or values.shape[-1] != radii.size:
        raise ValueError(f"values must have one number per radius on the last axis: {values.shape} for {radii.size}.")
    mean = np.trapezoid(values, radii, axis=-1) / (radii[-1] - radii[0])
    return float(mean) if values.ndim == 1 else mean


def _checked(before, after) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise ValueError(f"before and after must be one score per image, got shapes {before.shape}, {after.shape}.")
    for name, scores in (("before", before), ("after", after)):
        if not np.all(np.isfinite(scores)):
            raise ValueError(f"{name} must be finite: {(~np.isfinite(scores)).sum()} of {scores.size} are not.")
    return before, after


def _check_scale(lowest: float, highest: float) -> None:
    if not -np.inf < lowest < highest < np.inf:
        raise ValueError(f"highest must be above lowest, both finite, got lowest={lowest:g}, highest={highest:g}.")


def _scaled(before, after, lowest, highest) -> tuple[np.ndarray, np.ndarray]:
    lowest = before.min() if lowest is None else lowest
    highest = before.max() if highest is None else highest
    _check_scale(lowest, highest)
    return (before - lowest) / (highest - lowest), (after - lowest) / (highest - lowest)


def _with_sign(distance: float, before: np.ndarray, after: np.ndarray, signed: bool) -> float:
    return float(distance * np.sign(after.mean() - before.mean()) if signed else distance)
