"""How well predicted scores agree with targets: SRCC, PLCC, RMSE and their bootstrap intervals (NumPy, on the host).

The three numbers are those of Tables 3 and 4 of the CPRL paper, taken of the scores as they are: no logistic curve is
fitted between predictions and targets first, so PLCC and RMSE also show a wrong scale. Targets are mean opinion scores
(MOS), or a model's scores of the unattacked images, both on the 0..100 scale.
"""

import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import stats

MIN_IMAGES = 3

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def srcc(
    predictions: Float[np.ndarray, "*batch images"], targets: Float[np.ndarray, "*batch images"]
) -> Float[np.ndarray, "*batch"]:
    """Spearman's rank correlation, -1..1: 1 where both put the images in the same order. Ties share their mean rank.

    NaN where it is not defined: fewer than three images, a side that is constant, or a number that is not finite. The
    last axis runs over the images. Raises ValueError for shapes that differ, or a single number.
    """
    predictions, targets = _checked(predictions, targets)
    return _correlation(stats.rankdata(predictions, axis=-1), stats.rankdata(targets, axis=-1))


def plcc(
    predictions: Float[np.ndarray, "*batch images"], targets: Float[np.ndarray, "*batch images"]
) -> Float[np.ndarray, "*batch"]:
    """Pearson's linear correlation, -1..1: 1 where the predictions are a rising straight line of the targets.

    NaN, and ValueError, as for `srcc`. The last axis runs over the images.
    """
    return _correlation(*_checked(predictions, targets))


def rmse(
    predictions: Float[np.ndarray, "*batch images"], targets: Float[np.ndarray, "*batch images"]
) -> Float[np.ndarray, "*batch"]:
    """Root mean square error in score units: sqrt(mean((predictions - targets)^2)); 0 where both are equal.

    NaN where a number is not finite. The last axis runs over the images. Raises ValueError as `srcc` does.
    """
    predictions, targets = _checked(predictions, targets)
    return np.sqrt(np.mean(np.square(predictions - targets), axis=-1))


def bootstrap_interval(
    predictions: Float[np.ndarray, " images"],
    targets: Float[np.ndarray, " images"],
    statistic: Statistic,
    *,
    seed: int,
    resamples: int = 1000,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic over images, (low, high).

    Images are drawn with replacement, as pairs of prediction and target, `resamples` times; the interval lies between
    the 2.5 % and 97.5 % quantiles of the statistic (Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13).
    It covers the choice of test images. It says nothing about other scenes, other splits or other training seeds.

    Resamples without a value (a correlation of one image drawn n times) are left out, and where more than half have
    none the interval is (NaN, NaN). That is why this is not `scipy.stats.bootstrap`: one such resample, and a small
    test set has some, makes its whole interval NaN.

    Args:
        statistic: takes two arrays [resamples, images] and gives [resamples]: `srcc`, `plcc`, `rmse`.
        seed: the same seed and number of images draw the same images, so that intervals of several methods on one
            test set are comparable.

    Raises:
        ValueError: resamples below 1, or as `srcc` does.
    """
    predictions, targets = _checked(predictions, targets)
    chosen = _draws(targets, seed, resamples)
    return _interval(statistic(predictions[chosen], targets[chosen]))


MEASURES: dict[str, Statistic] = {"srcc": srcc, "plcc": plcc, "rmse": rmse}
"""The statistics of the tables."""


def measures_with_intervals(
    predictions: Float[np.ndarray, " images"], targets: Float[np.ndarray, " images"], *, seed: int, resamples: int
) -> dict[str, float]:
    """Every measure and its 95 % bootstrap interval: 'srcc', 'srcc_low', 'srcc_high', 'plcc', ..."""
    row = {}
    for name, statistic in MEASURES.items():
        row[name] = float(statistic(predictions, targets))
        interval = bootstrap_interval(predictions, targets, statistic, seed=seed, resamples=resamples)
        row[f"{name}_low"], row[f"{name}_high"] = interval
    return row


def paired_difference(
    first: Float[np.ndarray, " images"],
    second: Float[np.ndarray, " images"],
    targets: Float[np.ndarray, " images"],
    statistic: Statistic,
    *,
    seed: int,
    resamples: int = 1000,
) -> tuple[float, float, float]:
    """Difference of a statistic between two models on the same images, and its paired bootstrap interval.

    Both models are resampled with the same images: what a draw does to both cancels in their difference, so that this
    interval may exclude 0 where the intervals of the two models overlap. Draws are those of `bootstrap_interval` with
    the same seed; resamples in which either statistic has no value are left out, as there.

    Args:
        first, second: predictions of the two models.
        statistic, seed, resamples: as in `bootstrap_interval`.

    Returns:
        (difference, low, high) of `statistic(first, targets) - statistic(second, targets)`.

    Raises:
        ValueError: as `bootstrap_interval` does.
    """
    first, targets = _checked(first, targets)
    second, _ = _checked(second, targets)
    chosen = _draws(targets, seed, resamples)
    differences = statistic(first[chosen], targets[chosen]) - statistic(second[chosen], targets[chosen])
    return float(statistic(first, targets) - statistic(second, targets)), *_interval(differences)


def _draws(targets: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Indices of the images of each resample, [resamples, images]."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if targets.ndim != 1:
        raise ValueError(f"predictions and targets must be one number per image, got shape {targets.shape}")
    return np.random.default_rng(seed).integers(targets.size, size=(resamples, targets.size))


def _interval(values: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    if np.mean(np.isfinite(values)) < 0.5:
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.shape[-1] < MIN_IMAGES:
        return np.full(x.shape[:-1], np.nan)[()]
    with warnings.catch_warnings():  # a constant side is an expected answer here (NaN), not an accident
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return stats.pearsonr(x, y, axis=-1).statistic


def _checked(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, with NaN for all images of a row of which one has no finite number."""
    predictions, targets = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if predictions.shape != targets.shape:
        raise ValueError(
            f"predictions and targets must have the same shape, got {predictions.shape} and {targets.shape}"
        )
    if predictions.ndim == 0:
        raise ValueError("predictions and targets must have a last axis of images, got single numbers")
    known = [np.isfinite(values).all(axis=-1, keepdims=True) for values in (predictions, targets)]
    return np.where(known[0], predictions, np.nan), np.where(known[1], targets, np.nan)
