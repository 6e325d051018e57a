"""Maximum differentiation: how differently two metrics can judge one image."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.attacks.arguments import check_count, check_distance, check_images
from cprl_jax.attacks.gradients import as_constant, dot, evaluate_per_image, per_image, unit, value_and_gradient
from cprl_jax.attacks.loop import iterate
from cprl_jax.attacks.result import finish, largest_change

# What is left of a gradient after a nearly parallel one has been removed is rounding below this share of its length.
_ROUNDING = 1e-5


class MaximumDifferentiationResult(NamedTuple):
    """A pair of images for each image; a pytree, constant for differentiation.

    The five fields of `AttackResult` with a leading axis of two, about `varied_fn`: first the image with the highest
    value, then the one with the lowest. Where larger is better, these are the best and the worst image.

    Attributes:
      images: the two images, in [0, 1].
      before: `varied_fn` of the original images.
      after: `varied_fn` of the two images.
      max_change: largest change of any value, max |x' - x|, in [0, 1] pixel units.
      zero_gradient_fraction: share of values at which the first gradient of `varied_fn` was exactly 0 or not a number.
      fixed_before: `fixed_fn` of the original images: the level that is kept.
      fixed_after: `fixed_fn` of the two images, within the tolerance of that level.
    """

    images: Float[Array, "2 batch height width 3"]
    before: Float[Array, "2 batch"]
    after: Float[Array, "2 batch"]
    max_change: Float[Array, "2 batch"]
    zero_gradient_fraction: Float[Array, "2 batch"]
    fixed_before: Float[Array, "2 batch"]
    fixed_after: Float[Array, "2 batch"]


def maximum_differentiation(
    fixed_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    varied_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    steps: int = 200,
    step_size: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] = 0.1,
    corrections: int = 1,
    tolerance: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] = 1e-3,
    progress: bool = False,
) -> MaximumDifferentiationResult:
    """The images of highest and lowest `varied_fn` among those with the same `fixed_fn` as an image.

    Wang & Simoncelli, "Maximum Differentiation (MAD) Competition", Journal of Vision 2008 (Eq. 4 of Zhang et al.,
    NeurIPS 2022). From the image (which should be a distorted one: at a reference, the level set of a distance to it is
    that single image), each step goes along the gradient of `varied_fn` without its component along the gradient of
    `fixed_fn`, and then back to the level by Newton steps along the latter; values that leave [0, 1] are held. Steps
    shorten linearly to 0. Of all images on the way whose level is within the tolerance, the most extreme is returned;
    the original image is the first of them, so the result is never worse. It is a local optimum, as in the paper.

    Both functions give one number per image: a score, or a metric against references, as a function of the images
    alone: `jax.tree_util.Partial(lambda references, images: distance(images, references), references)`, the function
    being the same object from call to call. A competition of two metrics is two calls, with the roles exchanged. Costs
    for each of the two images and each step one gradient of `varied_fn` and 1 + corrections of `fixed_fn`.

    Args:
      fixed_fn: the function that stays the same. images [batch, height, width, 3] in [0, 1] to [batch], each number a
        function of its image alone.
      varied_fn: the function that is driven up and down, of the same form.
      images: float32 or float64 RGB images in [0, 1].
      steps: number of steps, at least 1.
      step_size: Euclidean length of the first step in [0, 1] pixel units, over all values of an image; one number or
        one per image.
      corrections: further Newton steps back to the level, at least 0, after the one that every step ends with.
      tolerance: how far `fixed_fn` may be off, as a share of its original value; one number or one per image.
      progress: show a progress bar on the terminal.

    Returns:
      `MaximumDifferentiationResult`. A warning says when `varied_fn` had no gradient at all.

    Raises:
      ValueError: an argument of the wrong shape or dtype; unless traced, images outside [0, 1], a negative step size or
        tolerance.
    """
    images = check_images(images)
    steps = check_count("steps", steps)
    corrections = check_count("corrections", corrections, at_least=0)
    step_size = check_distance("step_size", step_size, images)
    tolerance = check_distance("tolerance", tolerance, images)
    images, step_size, tolerance = lax.stop_gradient((images, step_size, tolerance))
    fixed_fn, varied_fn = as_constant(fixed_fn), as_constant(varied_fn)

    fixed = evaluate_per_image("fixed_fn", fixed_fn, images)
    varied = evaluate_per_image("varied_fn", varied_fn, images)
    allowed = tolerance * jnp.abs(fixed).astype(images.dtype)
    results = []
    # One after the other rather than as one batch, because a metric against references takes that many images only.
    for sign, name in ((1.0, "highest"), (-1.0, "lowest")):
        sign = images.dtype.type(sign)
        state = _State(images, images, varied, fixed, 0 * step_size)
        problem = _Problem(sign, fixed, allowed, step_size, images.dtype.type(steps))
        # The number of corrections goes in as a tuple's length, which is structure: another number is another program.
        step = Partial(_step, fixed_fn, varied_fn, problem, (None,) * corrections)
        state = iterate(step, state, steps=steps, progress=f"MAD, {name}" if progress else "")
        state = _consider_last(fixed_fn, varied_fn, problem, state)
        results.append(
            MaximumDifferentiationResult(
                images=state.best_images,
                before=varied,
                after=state.best_varied,
                max_change=largest_change(state.best_images, images),
                zero_gradient_fraction=state.zero_gradient_fraction,
                fixed_before=fixed,
                fixed_after=state.best_fixed,
            )
        )
    return finish(jax.tree.map(lambda *leaves: jnp.stack(leaves), *results), images)


class _Problem(NamedTuple):
    sign: float
    level: Float[Array, " batch"]
    allowed: Float[Array, " batch"]
    step_size: Float[Array, " batch"]
    steps: float


class _State(NamedTuple):
    position: Float[Array, "batch height width 3"]
    best_images: Float[Array, "batch height width 3"]
    best_varied: Float[Array, " batch"]
    best_fixed: Float[Array, " batch"]
    zero_gradient_fraction: Float[Array, " batch"]


def _step(fixed_fn, varied_fn, problem, corrections, index, state):
    position = state.position
    varied, of_varied = value_and_gradient(varied_fn, position)
    fixed, of_fixed = value_and_gradient(fixed_fn, position)
    state = _consider(problem, state, varied, fixed)

    ascent = problem.sign * of_varied
    free = ~_leaves(position, ascent)
    along = jnp.where(free, ascent, 0)
    normal = unit(jnp.where(free, of_fixed, 0))
    tangent = along - per_image(dot(along, normal)) * normal
    significant = dot(tangent, tangent) > _ROUNDING**2 * dot(along, along)
    length = problem.step_size * (1 - index.astype(position.dtype) / problem.steps)
    moved = position + per_image(jnp.where(significant, length, 0)) * unit(tangent)
    # The level is off by what the last step left and by what this one adds; the first part is known without another
    # evaluation, so the first correction is free.
    position = _correct(moved, problem.level - fixed, of_fixed)
    for _ in corrections:
        fixed, of_fixed = value_and_gradient(fixed_fn, position)
        position = _correct(position, problem.level - fixed, of_fixed)
    zero_fraction = jnp.mean(of_varied == 0, axis=(1, 2, 3), dtype=position.dtype)
    return state._replace(
        position=position, zero_gradient_fraction=jnp.where(index == 0, zero_fraction, state.zero_gradient_fraction)
    )


def _correct(position, missing, gradient):
    """A Newton step along the gradient, by those values that it does not push out of [0, 1]."""
    missing = missing.astype(position.dtype)
    gradient = jnp.where(_leaves(position, per_image(missing) * gradient), 0, gradient)
    largest = jnp.max(jnp.abs(gradient), axis=(1, 2, 3))
    scale = jnp.where(largest > 0, largest, 1)
    gradient = gradient / per_image(scale)  # first, so that the squares neither overflow nor vanish
    squares = dot(gradient, gradient)
    step = jnp.where(squares > 0, missing / scale / jnp.where(squares > 0, squares, 1), 0)
    return jnp.clip(position + per_image(jnp.nan_to_num(step)) * gradient, 0, 1)


def _leaves(position, direction):
    """Where a value at 0 or 1 would be pushed out of [0, 1]."""
    return ((position <= 0) & (direction < 0)) | ((position >= 1) & (direction > 0))


def _consider(problem, state, varied, fixed):
    """Keeps the present position if it is the most extreme so far on the level."""
    on_level = jnp.abs(fixed - problem.level) <= problem.allowed
    better = on_level & (problem.sign * varied > problem.sign * state.best_varied)
    return state._replace(
        best_images=jnp.where(per_image(better), state.position, state.best_images),
        best_varied=jnp.where(better, varied, state.best_varied),
        best_fixed=jnp.where(better, fixed, state.best_fixed),
    )


@jax.jit
def _consider_last(fixed_fn, varied_fn, problem, state):
    return _consider(problem, state, varied_fn(state.position), fixed_fn(state.position))
