"""An attack on the ranking of a whole set: a differentiable Spearman correlation with the labels is driven down."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float
from tqdm import tqdm

from cprl_jax.attacks._radii import over_radii
from cprl_jax.attacks.arguments import check_count, check_distance, check_images, check_number, check_per_image
from cprl_jax.attacks.directions import check_labels
from cprl_jax.attacks.gradients import as_constant, evaluate, per_image, value_and_gradient
from cprl_jax.attacks.loop import is_traced
from cprl_jax.attacks.projection import project_linf
from cprl_jax.attacks.result import AttackResult, finish, largest_change

_ROWS = 128  # of the matrix of all pairs of images, at once


def ranking(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "images height width 3"],
    mos: Float[ArrayLike, " images"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " images"] | Sequence[float],
    steps: int = 10,
    step_size: Float[ArrayLike, ""] | Float[ArrayLike, " images"] | None = None,
    temperature: float = 1.0,
    batch_size: int | None = None,
    progress: bool = False,
) -> AttackResult:
    """Signed gradient steps of all images together that lower Spearman's correlation of their scores with the labels.

    **The images are not independent**: which way a score has to go depends on all others, so that the result of an
    image changes with its company. Attack a whole test set at once, on one device. An attack on single images needs a
    side of the scale for each label; this one sends an image where it disturbs the others most. It is a local search.

    The objective is `soft_srcc`. Its gradient in an image is, by the chain rule, its derivative in that image's score
    times the gradient of the score; so scores and their gradients are computed in batches, and the attack is the same
    for every `batch_size`, but for rounding. The result is the iterate, or the original images, at which the true SRCC
    of the whole set is lowest.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each a function of its image alone.
      images: float32 or float64 RGB images in [0, 1], two or more. They, their gradients and the best iterate are kept
        in the memory of the device.
      mos: labels, one per image, higher is better, on any scale.
      radius: largest change of any value in [0, 1] pixel units: one number, one per image, or a list of radii, which
        become the first axis of the result.
      steps: number of gradient steps; each costs one gradient of every image.
      step_size: length of a step in [0, 1] pixel units, one number or one per image; default 2.5 * radius / steps.
      temperature: how soft the ranks are, in standard deviations of the clean scores: pairs of images whose scores are
        much farther apart do not count.
      batch_size: images to one evaluation of the network; None for all at once. Inside `jit`, every batch of every step
        is a copy of the network in the program.
      progress: shows a progress bar over the steps, when called with values rather than inside `jit` and the like.

    Returns:
      `AttackResult`; `zero_gradient_fraction` is of the objective's gradient.

    Raises:
      ValueError: an argument of the wrong shape or dtype, fewer than two images; unless traced, labels that are NaN or
        all the same, images outside [0, 1] or a negative radius.
    """
    images = check_images(images)
    count = images.shape[0]
    mos = check_labels("mos", mos)
    if mos.shape != (count,) or count < 2:
        raise ValueError(f"mos must be one label for each of two images or more: {mos.shape} for {count} images.")
    if not isinstance(mos, jax.core.Tracer) and np.ptp(np.asarray(mos)) == 0:
        raise ValueError("mos must not be the same for all images: there is no ranking to lower.")
    steps, temperature = check_count("steps", steps), check_number("temperature", temperature)
    if not temperature:
        raise ValueError("temperature must be above 0, got 0: ranks without softness have no gradient.")
    batch_size = count if batch_size is None else check_count("batch_size", batch_size)
    score_fn = as_constant(score_fn)
    check_per_image("score_fn", evaluate.eval_shape(score_fn, images), count)

    def attack(radius):
        radius = check_distance("radius", radius, images, highest=1)
        step = 2.5 / steps * radius if step_size is None else check_distance("step_size", step_size, images)
        return _descend(
            score_fn,
            *lax.stop_gradient((images, mos, per_image(radius), per_image(step))),
            steps=steps,
            temperature=temperature,
            batch_size=batch_size,
            progress=progress,
        )

    return finish(over_radii(attack, radius), images)


def _descend(score_fn, images, mos, radius, step_size, *, steps, temperature, batch_size, progress) -> AttackResult:
    def in_batches(function, images):
        return _in_batches(partial(function, score_fn), images, batch_size=batch_size)

    position, clean, best, zero_fraction = images, None, None, None
    for _ in tqdm(range(steps), "ranking", unit="step", disable=not progress or is_traced(images)):
        scores, gradient = in_batches(_scores_and_gradients, position)
        clean = scores if clean is None else clean
        best = _lower_ranking(mos, best, (position, scores))
        position, zero = _step(position, scores, gradient, clean, mos, temperature, images, radius, step_size)
        zero_fraction = zero if zero_fraction is None else zero_fraction
    attacked, after = _lower_ranking(mos, best, (position, in_batches(evaluate, position)))
    return AttackResult(attacked, clean, after, largest_change(attacked, images), zero_fraction)


def _in_batches(function, images, *, batch_size):
    """`function(images)`, computed in batches of one shape; the last one is filled up with the last image."""
    count = len(images)
    if count <= batch_size:
        return function(images)
    batches = [np.minimum(np.arange(start, start + batch_size), count - 1) for start in range(0, count, batch_size)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:count], *(function(images[rows]) for rows in batches))


_scores_and_gradients = jax.jit(value_and_gradient)


@jax.jit
def _step(position, scores, gradient, clean, mos, temperature, images, radius, step_size):
    spread = temperature * jnp.std(clean)
    slope = soft_srcc_gradient(scores, mos, scale=jnp.where(spread > 0, spread, 1))
    # The sign of the product of both, which could be too small for a float.
    direction = -jnp.sign(per_image(slope)) * jnp.sign(gradient)
    zero_fraction = jnp.mean(direction == 0, axis=(1, 2, 3), dtype=images.dtype)
    return project_linf(position + step_size * direction, images, radius), zero_fraction


@jax.jit
def _lower_ranking(mos, first, second):
    """That pair of images and scores whose true SRCC is lower; the first where they are equal."""
    if first is None:
        return second
    old, new = srcc(first[1], mos), srcc(second[1], mos)
    return jax.tree.map(partial(jnp.where, (new < old) | jnp.isnan(old)), second, first)


def srcc(scores: Float[Array, " images"], mos: Float[Array, " images"]) -> Float[Array, ""]:
    """Spearman's rank correlation, as `scipy.stats.spearmanr`: equal scores share their mean rank; NaN if all are."""
    ranks, labels = _centred(_mean_ranks(scores)), _centred(_mean_ranks(mos).astype(scores.dtype))
    return jnp.vdot(ranks, labels) / (jnp.linalg.norm(ranks) * jnp.linalg.norm(labels))


