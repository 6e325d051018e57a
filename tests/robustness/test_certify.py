"""Median smoothing against closed forms, exact binomials, and attacks on the smoothed score."""

import fractions
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from cprl_jax import attacks
from cprl_jax.models import transformed
from cprl_jax.robustness import certify
from cprl_jax.runtime import parallel

SIGMA = 0.02  # mid-grey images: clipping at 0 and 1, 25 sigma away, never happens
WEIGHTS = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.45, 0.55, (4, 6, 5, 3)).astype(np.float32)
LENGTH = float(np.linalg.norm(WEIGHTS))
ONE = WEIGHTS / LENGTH  # the direction in which the linear score grows fastest


def _weighted(weights, images):
    return 50 + jnp.sum(weights * images, axis=(1, 2, 3))


def _step(weights, images):
    return jnp.where(_weighted(weights, images) > 50, 80.0, 20.0)


linear = Partial(_weighted, jnp.asarray(WEIGHTS[None]))
step = Partial(_step, jnp.asarray(WEIGHTS[None]))


def smooth(score_fn, images=IMAGES, *, samples=4000, seed=0, sigma=SIGMA, **options):
    options = {"key": jax.random.key(seed)} | options
    return certify.median_smoothing(score_fn, images, sigma=sigma, samples=samples, **options)


@pytest.fixture(scope="module")
def smoothed():
    return smooth(linear)


@pytest.mark.parametrize("radius", [0.0, 0.01, 0.03])
def test_bounds_of_a_linear_score_hold_and_are_tight(smoothed, radius):
    # Its scores under noise are normal around it, with a standard deviation of sigma |w|; r moves it by r |w| at most.
    score, reach = np.asarray(linear(IMAGES)), radius * LENGTH
    lower, upper = smoothed.bounds(radius)
    assert (lower <= score - reach).all() and (upper >= score + reach).all()
    # Beside the reach there is what 4000 samples leave open, 3.3 standard errors of a quantile.
    assert (upper - lower <= 2 * (1.05 * reach + 0.15 * SIGMA * LENGTH)).all()
    np.testing.assert_allclose(smoothed.score, score, atol=0.05 * SIGMA * LENGTH)


def test_at_many_samples_the_bounds_are_the_closed_form_to_five_percent():
    # Order statistics of exact normal quantiles: what the samples are without their own noise.
    samples = 100_000
    quantiles = stats.norm.ppf((np.arange(samples) + 0.5) / samples)[None]
    found = certify.Smoothed(quantiles, 1.0, 0.999)
    for radius in (0.5, 1.0, 2.0):
        lower, upper = found.bounds(radius)
        assert radius < upper[0] < 1.05 * radius and -1.05 * radius < lower[0] < -radius


def test_bounds_fail_no_more_often_than_they_say():
    # 4000 repetitions at a confidence of 0.9: the bounds of the median, and of quantiles at its side, of a normal.
    scores = np.sort(np.random.default_rng(0).normal(size=(4000, 101)), axis=1)
    found = certify.Smoothed(scores, 1.0, 0.9)
    for radius in (0.0, 0.7):
        lower, upper = found.bounds(radius)
        failed = np.mean((lower > -radius) | (upper < radius))
        assert 0.04 < failed < 0.1 + 3 * math.sqrt(0.09 / 4000)


def test_the_monte_carlo_noise_of_a_bound_is_small_beside_its_width():
    ends = np.array([smooth(linear, IMAGES[:1], samples=1000, seed=seed).bounds(SIGMA / 2) for seed in range(8)])
    widths = ends[:, 1, 0] - ends[:, 0, 0]
    assert ends.std(axis=0).max() < 0.1 * widths.mean()


def test_a_step_is_bounded_by_its_two_values():
    # At distance d from the jump, a share Phi(d / sigma) of the samples is on the image's side: the median keeps it
    # as long as r < d, and may be either value beyond.
    base = np.full((1, 6, 5, 3), 0.5, np.float32)
    base += ONE * np.float32((0 - (WEIGHTS * base[0]).sum()) / LENGTH)  # onto the jump
    image = base + np.float32(0.02) * ONE
    found = smooth(step, image)
    assert found.score == 80
    np.testing.assert_array_equal(found.bounds(0.015), [[80.0], [80.0]])
    np.testing.assert_array_equal(found.bounds(0.025), [[20.0], [80.0]])
    assert smooth(step, base).bounds(0.0)[0] == 20, "with ties, both values are possible at the jump"


