"""Interval bounds against exact ranges and attacks, and the steepest slope against known ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax import attacks, models
from cprl_jax.config import defaults as config_lib
from cprl_jax.layers.sort_mask import SortMaskConv
from cprl_jax.robustness.interval_bounds import SLACK, interval_bounds, local_lipschitz

RADIUS = 0.03
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(6, 5, 3)).astype(np.float32)
IMAGES = RANDOM.random((3, 6, 5, 3), np.float32)


def _weighted(weights, images):
    return 50 + jnp.sum(weights * images, axis=(1, 2, 3))


linear = Partial(_weighted, jnp.asarray(WEIGHTS[None]))


def corners(images, radius):
    """Many images in the box: its corners by random signs, and points inside."""
    signs = np.random.default_rng(1).choice([-1, 1, 0.3], (200, *images.shape[1:]))
    return np.clip(images[:, None] + radius * signs, 0, 1).astype(np.float32)


def assert_holds(score_fn, images=IMAGES, radius=RADIUS):
    """The scores of points in the box lie inside the bounds, which are returned."""
    lower, upper = interval_bounds(score_fn, images, radius=radius)
    for place, points in enumerate(corners(images, radius)):
        scores = np.asarray(jax.jit(score_fn)(points))
        assert lower[place] <= scores.min() and scores.max() <= upper[place]
    return np.asarray(lower), np.asarray(upper)


def test_bounds_of_a_linear_score_are_its_range():
    lower, upper = interval_bounds(linear, IMAGES, radius=RADIUS)
    low, high = np.maximum(IMAGES - RADIUS, 0), np.minimum(IMAGES + RADIUS, 1)
    least = 50 + np.where(WEIGHTS > 0, WEIGHTS * low, WEIGHTS * high).sum(axis=(1, 2, 3))
    most = 50 + np.where(WEIGHTS > 0, WEIGHTS * high, WEIGHTS * low).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(lower, least, atol=1.1 * SLACK * 60)
    np.testing.assert_allclose(upper, most, atol=1.1 * SLACK * 60)


OPERATIONS = {
    "square": lambda x: x * x - 0.3 * x,
    "power": lambda x: (x - 0.5) ** 3 + (x - 0.5) ** 4 + (1 + x) ** -2,
    "roots": lambda x: jnp.sqrt(x) + jax.lax.rsqrt(x + 0.1) + jnp.log1p(x) - jnp.exp(-x),
    "quotient": lambda x: (x - 0.5) / (0.2 + x) - 3 / (x + 1) + x / -2,
    "product": lambda x: (x - 0.5) * jnp.flip(x, 1) * jax.nn.sigmoid(4 * x),
    "choice": lambda x: jnp.where((x > 0.5) | ~(x <= 0.9), 3 * x, -x) + jnp.where(x >= 0.4, 1.0, 0.0) * (x != 0.2),
    "extremes": lambda x: jnp.abs(x - 0.5) + jnp.clip(x, 0.2, 0.6) - jnp.maximum(x, 0.5) + jax.nn.relu6(9 * x - 1),
    "places": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=0.5)[:, ::2].transpose(0, 2, 1, 3),
    "truth": lambda x: jnp.where(jnp.round(4 * x - 2).astype(bool), x, -x) + (-jax.nn.relu(x - 0.5)).astype(bool),
    "whole": lambda x: ((9 * x).astype(jnp.int32) * 2 - jnp.round(30 * x).astype(jnp.uint8)).astype(jnp.float32),
    "gelu": lambda x: jax.nn.gelu(x - 0.5, approximate=True) + jax.nn.softplus(x),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations(operation):
    lower, upper = assert_holds(jax.jit(lambda images: jnp.sum(OPERATIONS[operation](images), axis=(1, 2, 3))))
    assert np.isfinite(lower).all() and np.isfinite(upper).all()


@pytest.mark.parametrize(
    "wraps",
    [
        lambda x: (5 * x).astype(jnp.uint8) - (5 * jnp.flip(x, 1)).astype(jnp.uint8),
        lambda x: (100 * x).astype(jnp.int8) + (100 * x).astype(jnp.int8),
        lambda x: (300 * x).astype(jnp.int32).astype(jnp.uint8),
        lambda x: jnp.cumsum((90 * x).astype(jnp.int8), axis=2, dtype=jnp.int8),
    ],
    ids=["below 0", "above", "kept in fewer bits", "sum"],
)
def test_whole_numbers_may_wrap_around(wraps):
    assert_holds(jax.jit(lambda images: wraps(images)[:, 1, 1, 0].astype(jnp.float32)))


def test_nothing_is_known_of_what_is_no_number():
    lower, upper = interval_bounds(lambda images: jnp.nan * images[:, 0, 0, 0], IMAGES, radius=RADIUS)
    assert np.isneginf(lower).all() and np.isposinf(upper).all()


def test_a_division_that_may_be_by_zero_has_no_bounds():
    lower, upper = interval_bounds(
        lambda images: 1 / (images[:, 0, 0, 0] - 0.5), np.full((1, 2, 2, 3), 0.5, np.float32), radius=0.1
    )
    assert np.isneginf(lower).all() and np.isposinf(upper).all()


def test_sort_mask_keeps_both_values_where_it_is_undecided():
    conv = SortMaskConv(2, (3, 3), rate=0.4, padding=1)
    variables = conv.init(jax.random.key(0), IMAGES)
    score_fn = Partial(lambda variables, images: jnp.mean(conv.apply(variables, images), axis=(1, 2, 3)), variables)
    point = interval_bounds(score_fn, IMAGES, radius=0.0)
    # Without a radius nothing is undecided.
    scores = np.asarray(score_fn(IMAGES))
    np.testing.assert_allclose(point, [scores, scores], atol=3 * SLACK)
    lower, upper = assert_holds(score_fn)
    assert (upper - lower < 2).all()


def random_network(name, *, rate=0.0):
    """A network of the package as a score function, and its smallest image's side."""
    config = config_lib.default()
    config.model.name, config.model.sort_mask.min_channels = name, 24
    module = models.create(config.model)
    module = module.clone(sort_mask=dataclasses.replace(module.sort_mask, rate=rate))
    size = max(16, getattr(module, "smallest_image", 16))
    return models.score_fn(module, models.initialize(module, jax.random.key(0), size)), size


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("compact", "squeezenet", "efficientnet_lite")]
)
def test_attacked_scores_of_networks_are_inside(name):
    score_fn, size = random_network(name, rate=0.1 if name == "compact" else 0.0)
    images, radius = np.random.default_rng(3).random((2, size, size, 3), np.float32), 1e-4
    lower, upper = interval_bounds(score_fn, images, radius=radius)
    clean = np.asarray(score_fn(images))
    assert ((lower <= clean) & (clean <= upper)).all()
    for direction in (attacks.up(), attacks.down()):
        attacked = attacks.pgd(score_fn, images, radius=radius, direction=direction, steps=3)
        assert ((lower <= attacked.after) & (attacked.after <= upper)).all()
    wider = interval_bounds(score_fn, images, radius=10 * radius)
    assert (wider.lower <= lower).all() and (wider.upper >= upper).all()


