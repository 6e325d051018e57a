"""Projected gradient ascent."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from cprl_jax.attacks._radii import over_radii
from cprl_jax.attacks.arguments import (
    check_count,
    check_distance,
    check_images,
    check_number,
    check_per_image,
    per_image_keys,
)
from cprl_jax.attacks.directions import alternatives, constant
from cprl_jax.attacks.gradients import as_constant, evaluate, of_mean_one, per_image, slope, unit, value_and_gradient
from cprl_jax.attacks.loop import LookAndMove, is_traced, iterate
from cprl_jax.attacks.projection import l2_norm, project_l2, project_linf
from cprl_jax.attacks.result import AttackResult, finish, largest_change


def pgd(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | Sequence[float],
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]],
    steps: int = 10,
    step_size: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | None = None,
    norm: str = "linf",
    key: Key[Array, ""] | Key[Array, " batch"] | None = None,
    momentum: float = 0.0,
    restarts: int = 1,
    progress: bool = False,
) -> AttackResult:
    """Several gradient steps, each followed by a return into the ball around the image and into [0, 1].

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, with the gradient of the
    direction's objective in place of a classification loss; without a key, the basic iterative method of Kurakin et al.
    (2017); with momentum, MI-FGSM (Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018). The last
    iterate is returned, as in these papers, also where an earlier one scored better.
    Each start costs `steps` gradients and one evaluation of the network; random starts cost one evaluation more.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each a function of its image alone. See
        `cprl_jax.attacks` on passing functions and their parameters.
      images: float32 or float64 RGB images in [0, 1].
      radius: size of the ball in [0, 1] pixel units: one number, or an array with one per image. "linf": the largest
        change of any value, at most 1. "l2": the Euclidean length of the change over all height * width * 3 values of
        an image, so the same root-mean-square change needs a radius that grows with the image's side. A list or tuple
        of radii (or an array [radii, 1] or [radii, batch]) is attacked one after another, and every field of the result
        has them as its first axis; all of them start in the same relative place of their ball.
      direction: what to push towards: `up()`, `down()`, `reflect(mos)`, `target_free()`, `away()`, `towards(target)`,
        or a function like them. `away()` costs two attacks.
      steps: number of gradient steps, at least 1.
      step_size: length of a step in the units of `radius`, one number or one per image; default 2.5 * radius / steps
        (Madry et al.), which is radius / 4 for 10 steps.
      norm: "linf" (steps along the gradient's sign) or "l2" (steps along the gradient, normalised to length 1).
      key: random start, uniform in the ball, from this key; or from one key per image, which makes the start of an
        image independent of its place in the batch. None starts at the image itself.
      momentum: decay of the sum of earlier gradients that a step follows (mu of Dong et al., who use 1), each divided
        by the mean of its absolute values in the image; 0 follows the gradient alone.
      restarts: number of random starts, of which each image keeps the one whose last iterate has the highest
        objective. More than 1 needs a key. The first is the start without restarts, so more are never worse.
      progress: shows a progress bar over the steps, when called with values rather than inside `jit` and the like.

    Returns:
      `AttackResult`. Values whose gradient is 0 or not a number do not move. The whole result is a constant for
      differentiation: to train on attacked images, evaluate them again. A warning says when images had a gradient of 0
      everywhere, when called with values.

    Raises:
      ValueError: an argument of the wrong shape or dtype, restarts without a key; unless traced, images outside [0, 1]
        or a negative radius.
    """
    images = check_images(images)
    steps, restarts = check_count("steps", steps), check_count("restarts", restarts)
    if restarts > 1 and key is None:
        raise ValueError(f"{restarts} restarts without a key would all be the same: give key=jax.random.key(seed).")

    def attack(radius):
        return ascend(
            score_fn,
            images,
            radius=radius,
            direction=direction,
            steps=steps,
            step_size=step_size,
            norm=norm,
            key=key,
            momentum=momentum,
            restarts=restarts,
            progress="pgd" if progress else "",
        )

    return finish(over_radii(attack, radius), images)


def ascend(
    score_fn,
    images,
    *,
    radius,
    direction,
    steps,
    step_size,
    norm,
    key,
    momentum=0.0,
    restarts=1,
    keep_best=False,
    progress="",
) -> AttackResult:
    """What `pgd` does for one radius; images and counts are checked already.

    Args:
      keep_best: return the iterate with the highest objective, the start included, rather than the last.
    """
    batch = images.shape[0]
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}.")
    radius = check_distance("radius", radius, images, highest=1 if norm == "linf" else np.inf)
    step_size = 2.5 / steps * radius if step_size is None else check_distance("step_size", step_size, images)
    momentum = check_number("momentum", momentum)
    keys = None if key is None else per_image_keys(key, batch)
    # Nothing flows back, so the attack inside a training step costs no second derivatives.
    images, radius, step_size = lax.stop_gradient((images, radius, step_size))
    radius, step_size = radius.reshape(-1, 1, 1, 1), step_size.reshape(-1, 1, 1, 1)
    score_fn, objective = as_constant(score_fn), constant(direction)
    scores = evaluate.eval_shape(score_fn, images)
    check_per_image("score_fn", scores, batch)

    clean_scores = None if keys is None else evaluate(score_fn, images)
    move = _Move(norm, keep_best=keep_best, knows_clean=keys is not None, has_momentum=momentum > 0)

    def attempt(restart):
        start = images
        if keys is not None:
            start = random_start(keys if restart is None else fold_in(keys, restart), images, radius, norm=norm)
        return reduce(partial(better, objective), (climb(way, start) for way in alternatives(objective)))

    def climb(way, start):
        state = _State(
            images=start,
            clean_scores=jnp.zeros(batch, scores.dtype) if clean_scores is None else clean_scores,
            zero_gradient_fraction=jnp.zeros(batch, images.dtype),
            velocity=jnp.zeros_like(images) if momentum > 0 else None,
            best=(start, jnp.zeros(batch, scores.dtype)) if keep_best else None,
        )
        arguments = (way, images, radius, step_size, images.dtype.type(momentum))
        step = LookAndMove(look=Partial(value_and_gradient, score_fn), move=Partial(move, *arguments))
        state = iterate(step, state, steps=steps, progress=progress)
        result = AttackResult(
            images=state.images,
            before=state.clean_scores,
            after=evaluate(score_fn, state.images),
            max_change=largest_change(state.images, images),
            zero_gradient_fraction=state.zero_gradient_fraction,
        )
        if keep_best:
            attacked, after = state.best
            earlier = result._replace(images=attacked, after=after, max_change=largest_change(attacked, images))
            result = better(way, earlier, result)
        return result

    best = attempt(None)
    if restarts > 1 and is_traced(best):  # a loop: compile time would grow with every copy of the network
        return lax.fori_loop(1, restarts, lambda restart, best: better(objective, best, attempt(restart)), best)
    for restart in range(1, restarts):
        best = better(objective, best, attempt(restart))
    return best


class _State(NamedTuple):
    images: Float[Array, "batch height width 3"]
    clean_scores: Float[Array, " batch"]
    zero_gradient_fraction: Float[Array, " batch"]
    velocity: Float[Array, "batch height width 3"] | None
    best: tuple[Float[Array, "batch height width 3"], Float[Array, " batch"]] | None  # images and their scores


@jax.jit
def better(objective, first: AttackResult, second: AttackResult) -> AttackResult:
    """For each image the result that the objective prefers, the first where they are equal."""
    old, new = objective(first.after, first.before), objective(second.after, second.before)
    return jax.tree.map(partial(choose, (new > old) | jnp.isnan(old)), second, first)


def choose(condition, chosen, other):
    """`chosen` for the images where the condition holds, `other` for the rest."""
    return jnp.where(condition.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, other)


@dataclasses.dataclass(frozen=True)
class _Move:
    """One step; the options are those that a compiled step depends on."""

    norm: str
    keep_best: bool
    knows_clean: bool  # otherwise the first evaluation yields the clean scores too
    has_momentum: bool

    def __call__(self, direction, images, radius, step_size, momentum, index, state: _State, seen) -> _State:
        scores, of_score = seen
        clean = state.clean_scores if self.knows_clean else jnp.where(index == 0, scores, state.clean_scores)
        gradient = per_image(slope(direction, scores, clean).astype(images.dtype)) * of_score
        # Infinite becomes huge, and a value without a gradient stays where it is instead of spoiling the image.
        gradient = jnp.nan_to_num(gradient)
        zero_fraction = jnp.mean(gradient == 0, axis=(1, 2, 3), dtype=images.dtype)
        best = velocity = None
        if self.keep_best:
            position, earlier = state.best
            better = (index == 0) | (direction(scores, clean) > direction(earlier, clean))
            best = (choose(better, state.images, position), jnp.where(better, scores, earlier))
        if self.has_momentum:
            gradient = velocity = momentum * state.velocity + of_mean_one(gradient)
        move = _move_linf if self.norm == "linf" else _move_l2
        return _State(
            images=move(state.images, gradient, images, radius, step_size),
            clean_scores=clean,
            zero_gradient_fraction=jnp.where(index == 0, zero_fraction, state.zero_gradient_fraction),
            velocity=velocity,
            best=best,
        )


def _move_linf(position, gradient, images, radius, step_size):
    return project_linf(position + step_size * jnp.sign(gradient), images, radius)


def _move_l2(position, gradient, images, radius, step_size):
    return project_l2(position + step_size * unit(gradient), images, radius)


@jax.jit
def fold_in(keys, number):
    """Other keys, one per image."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


@partial(jax.jit, static_argnames="norm")
def random_start(keys, images, radius, *, norm):
    """A point drawn uniformly from the ball, brought into [0, 1]; one key per image."""
    if norm == "linf":
        draw = partial(jax.random.uniform, shape=images.shape[1:], dtype=images.dtype, minval=-1, maxval=1)
        return project_linf(images + radius * jax.vmap(draw)(keys), images, radius)
    dimensions = math.prod(images.shape[1:])

    def draw(key):
        towards, length = jax.random.split(key)
        length = jax.random.uniform(length, dtype=images.dtype) ** (1 / dimensions)
        return length, jax.random.normal(towards, images.shape[1:], images.dtype)

    length, noise = jax.vmap(draw)(keys)
    return project_l2(images + radius * length.reshape(-1, 1, 1, 1) * noise / l2_norm(noise), images, radius)