def exact_order_statistics(p, samples, confidence):
    """The largest k with P(Bin(n, p) <= k - 1) <= alpha / 2, in fractions."""
    p, tail, below, k = fractions.Fraction(p), (1 - fractions.Fraction(confidence)) / 2, fractions.Fraction(0), 0
    for successes in range(samples):
        below += math.comb(samples, successes) * p**successes * (1 - p) ** (samples - successes)
        if below > tail:
            break
        k = successes + 1
    return k


@pytest.mark.parametrize("samples", [11, 12, 57, 200])
@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_order_statistics_are_those_of_the_exact_binomial(samples, confidence):
    for shift in (0.0, 0.3, 1.0, 2.5):
        low, high = certify.order_statistics(np.array([shift]), samples=samples, confidence=confidence)
        assert low[0] == exact_order_statistics(float(stats.norm.sf(shift)), samples, confidence)
        assert high[0] == samples + 1 - low[0]


def test_a_probability_of_exactly_the_tail_counts():
    # Two samples at p = 1/2: P(Bin = 0) = 1/4 = alpha / 2.
    assert certify.order_statistics(np.zeros(1), samples=2, confidence=0.5)[0] == 1


def test_bounds_widen_with_the_radius_to_the_largest_one_and_are_infinite_beyond(smoothed):
    radii = np.linspace(0, smoothed.largest_radius, 9)
    ends = np.array([smoothed.bounds(radius) for radius in radii[:-1]])
    assert (np.diff(ends[:, 0], axis=0) <= 0).all() and (np.diff(ends[:, 1], axis=0) >= 0).all()
    assert np.isfinite(smoothed.bounds(0.999 * smoothed.largest_radius)).all()
    for beyond in (1.001 * smoothed.largest_radius, 1e308):
        with warnings.catch_warnings(action="error"):
            lower, upper = smoothed.bounds(beyond)
        assert np.isneginf(lower).all() and np.isposinf(upper).all()
    # One radius for each image.
    mixed = smoothed.bounds(np.array([0, 0.01, 1, 0.01]))
    assert np.isfinite(mixed).all(axis=0).tolist() == [True, True, False, True]


def test_bounds_that_hold_together_are_wider(smoothed):
    alone, together = smoothed.bounds(0.01), smoothed.bounds(0.01, together=True)
    assert (together[0] < alone[0]).all() and (together[1] > alone[1]).all()
    expected = certify.Smoothed(smoothed.samples, SIGMA, 1 - 0.001 / 4).bounds(0.01)
    np.testing.assert_array_equal(together, expected)


def test_samples_depend_on_the_key_and_the_place_alone():
    first = smooth(linear, samples=20, batch_size=7)
    np.testing.assert_allclose(smooth(linear, samples=20, batch_size=64).samples, first.samples, rtol=1e-6)
    np.testing.assert_array_equal(smooth(linear, samples=20, batch_size=7).samples, first.samples)
    assert not np.array_equal(smooth(linear, samples=20, batch_size=7, seed=1).samples, first.samples)
    others = smooth(linear, np.concatenate([IMAGES[:2], 1 - IMAGES[:1]]), samples=20, batch_size=7).samples
    np.testing.assert_allclose(others[:2], first.samples[:2], rtol=1e-6)
    assert len(np.unique(first.samples)) == first.samples.size
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4))
    moved = smooth(linear, IMAGES[1:], samples=20, batch_size=7, key=keys[1:]).samples
    np.testing.assert_allclose(moved, first.samples[1:], rtol=1e-6)


def test_one_device_gives_what_two_give(monkeypatch):
    several = smooth(linear, samples=20)
    monkeypatch.setattr(parallel, "local_device_count", lambda: 1)
    np.testing.assert_allclose(smooth(linear, samples=20).samples, several.samples, rtol=1e-6)


def test_noise_is_clipped_before_the_network():
    extremes = Partial(lambda images: jnp.max(jnp.abs(images - 0.5), axis=(1, 2, 3)))
    images = np.array([0.0, 1.0], np.float32).reshape(2, 1, 1, 1) * np.ones((1, 6, 5, 3), np.float32)
    np.testing.assert_array_equal(smooth(extremes, images, samples=20).samples, 0.5)
    draws = certify.under_noise(extremes, sigma=0.5)(jax.random.key(0), images)
    np.testing.assert_array_equal(draws, 0.5)


def test_a_denoiser_in_front_narrows_the_bounds():
    rough = Partial(lambda images: 100 * jnp.mean(jnp.abs(jnp.diff(images, axis=1)), axis=(1, 2, 3)))
    images = np.full((1, 12, 12, 3), 0.5, np.float32)
    widths = [
        np.diff(smooth(score_fn, images, samples=200).bounds(0.01), axis=0)[0, 0]
        for score_fn in (rough, transformed.blur(rough, sigma=1.0))
    ]
    assert widths[1] < widths[0] / 2


