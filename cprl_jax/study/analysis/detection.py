"""Sensitivity d': how far apart two images are for the eye, in standard deviations of its noise, at any criterion.

Rates are those of `rate`, which are never 0 or 1. References: Macmillan and Creelman, "Detection Theory: A User's
Guide", 2nd edition, 2005, chapters 1, 7 and 9; Hautus, Behavior Research Methods 1995.
"""

import numpy as np
from jaxtyping import Float
from scipy import special


def rate(count: Float[np.ndarray, "*shape"], trials: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """(count + 1/2) / (trials + 1), the log-linear rule of Hautus: 0 of n and n of n still have a finite d'."""
    return (np.asarray(count, np.float64) + 0.5) / (np.asarray(trials, np.float64) + 1)


def same_different(
    hits: Float[np.ndarray, "*shape"], false_alarms: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """d' of a same-different task, by the differencing model (Macmillan and Creelman, 9.2 and 9.3).

    The observer says "different" if the two images differ by more than k in his noisy view, |x1 - x2| > k:

        false alarms = 2 Phi(-k / sqrt 2),   hits = Phi((d' - k) / sqrt 2) + Phi(-(d' + k) / sqrt 2).

    The other model, independent observations, needs an observer who knows the two images of every trial beforehand;
    here each trial may show another image, which leaves him their difference.

    Args:
      hits: share of "different" where the images differ, in (0, 1).
      false_alarms: share of "different" where they are identical, in (0, 1).

    Returns:
      d'; 0 where hits are not above false alarms.
    """
    hits, false_alarms = np.broadcast_arrays(np.asarray(hits, np.float64), np.asarray(false_alarms, np.float64))
    criterion = -np.sqrt(2) * special.ndtri(false_alarms / 2)
    low, high = np.zeros(hits.shape), np.full(hits.shape, 40.0)
    for _ in range(60):  # hits grow with d'
        middle = (low + high) / 2
        reached = special.ndtr((middle - criterion) / np.sqrt(2)) + special.ndtr(-(middle + criterion) / np.sqrt(2))
        low, high = np.where(reached < hits, middle, low), np.where(reached < hits, high, middle)
    return np.where(hits > false_alarms, (low + high) / 2, 0.0)[()]


def yes_no(hits: Float[np.ndarray, "*shape"], false_alarms: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """d' = z(hits) - z(false alarms): of the flicker task, in which a difference is seen as one thing that moves."""
    return special.ndtri(hits) - special.ndtri(false_alarms)


def forced_choice(correct: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """d' = sqrt(2) z(correct) of a choice between two alternatives without bias."""
    return np.sqrt(2) * special.ndtri(correct)
