"""The smallest change of the image that changes the score by a given amount."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Float

from cprl_jax.attacks.arguments import check_count, check_images, check_one_per_image, check_per_image
from cprl_jax.attacks.directions import alternatives, constant
from cprl_jax.attacks.gradients import (
    as_constant,
    dot,
    evaluate,
    evaluate_per_image,
    per_image,
    slope,
    value_and_gradient,
)
from cprl_jax.attacks.loop import iterate
from cprl_jax.attacks.projection import to_8_bits
from cprl_jax.attacks.result import finish, largest_change

# In tanh space, black and white lie at infinity. Starting a sixteenth of a grey level before them lets such values take
# part; much nearer, their gradient would vanish (with the customary 1e-6, they move by no grey level in 200 steps).
_MARGIN = 2.0**-12
_GROWTH = 10.0  # factor on the constant until it is large enough


class CarliniWagnerResult(NamedTuple):
    """`AttackResult`, and whether the attack reached its goal; a pytree, constant for differentiation.

    Attributes:
      images: the nearest (in `distances`) of all images that reached the required change; the original, bit for bit,
        where none did.
      before: scores of the original images.
      after: scores of `images`.
      max_change: largest change of any value, max |x' - x|, in [0, 1] pixel units.
      zero_gradient_fraction: share of values at which the first gradient of the score was exactly 0 or not a number.
      success: whether the required change was reached.
      distances: Euclidean length of the change, in [0, 1] pixel units; 0 where there was no success.
      constants: the constant c that gave `images`; 0 where there was no success.
    """

    images: Float[Array, "batch height width 3"]
    before: Float[Array, " batch"]
    after: Float[Array, " batch"]
    max_change: Float[Array, " batch"]
    zero_gradient_fraction: Float[Array, " batch"]
    success: Bool[Array, " batch"]
    distances: Float[Array, " batch"]
    constants: Float[Array, " batch"]


def carlini_wagner(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    required_change: Float[ArrayLike, ""] | Float[ArrayLike, " batch"],
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]],
    steps: int = 200,
    searches: int = 9,
    learning_rate: Float[ArrayLike, ""] = 0.05,
    initial_constant: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] = 0.01,
    quantize: bool = False,
    progress: bool = False,
) -> CarliniWagnerResult:
    """Minimises ||x' - x||_2^2 + c * max(0, required_change - gain(x')) for the smallest c that will do.

    Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", IEEE S&P 2017, Section VI.A, with a
    required change of the score in place of another class: the gain is how much the direction's objective has grown
    since the original image, f(x') - f(x) for `up()` and f(x) - f(x') for `down()`. As there, x' = (tanh(w) + 1) / 2
    keeps to [0, 1], Adam finds w, and a binary search finds c for each image: smaller after a success, larger (ten
    times, until the first success) after a failure. Unlike there, the learning rate falls linearly to 0 in each search,
    which ends nearer to the minimum, and distances are measured to the image itself, not to its copy in tanh space.
    Costs searches * steps gradients.

    The image that is found just reaches the required change, by changes that are mostly smaller than a grey level; in
    an 8-bit file, little of it is left. With `quantize=True`, candidates are rounded to 8 bits before they are scored
    and measured, so that the required change is reached by images that a file holds; gradients are taken there, and
    pass the rounding as if it were not there.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each a function of its image alone.
      images: float32 or float64 RGB images in [0, 1].
      required_change: how far the score must go, in units of the direction's objective (of the score, for those here),
        one number or one per image. 0 gives an image back bit for bit.
      direction: which way: `up()`, `down()`, `reflect(mos)`, `target_free()`, or a function like them; `away()` tries
        both ways, at twice the cost.
      steps: number of Adam's steps in each search, at least 1.
      searches: number of constants tried, at least 1.
      learning_rate: Adam's learning rate at the start of each search, in units of w: near grey, a change of w by 0.01
        changes a value by 0.005, a little over one grey level; near black and white by far less, so that with 0.01 they
        do not move by two grey levels in 200 steps.
      initial_constant: the first c, in units of squared pixel change per unit of score; one number or one per image.
      quantize: only accept 8-bit images: all values are grey levels k / 255 (but for images that are given back
        unchanged).
      progress: show a progress bar on the terminal.

    Returns:
      `CarliniWagnerResult`. A warning says when images had no gradient at all.

    Raises:
      ValueError: an argument of the wrong shape or dtype; unless traced, images outside [0, 1], a negative required
        change, or a learning rate or constant that is not positive.
    """
    images = check_images(images)
    steps, searches = check_count("steps", steps), check_count("searches", searches)
    required_change = _check_numbers("required_change", required_change, images, positive=False)
    learning_rate = _check_numbers("learning_rate", learning_rate, images)
    constants = _check_numbers("initial_constant", initial_constant, images)
    images, required_change = lax.stop_gradient((images, required_change))
    score_fn = as_constant(score_fn)

    before = evaluate_per_image("score_fn", score_fn, images)
    numbers = (required_change, learning_rate, constants, steps, searches)
    rounding = Partial(to_8_bits if quantize else _as_they_are)  # a function, so that it is structure, not a value
    results = [
        _attack(score_fn, each, rounding, images, before, *numbers, "Carlini-Wagner" if progress else "")
        for each in alternatives(constant(direction))
    ]
    result = results[0]
    for other in results[1:]:
        closer = other.success & (~result.success | (other.distances < result.distances))
        result = jax.tree.map(
            lambda a, b, closer=closer: jnp.where(per_image(closer) if a.ndim == 4 else closer, b, a), result, other
        )
    return finish(result, images)


def _attack(
    score_fn, direction, rounding, images, before, required_change, learning_rate, constants, steps, searches, progress
) -> CarliniWagnerResult:
    check_per_image("direction", evaluate.eval_shape(direction, before, before), images.shape[0])
    problem = _Problem(
        images, before, evaluate(direction, before, before), required_change, learning_rate, jnp.int32(steps)
    )
    nothing = 0 * required_change
    start = evaluate(Partial(_to_tanh_space), images)
    state = _State(
        position=start,
        adam=optax.scale_by_adam().init(start),
        constants=constants,
        lower=nothing,
        upper=nothing + jnp.inf,
        reached=nothing > 0,
        best_images=images,
        best_scores=before,
        best_constants=nothing,
        best_squares=jnp.where(required_change > 0, jnp.inf, nothing),
        zero_gradient_fraction=nothing,
    )
    descent = Partial(_step, score_fn, direction, rounding, problem)
    state = iterate(descent, state, steps=searches * steps, progress=progress)
    success = jnp.isfinite(state.best_squares)
    return CarliniWagnerResult(
        images=state.best_images,
        before=before,
        after=state.best_scores,
        max_change=largest_change(state.best_images, images),
        zero_gradient_fraction=state.zero_gradient_fraction,
        success=success,
        distances=jnp.sqrt(jnp.where(success, state.best_squares, 0)),
        constants=state.best_constants,
    )


class _Problem(NamedTuple):
    images: Float[Array, "batch height width 3"]
    clean_scores: Float[Array, " batch"]
    clean_objective: Float[Array, " batch"]
    required_change: Float[Array, " batch"]
    learning_rate: Float[Array, " batch"]
    steps: Any


class _State(NamedTuple):
    position: Float[Array, "batch height width 3"]  # in tanh space
    adam: Any
    constants: Float[Array, " batch"]
    lower: Float[Array, " batch"]  # the largest constant that failed
    upper: Float[Array, " batch"]  # the smallest one that succeeded
    reached: Bool[Array, " batch"]  # whether the present one has succeeded
    best_images: Float[Array, "batch height width 3"]
    best_scores: Float[Array, " batch"]
    best_constants: Float[Array, " batch"]
    best_squares: Float[Array, " batch"]
    zero_gradient_fraction: Float[Array, " batch"]


def _step(score_fn, direction, rounding, problem, index, state):
    step_of_search = index % problem.steps
    restart = (index > 0) & (step_of_search == 0)
    state = jax.tree.map(lambda new, old: jnp.where(restart, new, old), _next_search(problem, state), state)

    exact = jnp.clip((jnp.tanh(state.position) + 1) / 2, 0, 1)
    attacked = rounding(exact)
    scores, of_score = value_and_gradient(score_fn, attacked)
    gain = direction(scores, problem.clean_scores) - problem.clean_objective
    of_gain = per_image(slope(direction, scores, problem.clean_scores).astype(attacked.dtype)) * of_score
    change = attacked - problem.images
    squares = dot(change, change)
    reached = gain >= problem.required_change
    better = reached & (squares < state.best_squares)

    pull = per_image(jnp.where(reached, 0, state.constants))
    gradient = jnp.nan_to_num(2 * (exact - problem.images) - pull * of_gain) * 2 * exact * (1 - exact)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        update, adam = optax.scale_by_adam().update(gradient, state.adam)
    done = step_of_search.astype(attacked.dtype) / problem.steps.astype(attacked.dtype)
    rate = problem.learning_rate * (1 - done)
    zero_fraction = jnp.mean(jnp.nan_to_num(of_gain) == 0, axis=(1, 2, 3), dtype=attacked.dtype)
    return state._replace(
        position=state.position - per_image(rate) * update,
        adam=adam,
        reached=state.reached | reached,
        best_images=jnp.where(per_image(better), attacked, state.best_images),
        best_scores=jnp.where(better, scores, state.best_scores),
        best_constants=jnp.where(better, state.constants, state.best_constants),
        best_squares=jnp.where(better, squares, state.best_squares),
        zero_gradient_fraction=jnp.where(index == 0, zero_fraction, state.zero_gradient_fraction),
    )


def _next_search(problem, state):
    """The start again, with a constant between the largest that failed and the smallest that succeeded."""
    lower = jnp.where(state.reached, state.lower, state.constants)
    upper = jnp.where(state.reached, state.constants, state.upper)
    between = (lower + jnp.where(jnp.isfinite(upper), upper, 0)) / 2
    return state._replace(
        position=_to_tanh_space(problem.images),
        adam=jax.tree.map(jnp.zeros_like, state.adam),
        constants=jnp.where(jnp.isfinite(upper), between, _GROWTH * state.constants),
        lower=lower,
        upper=upper,
        reached=jnp.zeros_like(state.reached),
    )


def _as_they_are(images):
    return images


def _to_tanh_space(images):
    return jnp.arctanh((2 * images - 1) * (1 - 2 * _MARGIN))


def _check_numbers(name, value, images, *, positive=True):
    """A finite number per image, not negative (or more than 0)."""
    value = check_one_per_image(name, value, images)
    if not isinstance(value, jax.core.Tracer):
        allowed = (value > 0) if positive else (value >= 0)
        if not np.all(allowed & np.isfinite(value)):
            raise ValueError(f"{name} must be finite and {'more than' if positive else 'at least'} 0, got {value}.")
    return jnp.broadcast_to(jnp.asarray(value, images.dtype), images.shape[:1])