def _small_network(kernel, head, images):
    """A convolution, a ReLU, the mean over places and a linear head."""
    maps = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return 50 + jnp.mean(jax.nn.relu(maps), axis=(1, 2)) @ head


def test_attacked_images_stay_inside_their_bounds():
    # PGD on the mean over draws of noise, which knows the smoothing; judged by other draws.
    random = np.random.default_rng(2)
    kernel, head = random.normal(size=(3, 3, 3, 8)), random.normal(size=8)
    score_fn = Partial(_small_network, *(jnp.asarray(each, jnp.float32) for each in (kernel, head)))
    images, sigma = random.random((200, 8, 8, 3), np.float32), 0.1
    options = {"sigma": sigma, "samples": 300, "batch_size": 1000}
    clean = smooth(score_fn, images, **options)
    target = attacks.adaptive.expectation(certify.under_noise(score_fn, sigma=sigma), jax.random.key(5), samples=4)
    (lower, upper), (least, most) = clean.bounds(0.1), clean.bounds(0.1, together=True)
    moved = []
    for direction in (attacks.up(), attacks.down()):
        attack = {"radius": 0.1, "norm": "l2", "steps": 10}
        attacked = attacks.pgd(target, images, direction=direction, **attack).images
        assert np.linalg.norm((attacked - images).reshape(200, -1), axis=1).max() <= 0.1
        found = smooth(score_fn, attacked, seed=9, **options)
        low, high = found.bounds(0, together=True)
        assert (high >= least).all() and (low <= most).all(), "a bound that an attack breaks is a bug"
        assert np.mean((lower < found.score) & (found.score < upper)) > 0.98
        moved.append(found.score - clean.score)
    assert moved[0].mean() > 0 > moved[1].mean(), "the attack works"


@pytest.mark.parametrize("levels", [0.3, 4.0])
def test_grey_levels_are_the_root_mean_square_change(levels):
    radius = certify.l2_radius(levels, (6, 5, 3))
    change = np.full((6, 5, 3), levels / 255)
    assert np.linalg.norm(change) == pytest.approx(radius)
    assert certify.grey_levels(radius, (6, 5, 3)) == pytest.approx(levels)


def test_a_score_that_is_not_finite_names_its_image():
    roots = Partial(lambda images: jnp.sqrt(images[:, 0, 0, 0] - 0.3))
    images = IMAGES.copy()
    images[2] = 0.1
    with pytest.raises(ValueError, match=r"images \[2\].*not finite"):
        smooth(roots, images, samples=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"sigma": -1.0}, "sigma must be a finite Python number"),
        ({"confidence": "0.9x"}, "confidence must be a finite Python number"),
        ({"samples": 10}, "samples is 10; a confidence of 0.999 needs at least 11"),
        ({"samples": 2.5}, "samples must be a whole number"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"images": 255 * IMAGES}, r"images must be in \[0, 1\]"),
        ({"score_fn": Partial(lambda images: images)}, "score_fn must return one float per image"),
    ],
    ids=["no-sigma", "negative", "text", "few", "half", "certain", "batch", "range", "scores"],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        smooth(options.pop("score_fn", linear), options.pop("images", IMAGES), **{"samples": 20} | options)


def test_what_is_being_traced_is_refused():
    with pytest.raises(ValueError, match="outside of jit, vmap and grad"):
        jax.jit(lambda images: smooth(linear, images, samples=20).score)(IMAGES)


@pytest.mark.parametrize("samples", [11, 12, 50, 100, 200, 2000, 10000])
@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_bounds_are_finite_at_the_largest_radius(samples, confidence):
    known = certify.Smoothed(np.arange(samples, dtype=np.float32)[None], SIGMA, confidence)
    for radius in (known.largest_radius, np.float32(known.largest_radius)):
        assert np.isfinite(known.bounds(radius)).all()
    assert np.isinf(known.bounds(1.00001 * known.largest_radius + 1e-12)).all()


def test_wrong_radii_are_named(smoothed):
    for radius in (-0.1, np.nan, np.inf, np.zeros(3)):
        with pytest.raises(ValueError, match="radius must be"):
            smoothed.bounds(radius)


def test_eleven_samples_bound_the_median_at_the_image_alone():
    found = smooth(linear, samples=11)
    assert np.isfinite(found.bounds(0)).all() and 0 <= found.largest_radius < 0.05 * SIGMA
