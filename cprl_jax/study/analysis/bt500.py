"""Screening of observers by their scores: ITU-R BT.500, and bias and inconsistency after ITU-T P.913.

`scores` are [conditions, observers], NaN where an observer did not see a condition. Shares of "different" are scores
here: yes-no answers by themselves have no spread to speak of (their kurtosis is that of a coin).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

LARGEST_SHARE, LARGEST_ASYMMETRY = 0.05, 0.3  # of BT.500


class Screening(NamedTuple):
    """What BT.500 says of each observer.

    Attributes:
      rejected: whether he is left out.
      share: of the conditions, those in which his score lies far from the mean of all, above or below.
      asymmetry: 0 where he is as often far above as far below, 1 where always on one side; NaN where he is never.
    """

    rejected: Bool[np.ndarray, " observers"]
    share: Float[np.ndarray, " observers"]
    asymmetry: Float[np.ndarray, " observers"]


def screen(scores: Float[np.ndarray, "conditions observers"]) -> Screening:
    """Observers that ITU-R BT.500 rejects (BT.500-13, Annex 2, 2.3.1; in BT.500-14, A1-2.3.1).

    A score is far from the mean if it is at least 2 standard deviations away where the scores of the condition are
    about normal (kurtosis from 2 to 4), else sqrt(20). An observer is rejected who is far in more than 5 % of
    all conditions, and about as often above as below: |P - Q| / (P + Q) < 0.3. One who is always on one side has
    another criterion, not no criterion. Where all would be rejected, none is, as in the package `sureal`; unlike there,
    nobody is far where all agree.

    Raises:
      ValueError: not [conditions, observers], or no scores at all.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not np.isfinite(scores).any():
        raise ValueError(f"scores must be [conditions, observers] with some numbers, got shape {scores.shape}")
    scores = scores[np.isfinite(scores).any(axis=1)]
    mean, spread = np.nanmean(scores, axis=1, keepdims=True), np.nanstd(scores, axis=1, keepdims=True)
    varied = spread > 1e-12 * np.abs(mean)  # one score, or the same of all: nobody is far, whatever sums round to
    central = np.where(varied, scores - mean, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        kurtosis = _mean(central**4) / _mean(central**2) ** 2
    far = np.where((kurtosis >= 2) & (kurtosis <= 4), 2.0, np.sqrt(20.0)) * spread
    above, below = ((sign * scores >= sign * mean + far) & varied for sign in (1, -1))
    above, below = above.sum(axis=0), below.sum(axis=0)
    share = (above + below) / len(scores)
    with np.errstate(invalid="ignore"):
        asymmetry = np.abs(above - below) / (above + below)
    rejected = (share > LARGEST_SHARE) & (asymmetry < LARGEST_ASYMMETRY)
    return Screening(rejected & ~rejected.all(), share, asymmetry)


class Observers(NamedTuple):
    """Each observer's bias (his scores less the true ones, on average) and inconsistency (their standard deviation)."""

    quality: Float[np.ndarray, " conditions"]
    bias: Float[np.ndarray, " observers"]
    inconsistency: Float[np.ndarray, " observers"]


def bias_and_inconsistency(scores: Float[np.ndarray, "conditions observers"], *, steps: int = 1000) -> Observers:
    """score = quality + bias + inconsistency * noise, fitted by alternating projection (ITU-T P.913, 12.6).

    Li, Bampis, Krasula, Janowski and Katsavounidis, "A simple model for subject behavior in subjective experiments",
    HVEI 2020. Nobody is left out: an observer counts the less the less consistent he is. Biases have mean 0.

    Raises:
      ValueError: a condition or an observer without scores.
    """
    scores = np.asarray(scores, np.float64)
    known = np.isfinite(scores)
    if scores.ndim != 2 or not (known.any(axis=0).all() and known.any(axis=1).all()):
        raise ValueError("each condition and each observer must have a score")
    quality = np.nanmean(scores, axis=1)
    bias = np.nanmean(scores - quality[:, None], axis=0)
    for _ in range(steps):
        before = quality
        inconsistency = np.nanstd(scores - quality[:, None] - bias, axis=0)
        weights = known / (inconsistency**2 + 1e-8)  # as sureal: an observer without any residue does not rule alone
        quality = np.nansum(weights * (scores - bias), axis=1) / weights.sum(axis=1)
        bias = np.nanmean(scores - quality[:, None], axis=0)
        if np.linalg.norm(quality - before) < 1e-8:
            break
    return Observers(quality + bias.mean(), bias - bias.mean(), inconsistency)


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.nansum(values, axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
