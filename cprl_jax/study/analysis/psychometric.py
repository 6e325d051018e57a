"""Psychometric functions: how the share of detections grows with the strength of a stimulus.

    P(x) = guess + (1 - guess - lapse) F(x),

with F a cumulative distribution of the strength x (here in dB), `guess` the share of detections where there is nothing
to see (false alarms; 1/2 in a two-alternative forced choice) and `lapse` the share of misses where nobody can miss it.
F is described by its threshold, where it is 1/2, and its width, from 0.05 to 0.95, as in Schütt, Harmeling, Macke and
Wichmann, "Painfree and accurate Bayesian estimation of psychometric functions for (potentially) overdispersed data",
Vision Research 2016 (the package `psignifit`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

_STEPS, _TOLERANCE = 60, 1e-4
_EDGE = 1e-9  # probabilities are kept this far from 0 and 1
# Weak prior knowledge, worth a few trials, without which data that are all or nothing have no finite estimate.
_GUESS, _LAPSE = (0.5, 4.5), (0.25, 4.75)  # numbers of Yes and No that were seen before
_THRESHOLD_SPREAD, _WIDTH_SPREAD = 2.0, 1.0  # of the threshold, in ranges of the strengths; of the width's logarithm


class Shape(NamedTuple):
    """F(z) and its derivative, with F(0) = 1/2, and the distance between F = 0.05 and F = 0.95."""

    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    width: float


def _gumbel(z: np.ndarray) -> np.ndarray:
    return -np.expm1(-np.log(2) * np.exp(np.minimum(z, 50.0)))


def _gumbel_slope(z: np.ndarray) -> np.ndarray:
    z = np.minimum(z, 50.0)
    return np.log(2) * np.exp(z - np.log(2) * np.exp(z))


SHAPES = {
    "gaussian": Shape(special.ndtr, lambda z: np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi), 2 * special.ndtri(0.95)),
    "logistic": Shape(special.expit, lambda z: special.expit(z) * special.expit(-z), 2 * special.logit(0.95)),
    # Weibull's function of an intensity is Gumbel's of its logarithm.
    "weibull": Shape(_gumbel, _gumbel_slope, np.log(np.log(0.05) / np.log(0.95))),
}


class Fit(NamedTuple):
    """Psychometric functions, one for each entry of a batch, or one (then all are numbers).

    Attributes:
      shape: of `SHAPES`.
      threshold: x at which F is 1/2.
      width: from F = 0.05 to F = 0.95, in units of x.
      guess, lapse: see above.
    """

    shape: str
    threshold: Float[np.ndarray, "*batch"]
    width: Float[np.ndarray, "*batch"]
    guess: Float[np.ndarray, "*batch"]
    lapse: Float[np.ndarray, "*batch"]

    def share(self, x: Float[np.ndarray, " strengths"]) -> Float[np.ndarray, "*batch strengths"]:
        """P(x): the expected share of detections; strengths may be infinite."""
        threshold, width, guess, lapse = (np.asarray(value)[..., None] for value in self[1:])
        detected = SHAPES[self.shape].value((x - threshold) * SHAPES[self.shape].width / width)
        return guess + (1 - guess - lapse) * detected

    def strength(self, share: float) -> Float[np.ndarray, "*batch"]:
        """The x at which P(x) is `share`; -inf or inf where P is above or below it everywhere."""
        detected = np.clip((share - self.guess) / (1 - self.guess - self.lapse), 0, 1)
        with np.errstate(divide="ignore"):
            if self.shape == "weibull":
                z = np.log(np.log1p(-detected) / -np.log(2))
            else:
                z = special.ndtri(detected) if self.shape == "gaussian" else special.logit(detected)
        return self.threshold + self.width * z / SHAPES[self.shape].width


def fit(
    x: Float[np.ndarray, " strengths"],
    detected: Float[np.ndarray, "*batch strengths"],
    asked: Float[np.ndarray, "*batch strengths"],
    *,
    shape: str = "gaussian",
    guess: float | None = None,
    start: Fit | None = None,
) -> Fit:
    """Fits functions to numbers of trials by their likelihood and a weak prior, with Fisher's scoring.

    Args:
      x: strengths; -inf for trials without a difference (which tell the rate of guesses), inf for plain ones (which
        tell the rate of lapses).
      detected, asked: of each strength, the number of trials with a detection and of all trials; may be weighted.
      shape: of `SHAPES`.
      guess: known rate of guesses, 0.5 for two alternatives; None: it is estimated.
      start: where to begin, such as the fit to all data for those of a bootstrap.

    Raises:
      ValueError: shapes that differ, more detections than trials, fewer than two finite strengths with trials.
    """
    x, detected, asked = (np.asarray(values, np.float64) for values in (x, detected, asked))
    if detected.shape != asked.shape or detected.shape[-1:] != x.shape:
        raise ValueError(f"shapes differ: x {x.shape}, detected {detected.shape}, asked {asked.shape}")
    if np.isnan(x).any() or (detected < 0).any() or (detected > asked * (1 + 1e-9)).any():
        raise ValueError("x must be numbers, and 0 <= detected <= asked")
    finite = np.isfinite(x) & (asked.reshape(-1, x.size).sum(axis=0) > 0)
    if np.unique(x[finite]).size < 2:
        raise ValueError("there must be trials of at least two finite strengths")
    batch = detected.shape[:-1]
    detected, asked = (values.reshape(-1, x.size) for values in (detected, asked))
    problem = _Problem(x, detected, asked, shape, guess, (float(x[finite].min()), float(x[finite].max())))
    position = problem.grid() if start is None else np.tile(problem.parameters(start), (len(asked), 1))
    threshold, log_width, guess_logit, lapse_logit = problem.climb(position).T
    rates = np.full(len(asked), guess) if guess is not None else special.expit(guess_logit)
    values = (threshold, np.exp(log_width), rates, special.expit(lapse_logit))
    return Fit(shape, *(value.reshape(batch)[()] for value in values))


class _Problem(NamedTuple):
    """The posterior of a batch of functions; parameters are threshold, log width, logit guess, logit lapse."""

    x: np.ndarray
    detected: np.ndarray
    asked: np.ndarray
    shape: str
    guess: float | None
    range: tuple[float, float]

    def parameters(self, start: Fit) -> np.ndarray:
        guess = np.clip(start.guess, _EDGE, 1 - _EDGE)
        return np.array([start.threshold, np.log(start.width), special.logit(guess), special.logit(start.lapse)])

    def grid(self) -> np.ndarray:
        """The best of a few points for each member of the batch."""
        low, high = self.range
        points = [
            [low + place * (high - low), np.log(width * (high - low)), special.logit(0.1), special.logit(0.03)]
            for place in (-0.1, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.2)
            for width in (0.15, 0.5, 1.2)
        ]
        values = [self.value(np.tile(point, (len(self.asked), 1))) for point in points]
        return np.array(points)[np.argmax(values, axis=0)]

    def terms(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P [batch, strengths], and its derivatives [batch, strengths, 4]."""
        threshold, log_width, guess_logit, lapse_logit = (column[:, None] for column in position.T)
        form, width = SHAPES[self.shape], np.exp(log_width)
        z = (self.x - threshold) * form.width / width
        rate = special.expit(guess_logit) if self.guess is None else np.full_like(guess_logit, self.guess)
        lapse = special.expit(lapse_logit)
        value = form.value(z)
        steep = (1 - rate - lapse) * form.slope(z)
        z = np.where(np.isfinite(z), z, 0)  # there the slope is 0
        derivatives = [
            -steep * form.width / width,
            -steep * z,
            (1 - value) * rate * (1 - rate) * (self.guess is None),
            -value * lapse * (1 - lapse),
        ]
        return rate + (1 - rate - lapse) * value, np.stack(np.broadcast_arrays(*derivatives), axis=-1)

    def prior(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logarithm of the prior, its gradient and the diagonal of its information."""
        low, high = self.range
        centre = np.array([(low + high) / 2, np.log((high - low) / 2)])
        spread = np.array([_THRESHOLD_SPREAD * (high - low), _WIDTH_SPREAD])
        normal = (position[:, :2] - centre) / spread
        rates = special.expit(position[:, 2:])
        yes, no = np.array([_GUESS, _LAPSE]).T
        if self.guess is not None:
            yes, no = yes * [0, 1], no * [0, 1]
        logarithm = -0.5 * (normal**2).sum(axis=1)
        logarithm += (yes * special.log_expit(position[:, 2:]) + no * special.log_expit(-position[:, 2:])).sum(axis=1)
        gradient = np.concatenate([-normal / spread, yes - (yes + no) * rates], axis=1)
        information = np.concatenate([np.tile(spread**-2.0, (len(position), 1)), (yes + no) * rates * (1 - rates)], 1)
        return logarithm, gradient, information

    def value(self, position: np.ndarray) -> np.ndarray:
        """Logarithm of the posterior, up to a constant."""
        share = np.clip(self.terms(position)[0], _EDGE, 1 - _EDGE)
        likelihood = special.xlogy(self.detected, share) + special.xlogy(self.asked - self.detected, 1 - share)
        return likelihood.sum(axis=-1) + self.prior(position)[0]

    def climb(self, position: np.ndarray) -> np.ndarray:
        """Fisher's scoring; a step that leads down is halved, until it does not."""
        value, active = self.value(position), np.arange(len(position))
        for _ in range(_STEPS):
            part = self._replace(detected=self.detected[active], asked=self.asked[active])
            step = part.step(position[active])
            best, trial = value[active], position[active] + step
            reached = part.value(trial)
            for _ in range(12):
                worse = np.flatnonzero(~(reached >= best))
                if not worse.size:
                    break
                step[worse] /= 2
                trial[worse] = position[active[worse]] + step[worse]
                smaller = part._replace(detected=part.detected[worse], asked=part.asked[worse])
                reached[worse] = smaller.value(trial[worse])
            moved = reached >= best
            position[active[moved]], value[active[moved]] = trial[moved], reached[moved]
            active = active[moved & (np.abs(step).max(axis=1) > _TOLERANCE)]
            if not active.size:
                break
        return position

    def step(self, position: np.ndarray) -> np.ndarray:
        share, derivatives = self.terms(position)
        share = np.clip(share, _EDGE, 1 - _EDGE)
        _, gradient, information = self.prior(position)
        weight = 1 / (share * (1 - share))
        gradient = gradient + np.einsum("bs,bsp->bp", weight * (self.detected - self.asked * share), derivatives)
        weighted = np.sqrt(self.asked * weight)[..., None] * derivatives
        matrix = weighted.swapaxes(1, 2) @ weighted
        matrix[:, range(4), range(4)] += information + 1e-9
        step = np.linalg.solve(matrix, gradient[..., None])[..., 0]
        longest = np.array([0.5 * (self.range[1] - self.range[0]), 1.0, 1.0, 1.0])
        return step / np.maximum(1, np.max(np.abs(step) / longest, axis=1, keepdims=True))
