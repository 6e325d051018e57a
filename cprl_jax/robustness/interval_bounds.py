"""Deterministic bounds of scores, and how steep a score function is: for small networks and small radii.

    lower, upper = interval_bounds(score_fn, images, radius=0.1 / 255)   # no change within the radius leaves them
    steepness = local_lipschitz(score_fn, images, radius=0.1 / 255, key=jax.random.key(0))

Interval bound propagation (Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably
Robust Models", arXiv:1810.12715, 2018) follows an interval for each value through the operations that JAX traces in a
score function, so that no network has to be written a second time. It forgets how values depend on each other: the
interval of a sum is the sum of intervals. Each layer therefore widens the bounds by a factor, and those of a network
that was not trained for them are far wider than what any attack reaches; of a deep one they say nothing at all.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from cprl_jax.attacks.arguments import check_count, check_distance, check_images, check_per_image, per_image_keys
from cprl_jax.attacks.gradients import per_image, steepest, value_and_gradient
from cprl_jax.attacks.loop import as_pytree, iterate
from cprl_jax.attacks.pgd import random_start
from cprl_jax.attacks.projection import project_l2, project_linf
from cprl_jax.robustness._intervals import Interval, evaluate

ScoreFn = Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]
SLACK = 1e-4
"""Share of the size of the bounds by which they are widened, for rounding in the score and in the bounds."""


class Bounds(NamedTuple):
    """Ends of the intervals that scores stay in; infinite where nothing is known."""

    lower: Float[Array, " batch"]
    upper: Float[Array, " batch"]


def interval_bounds(
    score_fn: ScoreFn,
    images: Float[ArrayLike, "batch height width 3"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"],
) -> Bounds:
    """Between which values the score of every image x' in [0, 1] with |x' - x|_inf <= radius lies.

    Sound for real numbers. Floats round: both ends are moved outwards by `SLACK` times the larger one's size (or times
    1, if that is more), far beyond the rounding that was seen, which is no proof. Exact, but for that, for a score
    function that is linear in the image.

    Convolutions, dense layers, pooling, activations, normalisations and sums over places are followed, and SortMask by
    its verdicts: its threshold lies between those of the lower and of the upper ends, and where that does not decide
    about a value, it and 0 are both possible. Costs about two convolutions for each of the network's.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each a function of its image alone.
      images: float32 or float64 RGB in [0, 1].
      radius: in [0, 1] pixel units, one number or one per image, at most 1.

    Raises:
      NotImplementedError: score_fn does something that has no rule here, which is named.
      ValueError: a wrong shape, dtype or range.
    """
    images = check_images(images)
    radius = per_image(check_distance("radius", radius, images, highest=1))
    score_fn = as_pytree(score_fn)
    check_per_image("score_fn", jax.eval_shape(score_fn, images), len(images))
    return Bounds(*_bounds(score_fn, images, radius))


@jax.jit
def _bounds(score_fn, images, radius):
    closed = jax.make_jaxpr(score_fn)(images)
    box = Interval(jnp.maximum(images - radius, 0), jnp.minimum(images + radius, 1))
    (scores,) = evaluate(closed.jaxpr, closed.consts, [box])
    if not isinstance(scores, Interval):  # the score does not depend on the image
        return scores, scores
    lower, upper = scores
    slack = SLACK * jnp.maximum(1, jnp.maximum(jnp.abs(lower), jnp.abs(upper)))
    slack = jnp.where(jnp.isfinite(slack), slack, 0)
    return lower - slack, upper + slack


def local_lipschitz(
    score_fn: ScoreFn,
    images: Float[ArrayLike, "batch height width 3"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"],
    key: Key[Array, ""] | Key[Array, " batch"],
    norm: str = "linf",
    steps: int = 20,
) -> Float[Array, " batch"]:
    """The steepest slope of the score that was met in the ball around each image: an estimate from below.

    The least L with |f(x') - f(x'')| <= L |x' - x''| in the ball is at least as large as any gradient's dual norm in it
    (l1 for the norm linf, l2 for l2). Two walks, up and down along the gradient from a random start, as PGD's, look
    for the largest. A piecewise linear network has steep pieces that no walk finds: this bounds nothing from above.

    Args:
      score_fn, images: as for `interval_bounds`.
      radius: of the ball, in [0, 1] pixel units: of the largest change ("linf") or of the Euclidean length ("l2").
      key: random key, or one per image.
      norm: "linf" or "l2".
      steps: gradients on each walk, at least 1; a step is 2.5 radius / steps long.

    Returns:
      Score points per unit of the norm.

    Raises:
      ValueError: a wrong shape, dtype or range.
    """
    images, steps = check_images(images), check_count("steps", steps)
    towards = steepest(norm)
    radius = per_image(check_distance("radius", radius, images, highest=1 if norm == "linf" else np.inf))
    score_fn, keys = as_pytree(score_fn), per_image_keys(key, len(images))
    check_per_image("score_fn", jax.eval_shape(score_fn, images), len(images))
    start = random_start(keys, images, radius, norm=norm)
    project = Partial(project_linf if norm == "linf" else project_l2)
    largest = jnp.zeros(len(images), images.dtype)
    for sign in (1.0, -1.0):
        step = Partial(_walk, score_fn, project, towards, images, radius, sign * 2.5 / steps * radius)
        _, largest = iterate(step, (start, largest), steps=steps)
    return largest


def _walk(score_fn, project, towards, images, radius, length, index, state):
    position, largest = state
    _, gradient = value_and_gradient(score_fn, position)
    direction = towards(gradient)
    dual = jnp.sum(gradient * direction, axis=(1, 2, 3))  # what the gradient promises along the steepest direction
    return project(position + length * direction, images, radius), jnp.maximum(largest, dual)
