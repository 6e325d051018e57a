"""What a model takes for a better image: ascent on its score alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.attacks.arguments import check_count, check_distance, check_images
from cprl_jax.attacks.directions import Alternatives, constant, up
from cprl_jax.attacks.gradients import as_constant, evaluate_per_image, per_image, slope, steepest, value_and_gradient
from cprl_jax.attacks.loop import iterate
from cprl_jax.attacks.result import finish, largest_change


class EnhanceResult(NamedTuple):
    """`AttackResult`, and the scores on the way; a pytree, constant for differentiation.

    Attributes:
      images: the images after the last step, in [0, 1].
      before: scores of the original images.
      after: scores of `images`.
      max_change: largest change of any value, max |x' - x|, in [0, 1] pixel units.
      zero_gradient_fraction: share of values at which the first gradient was exactly 0 or not a number.
      trajectory: scores before the first step and after each step.
    """

    images: Float[Array, "batch height width 3"]
    before: Float[Array, " batch"]
    after: Float[Array, " batch"]
    max_change: Float[Array, " batch"]
    zero_gradient_fraction: Float[Array, " batch"]
    trajectory: Float[Array, "steps_and_start batch"]


def enhance(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]] | None = None,
    step_size: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] = 1e-3,
    steps: int = 200,
    norm: str = "linf",
    progress: bool = False,
) -> EnhanceResult:
    """Steepest ascent on the score from the image itself, without any fidelity: Eq. 2 with an infinite multiplier.

    Zhang et al., "Perceptual Attacks of No-Reference Image Quality Models with Human-in-the-Loop", NeurIPS 2022,
    Section 3.3 and Fig. 2: a model of natural images would improve the image; the published models fill it with
    distortions that they score highly. Nothing but [0, 1] bounds the change; for a radius, see `pgd`. Costs one
    gradient a step and two evaluations.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each a function of its image alone.
      images: float32 or float64 RGB images in [0, 1].
      direction: what to ascend; None is `up()`: a better score. `down()` degrades.
      step_size: length of a step in [0, 1] pixel units, one number or one per image.
      steps: number of steps, at least 1.
      norm: "linf" (steps along the gradient's sign) or "l2" (along the gradient, with Euclidean length step_size; see
        `perceptual` on how short 1e-3 is then).
      progress: show a progress bar on the terminal.

    Returns:
      `EnhanceResult`. A warning says when images had no gradient at all.

    Raises:
      ValueError: an argument of the wrong shape or dtype, or a direction with alternatives; unless traced, images
        outside [0, 1] or a negative step size.
    """
    images = check_images(images)
    steps = check_count("steps", steps)
    towards = steepest(norm)
    if isinstance(direction, Alternatives):
        raise ValueError("enhance needs a single direction: give up() or down() as the direction, not away().")
    step_size = check_distance("step_size", step_size, images)
    images, step_size = lax.stop_gradient((images, step_size))
    score_fn, direction = as_constant(score_fn), constant(up() if direction is None else direction)

    before = evaluate_per_image("score_fn", score_fn, images)
    state = _State(images, jnp.zeros((steps, images.shape[0]), before.dtype), 0 * step_size)
    ascent = Partial(_step, score_fn, direction, towards, before, per_image(step_size))
    state = iterate(ascent, state, steps=steps, progress="enhance" if progress else "")
    after = evaluate_per_image("score_fn", score_fn, state.images)
    result = EnhanceResult(
        images=state.images,
        before=before,
        after=after,
        max_change=largest_change(state.images, images),
        zero_gradient_fraction=state.zero_gradient_fraction,
        trajectory=jnp.concatenate([state.scores, after[None]]),
    )
    return finish(result, images)


class _State(NamedTuple):
    images: Float[Array, "batch height width 3"]
    scores: Float[Array, "steps batch"]
    zero_gradient_fraction: Float[Array, " batch"]


def _step(score_fn, direction, towards, clean_scores, step_size, index, state):
    scores, of_score = value_and_gradient(score_fn, state.images)
    gradient = jnp.nan_to_num(per_image(slope(direction, scores, clean_scores).astype(of_score.dtype)) * of_score)
    zero_fraction = jnp.mean(gradient == 0, axis=(1, 2, 3), dtype=gradient.dtype)
    return _State(
        images=jnp.clip(state.images + step_size * towards(gradient), 0, 1),
        scores=state.scores.at[index].set(scores),
        zero_gradient_fraction=jnp.where(index == 0, zero_fraction, state.zero_gradient_fraction),
    )