def test_an_operation_without_a_rule_is_named():
    with pytest.raises(NotImplementedError, match="'sort'"):
        interval_bounds(lambda images: jnp.sort(images, axis=1)[:, 0, 0, 0], IMAGES, radius=RADIUS)


def test_what_does_not_depend_on_the_image_has_no_width():
    lower, upper = interval_bounds(
        lambda images: jnp.zeros(len(images)) + jnp.sort(jnp.arange(3.0))[1], IMAGES, radius=0.1
    )
    np.testing.assert_array_equal([lower, upper], np.ones((2, 3)))


def test_wrong_arguments_are_named():
    for options in ({"images": 255 * IMAGES}, {"radius": -0.1}, {"radius": 2.0}):
        with pytest.raises(ValueError, match="must be"):
            interval_bounds(linear, **{"images": IMAGES, "radius": RADIUS} | options)
    with pytest.raises(ValueError, match="score_fn must return one float per image"):
        interval_bounds(lambda images: images, IMAGES, radius=RADIUS)
    with pytest.raises(ValueError, match="norm must be"):
        local_lipschitz(linear, IMAGES, radius=RADIUS, key=jax.random.key(0), norm="l1")


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2)])
def test_the_slope_of_a_linear_score_is_the_dual_norm(norm, order):
    found = local_lipschitz(linear, IMAGES, radius=RADIUS, key=jax.random.key(0), norm=norm, steps=2)
    np.testing.assert_allclose(found, np.linalg.norm(WEIGHTS.ravel(), order), rtol=1e-5)


def test_a_walk_finds_slopes_that_the_image_itself_does_not_have():
    # The slope of the square of the sum grows away from 0: largest in a corner of the ball, where the walk leads.
    def steep(images):
        return jnp.square(jnp.sum(images, axis=(1, 2, 3)))

    images = np.full((1, 2, 2, 3), 0.5, np.float32)
    found = local_lipschitz(steep, images, radius=0.1, key=jax.random.key(0), steps=8)
    at_image, largest = 2 * 6 * 12, 2 * (6 + 12 * 0.1) * 12
    assert at_image < 0.99 * largest < found[0] <= largest * (1 + 1e-5)