def soft_ranks(scores: Float[Array, " images"], *, scale: Float[ArrayLike, ""]) -> Float[Array, " images"]:
    """1/2 + sum_j sigmoid((s_i - s_j) / scale): ranks 1 .. n that can be differentiated.

    As the scale goes to 0, a lower score counts 1, an equal one 1/2 (the image itself among them) and a higher one
    nothing: these are mean ranks. For a large scale, they are a straight line of the scores.
    """
    return 0.5 + _over_rows(lambda score: jnp.sum(jax.nn.sigmoid((score - scores) / scale)), scores)


def soft_srcc(
    scores: Float[Array, " images"], mos: Float[Array, " images"], *, scale: Float[ArrayLike, ""]
) -> Float[Array, ""]:
    """Pearson's correlation of the soft ranks of the scores with the ranks of the labels."""
    return _correlation(soft_ranks(scores, scale=scale), mos)[0]


def soft_srcc_gradient(
    scores: Float[Array, " images"], mos: Float[Array, " images"], *, scale: Float[ArrayLike, ""]
) -> Float[Array, " images"]:
    """The derivative of `soft_srcc` in each score, in closed form: memory does not grow with the number of pairs.

    With g the derivative in the soft ranks, it is sum_j sigmoid'((s_i - s_j) / scale) (g_i - g_j) / scale.
    """
    _, in_ranks = _correlation(soft_ranks(scores, scale=scale), mos)

    def row(score, own):
        distance = (score - scores) / scale
        # Not sigmoid (1 - sigmoid), which is 0 for scores far below.
        return jnp.sum(jax.nn.sigmoid(distance) * jax.nn.sigmoid(-distance) * (own - in_ranks)) / scale

    return _over_rows(row, scores, in_ranks)


def _correlation(ranks, mos):
    """Pearson's correlation of ranks with those of the labels, 0 of constant ones, and its derivative in the ranks."""
    ranks, labels = _centred(ranks), _centred(_mean_ranks(mos).astype(ranks.dtype))
    length = jnp.linalg.norm(ranks)
    length = jnp.where(length > 0, length, 1)
    ranks, labels = ranks / length, labels / jnp.linalg.norm(labels)
    correlation = jnp.vdot(ranks, labels)
    return correlation, (labels - correlation * ranks) / length


def _over_rows(row, *arrays):
    """`row(*elements)` for the elements of each place, some rows of the matrix of all pairs at once."""
    return lax.map(lambda elements: row(*elements), arrays, batch_size=min(_ROWS, len(arrays[0])))


def _mean_ranks(values):
    ordered = jnp.sort(values)
    below, upto = (jnp.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (below + upto + 1) / 2


def _centred(values):
    return values - jnp.mean(values)
