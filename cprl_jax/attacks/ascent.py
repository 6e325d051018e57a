"""Momentum ascent whose step size adapts to each image."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from cprl_jax.attacks._radii import over_radii
from cprl_jax.attacks.arguments import check_count, check_distance, check_images, check_per_image, per_image_keys
from cprl_jax.attacks.directions import alternatives, constant
from cprl_jax.attacks.gradients import (
    as_constant,
    evaluate,
    evaluate_per_image,
    of_mean_one,
    per_image,
    slope,
    value_and_gradient,
)
from cprl_jax.attacks.loop import LookAndMove, is_traced, iterate
from cprl_jax.attacks.pgd import better, choose, fold_in, random_start
from cprl_jax.attacks.projection import project_linf
from cprl_jax.attacks.result import AttackResult, finish, largest_change

# Croce & Hein (2020): the share of a move that is new, the share of steps that have to rise, and the lengths of the
# stretches between two looks at the progress, as shares of the iterations.
_NEW = 0.75
_RISING = 0.75
_FIRST_STRETCH, _SHORTER_BY, _SHORTEST = 0.22, 0.03, 0.06
# Radii of the first steps: theirs, along signs, and ours along gradients, where the longest parts are much longer.
_BY_SIGN, _BY_GRADIENT = 2.0, 0.5


def ascent(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | Sequence[float],
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]],
    iterations: int = 100,
    starts: int = 1,
    key: Key[Array, ""] | Key[Array, " batch"] | None = None,
    adaptive_score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]] | None = None,
    progress: bool = False,
) -> AttackResult:
    """Gradient steps with momentum in the l-inf ball, halved where they stop to rise; the best iterate is kept.

    The step rule of Auto-PGD (Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of
    Diverse Parameter-free Attacks", ICML 2020, Algorithm 1), for the objective of a direction in place of a
    classification loss. After 22 % of the iterations, and then after stretches that
    become shorter down to 6 %, each image whose objective rose in no more than 75 % of the steps, or whose best value
    has not changed since an earlier look, goes back to its best iterate and on with steps half as long.

    Steps follow the gradient's sign in the first start, the third and so on, as in the paper, at first by two radii. In
    the others they follow the gradient itself, divided by its mean absolute value, at first by half a radius: at a kink
    of the score, where signs jump to and fro, these come to rest at the maximum.

    Each start costs `iterations` gradients and 2 evaluations of the network, with an `adaptive_score_fn` `iterations`
    evaluations more; the clean scores cost one.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each a function of its image alone.
      images: float32 or float64 RGB images in [0, 1].
      radius: largest change of any value in [0, 1] pixel units, at most 1: one number, an array with one per image, or
        a list of several radii, which become the first axis of every field of the result.
      direction: what to push towards: `up()`, `down()`, `reflect(mos)`, `target_free()`, `away()`, `towards(target)`,
        or a function like them. `away()` costs two attacks.
      iterations: number of gradient steps of each start, at least 1.
      starts: number of starts, of which each image keeps the best. The first is the image itself; the others are drawn
        uniformly from the ball. More than 1 needs a key.
      key: random key of the starts, or one per image, which makes the starts of an image independent of its place in
        the batch.
      adaptive_score_fn: a function whose gradients are followed in place of those of `score_fn`, for example
        `attacks.adaptive.straight_through(...)`. All iterates are judged by `score_fn` all the same.
      progress: shows a progress bar over the steps, when called with values rather than inside `jit` and the like.

    Returns:
      `AttackResult`. No image has a lower objective than it had before the attack. `zero_gradient_fraction` is that of
      the start with the best result, at its first step.

    Raises:
      ValueError: as `pgd`; several starts without a key.
    """
    images = lax.stop_gradient(check_images(images))
    iterations, starts = check_count("iterations", iterations), check_count("starts", starts)
    if starts > 1 and key is None:
        raise ValueError(f"{starts} starts need random numbers: give key=jax.random.key(seed).")
    keys = None if key is None else per_image_keys(key, len(images))
    score_fn, direction = as_constant(score_fn), constant(direction)
    before = evaluate_per_image("score_fn", score_fn, images)

    def attack(radius):
        radius = lax.stop_gradient(check_distance("radius", radius, images, highest=1))
        return best_of_starts(
            score_fn,
            images,
            before,
            radius=radius,
            direction=direction,
            iterations=iterations,
            starts=starts,
            keys=keys,
            guide=None if adaptive_score_fn is None else as_guide(adaptive_score_fn, images),
            progress="ascent" if progress else "",
        )

    return finish(over_radii(attack, radius), images)


def as_guide(adaptive_score_fn: Callable, images: Float[Array, "batch height width 3"]) -> Partial:
    """An adaptive score function as the `guide` of an ascent, the same at all iterations.

    Raises:
      ValueError: its scores of the images are not one float per image.
    """
    function = as_constant(adaptive_score_fn)
    check_per_image("adaptive_score_fn", evaluate.eval_shape(function, images), len(images))
    return Partial(_at_any_iteration, function)


def _at_any_iteration(score_fn, index, images):
    del index
    return score_fn(images)


def best_of_starts(
    score_fn, images, before, *, radius, direction, iterations, starts, keys=None, guide=None, progress=""
) -> AttackResult:
    """What `ascent` does for one radius [batch] of each image; arguments are checked and constant already."""

    def attempt(number):
        start = images
        if starts > 1:
            drawn = random_start(fold_in(keys, number), images, per_image(radius), norm="linf")
            start = jnp.where(number == 0, images, drawn)
        options = {"radius": radius, "direction": direction, "iterations": iterations, "guide": guide}
        return climb(score_fn, images, before, start=start, by_sign=number % 2 == 0, progress=progress, **options)

    best = attempt(np.int32(0))
    if starts > 1 and is_traced(best):  # a loop: compile time would grow with every copy of the network
        return lax.fori_loop(1, starts, lambda number, best: better(direction, best, attempt(number)), best)
    for number in range(1, starts):
        best = better(direction, best, attempt(np.int32(number)))
    return best


def climb(
    score_fn, images, before, *, start, radius, direction, iterations, by_sign=True, guide=None, progress=""
) -> AttackResult:
    """One ascent: the best iterate of each image, which may be the start.

    Args:
      score_fn, direction: from `as_constant` and `directions.constant`.
      before: scores of the images, by `evaluate`.
      start: images inside the ball of `radius` [batch] around `images`.
      by_sign: whether steps follow the gradient's sign, or the gradient.
      guide: `(index of the iteration, images) -> scores`, whose gradients are followed; None is `score_fn`.

    Returns:
      `AttackResult`, its scores by `evaluate`.
    """
    batch = len(images)
    state = _State(
        images=start,
        previous=start,
        scores=before,
        best=start,
        best_gradient=jnp.zeros_like(images),
        best_scores=before,
        checked_scores=before,
        step_size=jnp.where(by_sign, _BY_SIGN, _BY_GRADIENT).astype(radius.dtype) * radius,
        rises=jnp.zeros(batch, jnp.int32),
        halved=jnp.zeros(batch, bool),
        since=jnp.int32(0),
        stretch=jnp.int32(max(1, int(_FIRST_STRETCH * iterations))),
        zero_gradient_fraction=jnp.zeros(batch, images.dtype),
    )
    stretches = tuple(jnp.int32(max(1, int(share * iterations))) for share in (_SHORTER_BY, _SHORTEST))
    results = []
    for way in alternatives(direction):
        move = Partial(_move, way, images, per_image(radius), before, jnp.asarray(by_sign), stretches)
        if guide is None:
            step = LookAndMove(look=Partial(value_and_gradient, score_fn), move=move)
        else:
            step = Partial(_guided, score_fn, guide, move)
        end = iterate(step, state, steps=iterations, progress=progress)
        last, best = (evaluate(score_fn, found) for found in (end.images, end.best))
        ends = [
            AttackResult(found, before, after, largest_change(found, images), end.zero_gradient_fraction)
            for found, after in ((end.best, best), (end.images, last))
        ]
        results.append(better(way, *ends))
    return reduce(partial(better, direction), results)


class _State(NamedTuple):
    images: Float[Array, "batch height width 3"]
    previous: Float[Array, "batch height width 3"]
    scores: Float[Array, " batch"]  # of the previous images
    best: Float[Array, "batch height width 3"]
    best_gradient: Float[Array, "batch height width 3"]
    best_scores: Float[Array, " batch"]
    checked_scores: Float[Array, " batch"]  # the best ones at the last look
    step_size: Float[Array, " batch"]
    rises: Int[Array, " batch"]  # since the last look
    halved: Bool[Array, " batch"]  # at the last look
    since: Int[Array, ""]  # steps since the last look
    stretch: Int[Array, ""]  # steps from the last look to the next
    zero_gradient_fraction: Float[Array, " batch"]


def _guided(score_fn, guide, move, index, state: _State) -> _State:
    """One step along the gradient of another function than the one that judges."""
    _, gradient = value_and_gradient(partial(guide, index), state.images)
    return move(index, state, (score_fn(state.images), gradient))


def _move(direction, images, radius, before, by_sign, stretches, index, state: _State, seen) -> _State:
    scores, gradient = seen

    def objective(scores):
        return direction(scores, before)

    # Only which way the objective grows with the score: steps do not depend on the gradient's length.
    upwards = jnp.sign(jnp.nan_to_num(slope(direction, scores, before))).astype(images.dtype)
    gradient = per_image(upwards) * gradient
    first = index == 0
    rises = state.rises + (~first & (objective(scores) > objective(state.scores))).astype(jnp.int32)
    is_better = first | (objective(scores) > objective(state.best_scores)) | jnp.isnan(objective(state.best_scores))
    best, best_gradient = (
        choose(is_better, new, old) for new, old in ((state.images, state.best), (gradient, state.best_gradient))
    )
    best_scores = jnp.where(is_better, scores, state.best_scores)

    since = state.since + (~first).astype(jnp.int32)
    look = since == state.stretch
    few = rises <= (_RISING * state.stretch.astype(jnp.float32)).astype(jnp.int32)
    stuck = ~state.halved & (objective(best_scores) <= objective(state.checked_scores))
    halve = look & (few | stuck)
    position, previous = choose(halve, best, state.images), choose(halve, best, state.previous)
    gradient = choose(halve, best_gradient, gradient)
    step_size = jnp.where(halve, state.step_size / 2, state.step_size)

    way = jnp.where(by_sign, jnp.sign(gradient), of_mean_one(gradient))
    ahead = project_linf(position + per_image(step_size) * way, images, radius)
    kept = position + _NEW * (ahead - position) + (1 - _NEW) * (position - previous)
    shorter_by, shortest = stretches
    return _State(
        images=jnp.where(first, ahead, project_linf(kept, images, radius)),
        previous=position,
        scores=scores,
        best=best,
        best_gradient=best_gradient,
        best_scores=best_scores,
        checked_scores=jnp.where(look | first, best_scores, state.checked_scores),
        step_size=step_size,
        rises=jnp.where(look, 0, rises),
        halved=jnp.where(look, halve, state.halved),
        since=jnp.where(look, 0, since),
        stretch=jnp.where(look, jnp.maximum(state.stretch - shorter_by, shortest), state.stretch),
        zero_gradient_fraction=jnp.where(
            first, jnp.mean(gradient == 0, axis=(1, 2, 3), dtype=images.dtype), state.zero_gradient_fraction
        ),
    )
