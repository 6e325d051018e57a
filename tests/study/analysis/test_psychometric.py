"""Psychometric functions against the package psignifit and a general optimiser on the literal likelihood."""

import numpy as np
import pytest
from scipy import optimize, special, stats

from cprl_jax.study.analysis import psychometric

X, ASKED = np.array([-12.0, -9, -6, -3, 0, 3, 6, 9]), np.full(8, 400.0)
SEEN = {0.5: np.array([201, 204, 220, 258, 313, 358, 380, 387]), None: np.array([41, 48, 77, 147, 248, 333, 374, 386])}
# psignifit 4.3 on these counts: psignifit.psignifit(np.stack([X, SEEN, ASKED], 1), sigmoid=..., experiment_type=...)
# .parameter_estimate, of types "2AFC" and "yes/no": threshold, width, lambda, gamma. Shapes: norm, logistic, gumbel.
PSIGNIFIT = {
    ("gaussian", 0.5): (-0.9902, 13.3246, 0.0290, 0.5),
    ("gaussian", None): (-0.9996, 13.2906, 0.0283, 0.0981),
    ("logistic", 0.5): (-0.9044, 14.3826, 0.0237, 0.5),
    ("logistic", None): (-0.9916, 14.6670, 0.0171, 0.0878),
    ("weibull", 0.5): (-0.7509, 14.2102, 0.0387, 0.5),
    ("weibull", None): (-1.0995, 15.7227, 0.0421, 0.0520),
}


@pytest.mark.parametrize(("shape", "guess"), PSIGNIFIT, ids=lambda value: str(value))
def test_the_numbers_are_those_of_psignifit_but_for_the_priors(shape, guess):
    fit = psychometric.fit(X, SEEN[guess], ASKED, shape=shape, guess=guess)
    threshold, width, lapse, rate = PSIGNIFIT[shape, guess]
    assert fit.threshold == pytest.approx(threshold, abs=0.06)
    assert fit.width == pytest.approx(width, rel=0.03)
    assert fit.lapse == pytest.approx(lapse, abs=0.004) and fit.guess == pytest.approx(rate, abs=0.008)


def literal(shape, x, threshold, width, guess, lapse):
    """P(x) from scipy's distributions, Weibull's as that of 10^(x / 20)."""
    if shape == "weibull":
        # F = 1 - exp(-(t / scale)^k) of t = 10^(x/20): both quantiles of the width, and the median.
        slope = 20 / np.log(10) * np.log(np.log(0.05) / np.log(0.95)) / width
        scale = 10 ** (threshold / 20) / np.log(2) ** (1 / slope)
        value = stats.weibull_min.cdf(10 ** (x / 20), slope, scale=scale)
    else:
        kind = {"gaussian": stats.norm, "logistic": stats.logistic}[shape]
        value = kind.cdf(x, threshold, width / (kind.ppf(0.95) - kind.ppf(0.05)))
    return guess + (1 - guess - lapse) * value


@pytest.mark.parametrize("shape", psychometric.SHAPES)
def test_the_fit_is_the_maximum_of_the_literal_likelihood(shape):
    asked = np.full(8, 4e6)  # so many that the prior says nothing
    seen = np.round(asked * literal(shape, X, 0.7, 11.0, 0.12, 0.04) + 100 * np.sin(X))
    fit = psychometric.fit(X, seen, asked, shape=shape)

    def loss(position):
        guess, lapse = special.expit(position[2:])
        share = np.clip(literal(shape, X, position[0], np.exp(position[1]), guess, lapse), 1e-12, 1 - 1e-12)
        return -np.mean(special.xlogy(seen / asked, share) + special.xlogy(1 - seen / asked, 1 - share))

    start = [0.5, np.log(10), -2.0, -3.0]
    best = optimize.minimize(
        loss, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-15, "maxiter": 9000}
    )
    threshold, log_width, guess, lapse = best.x
    np.testing.assert_allclose([fit.threshold, fit.width], [threshold, np.exp(log_width)], rtol=2e-3)
    np.testing.assert_allclose([fit.guess, fit.lapse], special.expit([guess, lapse]), atol=5e-4)
    np.testing.assert_allclose(fit.share(X), literal(shape, X, *fit[1:]), atol=1e-12)
    np.testing.assert_allclose(fit.share(np.array([fit.strength(0.25)])), 0.25)


def test_members_of_a_batch_do_not_influence_each_other():
    random = np.random.default_rng(0)
    seen = random.binomial(20, SEEN[None] / 400, (2, 5, 8))
    asked = np.full(seen.shape, 20.0)
    together = psychometric.fit(X, seen, asked)
    assert together.threshold.shape == (2, 5)
    alone = psychometric.fit(X, seen[1, 3], asked[1, 3])
    np.testing.assert_allclose(together.threshold[1, 3], alone.threshold, atol=1e-3)
    again = psychometric.fit(X, seen, asked, start=alone)
    np.testing.assert_allclose(again.threshold, together.threshold, atol=5e-3)


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["nobody", "everybody"])
def test_all_or_nothing_still_has_a_finite_estimate_outside_of_what_was_shown(value):
    fit = psychometric.fit(X, value * np.full(8, 15.0), np.full(8, 15.0))
    assert np.isfinite([fit.threshold, fit.width]).all()
    assert fit.threshold > X.max() if value == 0 else fit.threshold < X.min()


def test_trials_without_and_with_a_plain_difference_tell_guesses_and_lapses():
    x = np.concatenate([X, [-np.inf, np.inf]])
    asked = np.concatenate([np.full(8, 15.0), [4000.0, 4000.0]])
    seen = np.concatenate([np.round(15 * SEEN[None] / 400), [1200.0, 3400.0]])
    fit = psychometric.fit(x, seen, asked)
    assert fit.guess == pytest.approx(0.3, abs=0.01) and fit.lapse == pytest.approx(0.15, abs=0.01)
    assert np.isneginf(fit.strength(0.25)) and np.isposinf(fit.strength(0.9))


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        psychometric.fit(X, SEEN[None][:3], ASKED)
    with pytest.raises(ValueError, match="0 <= detected <= asked"):
        psychometric.fit(X, ASKED + 1, ASKED)
    with pytest.raises(ValueError, match="at least two finite strengths"):
        psychometric.fit(np.array([1.0, 1.0]), np.array([1.0, 2.0]), np.array([3.0, 3.0]))
