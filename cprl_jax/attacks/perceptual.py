"""The perceptual attack: much change of the score for little visible change of the image."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from cprl_jax.attacks.arguments import check_count, check_distance, check_images, check_per_image, per_image_keys
from cprl_jax.attacks.directions import Alternatives, constant
from cprl_jax.attacks.gradients import (
    as_constant,
    evaluate,
    evaluate_per_image,
    per_image,
    slope,
    steepest,
    value_and_gradient,
)
from cprl_jax.attacks.loop import iterate
from cprl_jax.attacks.projection import to_8_bits
from cprl_jax.attacks.result import finish, largest_change

# The published code weighs the fidelity instead of the discrepancy, so these are the reciprocals of its list; its 33rd
# value, 0, is an infinite multiplier here: no fidelity at all.
PUBLISHED_MULTIPLIERS = tuple(
    1 / weight
    for weight in (
        *(9e6, 5e6, 1e6, 6e5, 2e5, 9e4, 7e4, 5e4, 3e4, 1e4, 8e3, 6e3, 4e3, 2e3, 900.0, 700.0),
        *(500.0, 300.0, 100.0, 80.0, 60.0, 40.0, 20.0, 9.0, 7.0, 5.0, 3.0, 1.0, 0.8, 0.6, 0.4, 0.2),
    )
)


class PerceptualResult(NamedTuple):
    """One attacked image for each multiplier and image; a pytree, constant for differentiation.

    The five fields of `AttackResult` with a leading axis of candidates, and the trade-off behind each.

    Attributes:
      images: the candidates, in [0, 1]; the grey levels of 8-bit images, k / 255, unless `quantize=False`.
      before: scores of the original images.
      after: scores of the candidates, exactly those in `images`.
      max_change: largest change of any value, max |x' - x|, in [0, 1] pixel units.
      zero_gradient_fraction: share of values at which the gradient of the score (without the fidelity, which has one
        however the score behaves) was exactly 0 or not a number at the noisy start; 1 says that the score could not be
        followed.
      distances: distance of each candidate, as in `images`, to its original.
      after_unquantized: scores before the rounding to 8 bits; `after` where there was none.
      distances_unquantized: distances before the rounding; `distances` where there was none.
      multipliers: the multiplier of each candidate.
    """

    images: Float[Array, "candidates batch height width 3"]
    before: Float[Array, "candidates batch"]
    after: Float[Array, "candidates batch"]
    max_change: Float[Array, "candidates batch"]
    zero_gradient_fraction: Float[Array, "candidates batch"]
    distances: Float[Array, "candidates batch"]
    after_unquantized: Float[Array, "candidates batch"]
    distances_unquantized: Float[Array, "candidates batch"]
    multipliers: Float[Array, " candidates"]


def perceptual(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    distance: Callable[
        [Float[Array, "batch height width 3"], Float[Array, "batch height width 3"]], Float[Array, " batch"]
    ],
    *,
    key: Key[Array, ""] | Key[Array, " batch"],
    multipliers: Float[ArrayLike, " candidates"] = PUBLISHED_MULTIPLIERS,
    step_size: Float[ArrayLike, ""] | Float[ArrayLike, " candidates"] = 1e-3,
    steps: int = 200,
    norm: str = "linf",
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]] | None = None,
    initial_noise: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] = 1 / 255,
    quantize: bool = True,
    at_once: int | None = None,
    progress: bool = False,
) -> PerceptualResult:
    """Steepest ascent on J = -D(x, x0) + multiplier * (f(x) - f(x0))^2, for a whole list of multipliers.

    Zhang et al., "Perceptual Attacks of No-Reference Image Quality Models with Human-in-the-Loop", NeurIPS 2022, Eq. 2
    and Algorithm 1, with f(x0) for the label: a start near x0 that is random for each image and multiplier, steps of
    one length, each followed by a return into [0, 1], and 8-bit rounding at the end. Which candidate is the
    counterexample is decided afterwards: `select_counterexample`.

    What a step is can be read in three ways:

    - `norm="linf"`, the default: each value moves by step_size along the sign of its gradient. The paper says so for
      the Chebyshev distance, with step_size 1e-3.
    - `norm="l2"`: the step is step_size long in Euclidean length, as the paper says for all other distances. With its
      200 steps of 1e-3, an image moves by at most 0.2 over all its values together; from 60x60 pixels on, that is less
      than half a grey level in the root mean square, and rounding to 8 bits gives little but the initial noise back.
      Use it with longer steps, which grow with the image's side, or with `quantize=False`.
    - `norm="linf", step_size=0.005`: what the published code does for every distance. It takes one step of a newly made
      Adam optimiser at a time, which is a step along the sign. Being more than a grey level long, the steps leave a
      change that is visible in the distance even where the multiplier is 0.

    With sign steps, a value moves as far for a small gradient as for a large one. So a distance that looks at few
    values at a time (Chebyshev: at the largest change only) restrains only those, and the change grows to about steps *
    step_size for every positive multiplier. Give such a distance one step size per multiplier instead, which makes a
    list of radii of them.

    The start's noise is needed: at x0 itself, the gradient of the squared difference is 0. Costs `steps` gradients of
    score and distance for each image and multiplier, and two evaluations.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each a function of its image alone; called
        with batches of other sizes than that of `images`.
      images: float32 or float64 RGB images in [0, 1].
      distance: `distance(images, references)` to one number per image, 0 for equal images, larger for less alike;
        differentiable in the first.
      key: for the initial noise; one key, or one per image.
      multipliers: the weight of the squared score difference against the distance, one for each candidate, at least 0;
        infinity leaves the distance out. The default is the published code's list, from the most faithful to the most
        different.
      step_size: length of a step in [0, 1] pixel units, one number or one per multiplier.
      steps: number of steps, at least 1.
      norm: "linf" or "l2", see above.
      direction: which way the score should go: `up()`, `down()`, `reflect(mos)`, or a function like them, of which only
        its slope's sign at the clean score is used. Then the square counts as negative on the other side. None, or
        `away()`: either way, as published; the initial noise decides.
      initial_noise: the noise of the start is this times -1, 0 or 1 for each value, with equal probability, in [0, 1]
        pixel units; one number or one per image.
      quantize: round the candidates to 8 bits, halves to even, as NumPy and the published code round.
      at_once: how many candidates (images times multipliers) are computed together at most; None: all of them. Memory
        grows with it.
      progress: show a progress bar on the terminal.

    Returns:
      `PerceptualResult`. A warning says when images had no gradient of the score at all.

    Raises:
      ValueError: an argument of the wrong shape or dtype; unless traced, images outside [0, 1], a negative or missing
        multiplier, a negative step size.
    """
    images = check_images(images)
    batch = images.shape[0]
    steps = check_count("steps", steps)
    towards = steepest(norm)
    multipliers = _check_candidates("multipliers", multipliers, images.dtype, highest=np.inf)
    count = multipliers.shape[0]
    step_sizes = _check_candidates("step_size", step_size, images.dtype, highest=np.finfo(np.float32).max, count=count)
    noise = check_distance("initial_noise", initial_noise, images, highest=1)
    keys = per_image_keys(key, batch)
    images, multipliers, step_sizes, noise = lax.stop_gradient((images, multipliers, step_sizes, noise))
    score_fn, distance = as_constant(score_fn), as_constant(distance)

    before = evaluate_per_image("score_fn", score_fn, images)
    check_per_image("distance", evaluate.eval_shape(distance, images, images), batch)
    sides = jnp.zeros_like(before)
    if direction is not None and not isinstance(direction, Alternatives):
        sides = jnp.nan_to_num(jnp.sign(evaluate(Partial(slope, constant(direction)), before, before)))

    # Chunks of one size, the last filled up with the last candidate, so that all run the same compiled step.
    total = count * batch
    chunks = 1 if at_once is None else -(-total // check_count("at_once", at_once))
    members = np.minimum(np.arange(chunks * -(-total // chunks)), total - 1).reshape(chunks, -1)
    parts = []
    for number, members_of_chunk in enumerate(members, start=1):
        candidates = _gather(members_of_chunk, images, before, sides, noise, keys, multipliers, step_sizes)
        name = "perceptual attack" + (f" {number}/{chunks}" if chunks > 1 else "")
        parts.append(_attack(score_fn, distance, towards, candidates, steps, quantize, name if progress else ""))
    fields = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:total], *parts)
    fields = jax.tree.map(lambda leaf: leaf.reshape(count, batch, *leaf.shape[1:]), fields)
    return finish(PerceptualResult(**fields, multipliers=None), images)._replace(multipliers=multipliers)


class Counterexamples(NamedTuple):
    """The candidate that was picked for each image.

    Attributes:
      candidates: its place among the multipliers.
      found: whether any candidate was below the threshold. Where none was, all other fields describe the candidate with
        the smallest distance.
      images: the picked candidates.
      before: scores of the original images.
      after: scores of the picked candidates.
      distances: their distances to the originals.
    """

    candidates: Int[Array, " batch"]
    found: Bool[Array, " batch"]
    images: Float[Array, "batch height width 3"]
    before: Float[Array, " batch"]
    after: Float[Array, " batch"]
    distances: Float[Array, " batch"]


def select_counterexample(
    result: PerceptualResult,
    threshold: Float[ArrayLike, ""] | Float[ArrayLike, " batch"],
    *,
    imperceptible: Bool[ArrayLike, "candidates batch"] | None = None,
) -> Counterexamples:
    """The candidate of each image with the largest change of the score among those that look the same.

    In the paper (Section 3.2), observers in a yes-no task decide what looks the same. A threshold on the distance
    stands in for them; with `imperceptible`, they decide.

    Args:
      result: what `perceptual` returned.
      threshold: the largest distance that counts as invisible, in units of the distance, one number or one per image;
        infinity for no such limit.
      imperceptible: verdicts of observers, true for a candidate that they took for the original. A candidate
        must then pass both.

    Raises:
      ValueError: a threshold or verdicts of another shape; unless traced, a threshold that is NaN.
    """
    count, batch = result.distances.shape
    if not isinstance(threshold, jax.core.Tracer) and np.isnan(np.asarray(threshold, np.float64)).any():
        raise ValueError(f"threshold must be numbers, got {threshold}.")
    threshold = jnp.asarray(threshold, result.distances.dtype)
    if threshold.shape not in ((), (batch,)):
        raise ValueError(
            f"threshold must be one number or one per image: got shape {threshold.shape} for {batch} images."
        )
    allowed = result.distances <= jnp.broadcast_to(threshold, (1, batch))
    if imperceptible is not None:
        imperceptible = jnp.asarray(imperceptible)
        if imperceptible.shape != (count, batch) or imperceptible.dtype != bool:
            raise ValueError(
                f"imperceptible must be bool of shape {(count, batch)} (candidates, batch), "
                f"got {imperceptible.dtype} of shape {imperceptible.shape}."
            )
        allowed = allowed & imperceptible
    change = jnp.abs(result.after - result.before)
    allowed = allowed & ~jnp.isnan(change)
    found = jnp.any(allowed, axis=0)
    most_changed = jnp.argmax(jnp.where(allowed, change, -1), axis=0)
    nearest = jnp.argmin(jnp.where(jnp.isnan(result.distances), jnp.inf, result.distances), axis=0)
    picked = jnp.where(found, most_changed, nearest)

    def pick(values):
        return jax.vmap(lambda place, of_image: of_image[place], in_axes=(0, 1))(picked, values)

    return Counterexamples(
        candidates=picked,
        found=found,
        images=pick(result.images),
        before=pick(result.before),
        after=pick(result.after),
        distances=pick(result.distances),
    )


class _Candidates(NamedTuple):
    """What a chunk of candidates consists of, one entry for each pair of a multiplier and an image."""

    references: Float[Array, "batch height width 3"]
    starts: Float[Array, "batch height width 3"]
    clean_scores: Float[Array, " batch"]
    sides: Float[Array, " batch"]
    multipliers: Float[Array, " batch"]
    step_sizes: Float[Array, "batch 1 1 1"]


@jax.jit
def _gather(members, images, clean_scores, sides, noise, keys, multipliers, step_sizes):
    batch = images.shape[0]
    which, image = members // batch, members % batch
    references = images[image]

    def draw(key, which):  # folded in, so that a candidate does not depend on which others there are
        return jnp.floor(3 * jax.random.uniform(jax.random.fold_in(key, which), images.shape[1:], images.dtype)) - 1

    starts = jnp.clip(references + per_image(noise[image]) * jax.vmap(draw)(keys[image], which), 0, 1)
    return _Candidates(
        references, starts, clean_scores[image], sides[image], multipliers[which], per_image(step_sizes[which])
    )


def _attack(score_fn, distance, towards, candidates, steps, quantize, progress) -> dict[str, jax.Array]:
    """The fields of the result for one chunk."""
    references = candidates.references
    state = (candidates.starts, jnp.zeros_like(candidates.multipliers))
    ascent = Partial(_step, score_fn, distance, towards, candidates)
    attacked, zero_gradient_fraction = iterate(ascent, state, steps=steps, progress=progress)
    after, distances, max_change = _measure(score_fn, distance, attacked, references)
    after_unquantized, distances_unquantized = after, distances
    if quantize:
        attacked = evaluate(Partial(to_8_bits), attacked)
        after, distances, max_change = _measure(score_fn, distance, attacked, references)
    return {
        "images": attacked,
        "before": candidates.clean_scores,
        "after": after,
        "max_change": max_change,
        "zero_gradient_fraction": zero_gradient_fraction,
        "distances": distances,
        "after_unquantized": after_unquantized,
        "distances_unquantized": distances_unquantized,
    }


@jax.jit
def _measure(score_fn, distance, attacked, references):
    return score_fn(attacked), distance(attacked, references), largest_change(attacked, references)


def _step(score_fn, distance, towards, candidates, index, state):
    position, zero_gradient_fraction = state
    # Two gradients instead of one of J: so one may be left out, and the score's be reported by itself.
    scores, of_score = value_and_gradient(score_fn, position)
    _, of_distance = value_and_gradient(lambda images: distance(images, candidates.references), position)
    change = scores - candidates.clean_scores
    growth = jnp.where(candidates.sides == 0, 2 * change, 2 * candidates.sides * jnp.abs(change))
    faithful = jnp.isfinite(candidates.multipliers)
    weight = jnp.where(faithful, candidates.multipliers, 1) * growth.astype(position.dtype)
    gradient = per_image(weight) * of_score - per_image(faithful.astype(position.dtype)) * of_distance
    position = position + candidates.step_sizes * towards(jnp.nan_to_num(gradient))
    zero_fraction = jnp.mean(of_score == 0, axis=(1, 2, 3), dtype=position.dtype)
    return jnp.clip(position, 0, 1), jnp.where(index == 0, zero_fraction, zero_gradient_fraction)


def _check_candidates(name, values, dtype, *, highest, count=None):
    """Non-negative numbers, one for each candidate (or, where `count` is given, one for all)."""
    if not isinstance(values, jax.Array):
        values = np.asarray(values)
    shapes = "a list of at least one number" if count is None else f"one number or one for each of {count} multipliers"
    if (values.ndim != 1 or not values.size) if count is None else values.shape not in ((), (count,)):
        raise ValueError(f"{name} must be {shapes}, got shape {values.shape}.")
    if not isinstance(values, jax.core.Tracer) and not np.all((values >= 0) & (values <= highest)):
        raise ValueError(f"{name} must be {'at least 0' if count is None else 'finite and at least 0'}, got {values}.")
    values = jnp.asarray(values, dtype)
    return values if count is None else jnp.broadcast_to(values, (count,))
