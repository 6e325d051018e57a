"""Is a model robust, or does it only mask its gradients? Checks that an honest evaluation passes.

An attack that follows gradients finds nothing where the gradient is zero, useless or missing, and its failure then
looks like robustness. Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 3.1,
and Carlini et al., "On Evaluating Adversarial Robustness", 2019, section 5, list what cannot happen when gradients are
what they should be; each check here is one of those, carried over from success rates of classifiers to changes of
scores. The later ones ask of the attack what they ask too: has it converged, did it need luck or an earlier iterate?
"""

import warnings
from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from cprl_jax import attacks
from cprl_jax.attacks.arguments import check_distance, per_image_keys
from cprl_jax.attacks.ascent import climb
from cprl_jax.attacks.directions import constant
from cprl_jax.attacks.gradients import as_constant, evaluate, value_and_gradient
from cprl_jax.attacks.pgd import ascend, better, random_start
from cprl_jax.robustness.verdicts import NOT_RUN, SMALLEST, Check, Judge, gradients_exist, neighbours_agree

__all__ = ["NAMES", "NOT_STRENGTHS", "SMALLEST", "Check", "check"]

ZERO_GRADIENTS = "gradients exist"
RADIUS = "strength grows with the radius"
UNBOUNDED = "an unbounded attack wins"
STEPS = "strength grows with the steps"
ITERATED = "many steps beat one"
BLACK_BOX = "black box does not beat white box"
TRANSFER = "transfer does not beat white box"
ADAPTIVE = "adaptive does not beat plain"
GATELESS = "transfer without the gate does not beat white box"
CONVERGED = "the strongest attack has converged"
LAST = "the best iterate does not beat the last"
RESTARTS = "restarts do not beat one start"
FLOOR = "strength grows on to the floor"
NOISE = "noise does not move scores as attacks do"
NEIGHBOURS = "neighbours agree on the gradient"
SAME_SCORE = "the same image has the same score"
SATURATED = "the head is not saturated"

NAMES = (
    *(ZERO_GRADIENTS, RADIUS, UNBOUNDED, STEPS, ITERATED, BLACK_BOX, TRANSFER, ADAPTIVE, GATELESS),
    *(CONVERGED, LAST, RESTARTS, FLOOR, NOISE, NEIGHBOURS, SAME_SCORE, SATURATED),
)
"""All checks, in the order in which they are returned."""

NOT_STRENGTHS = (ZERO_GRADIENTS, UNBOUNDED, FLOOR, NOISE, NEIGHBOURS, SAME_SCORE, SATURATED)
"""The checks whose numbers are not, or not only, strengths of attacks at radii near the one that is asked for."""

MULTIPLES = (0.5, 1.0, 2.0, 4.0)  # times the radius
LARGE_RADII = (8 / 255, 16 / 255)  # where a model is at its floor, or nearer to it; if larger than those
LONGER = 5  # times the steps, for the long attacks
STARTS = 3  # random ones
DRAWS = 4  # of noise
NEAR = 0.1  # distance of a neighbour, as a share of the radius


def check(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]],
    radius: float,
    steps: int = 10,
    queries: int = 200,
    key: Key[Array, ""],
    transfer_images: Float[ArrayLike, "batch height width 3"] | None = None,
    adaptive_score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]] | None = None,
    gateless_score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]] | None = None,
) -> list[Check]:
    """Attacks the images in ways whose strengths must come in a certain order, and says where they do not.

    The strength of an attack on an image is how far it raises the direction's objective above its value at the clean
    image, in score points. One attack counts as stronger than another when the mean over the images of their difference
    exceeds 5 % of the mean strength of the one that should be stronger, a thousandth of the standard deviation of the
    clean scores, and two standard errors of that mean (paired by image). With few images only large differences count;
    each comparison says from which on (`SMALLEST` in its numbers). "passed" means that there was no sign of masking,
    not that there is no masking.

    All attacks are in l-inf. The white box is the strongest for each image of FGSM, PGD by its last iterate and by its
    best one, PGD with five times the steps, and `attacks.ascent` with as many, all from the image itself. To see
    whether it has converged, an ascent goes on from there for as many steps again.

    The cost is at most 32 * steps + 3 gradients of the batch (with `away()`, twice that), some 30 evaluations, and the
    queries. On a CPU all of it runs on three programs of the model: an evaluation, a gradient, and the black box's
    query; each other score function adds an evaluation and a gradient. Runs on concrete values, not under `jit`.

    Args:
      score_fn: the model; images [batch, height, width, 3] in [0, 1] to scores [batch].
      images: float32 or float64 RGB in [0, 1]; eight or more, of different quality.
      direction: what to push towards: `attacks.reflect(mos)`, `target_free()`, `up()`, `down()` or `away()`. Not
        `towards(target)`: steps pass a target, and long attacks come out weaker than they are.
      radius: the one that the model is judged at, in [0, 1] pixel units.
      steps: PGD steps; the long attacks take five times as many.
      queries: images that the black box (`attacks.square`) scores; 0 leaves it out.
      key: random key of the black box, of random starts and of noise.
      transfer_images: these images attacked on another model within `radius`; None leaves that check out.
      adaptive_score_fn: the model with its masks and randomness replaced by something that has a useful gradient
        (`attacks.adaptive`); it is attacked, and `score_fn` scores what comes out. None leaves that check out.
      gateless_score_fn: the network with the same parameters but without masks or gates; attacked and scored likewise.
        None leaves that check out.

    Returns:
      The checks, in the order of `NAMES`.

    Raises:
      ValueError: a radius that is not in (0, 1], transferred images of another shape or farther away than the radius,
        or what the attacks raise.
    """
    radius, images = float(radius), jnp.asarray(images)
    if not 0 < radius <= 1:
        raise ValueError(f"radius must be in (0, 1] (in pixel units: 4/255 is four grey levels), got {radius}.")
    if transfer_images is not None:
        _check_transfer(transfer_images, images, radius)

    def run(attack, score_fn=score_fn, radius=radius, **options):
        with warnings.catch_warnings():  # the check of the gradients reports it instead
            warnings.filterwarnings("ignore", message=".*no gradient", category=UserWarning)
            return attack(score_fn, images, radius=radius, direction=direction, **options)

    def strength(scores):
        return np.asarray(direction(scores, clean) - direction(clean, clean), np.float64)

    model, objective, long = as_constant(score_fn), constant(direction), LONGER * steps
    plain = run(attacks.pgd, steps=steps)
    clean = plain.before
    radii = sorted({min(multiple * radius, 1.0) for multiple in MULTIPLES})
    radii += [large for large in LARGE_RADII if large > radii[-1]]
    at_radii = {r: plain if r == radius else run(attacks.pgd, radius=r, steps=steps) for r in radii}
    at_radii = {255 * r: strength(result.after) for r, result in at_radii.items()}
    # One step of 2.5 times the radius, brought back into the ball, is FGSM.
    single, longer = (run(attacks.pgd, steps=count) for count in (1, long))
    best = run(ascend, steps=steps, step_size=None, norm="linf", key=None, keep_best=True)
    restarted = run(attacks.pgd, steps=steps, restarts=STARTS, key=jax.random.fold_in(key, 1))
    climbed = run(attacks.ascent, iterations=long)
    # Per image, so that no accident of one attack decides. Random starts are left out: they need no gradient.
    strongest = reduce(partial(better, objective), (plain, single, longer, best, climbed))
    ball = {"radius": check_distance("radius", radius, images, highest=1), "direction": objective}
    doubled = climb(model, images, clean, **ball, start=strongest.images, iterations=long, by_sign=False)
    unbounded = run(attacks.pgd, radius=1.0, steps=long)

    judge = Judge(np.asarray(clean, np.float64))
    pgd, iterated, white_box = f"PGD-{steps}", strength(plain.after), strength(strongest.after)
    reach = _reachable(direction, clean)

    def against_white_box(name, label, scores):
        return judge.grows(name, {label: strength(scores), "white box": white_box}, must_move=False)

    def from_images(name, label, attacked):
        return against_white_box(name, label, evaluate(model, attacked))

    checks = [
        gradients_exist(ZERO_GRADIENTS, np.asarray(plain.zero_gradient_fraction, np.float64)),
        judge.grows(RADIUS, {f"PGD at {r:g}/255": gain for r, gain in at_radii.items()}),
        # At radius 1 every other image is within reach, with its score.
        judge.grows(UNBOUNDED, {"best of the other images": reach, "PGD at 255/255": strength(unbounded.after)}),
        judge.grows(STEPS, {pgd: iterated, f"PGD-{long}": strength(longer.after)}),
        judge.grows(ITERATED, {"FGSM": strength(single.after), pgd: iterated}),
    ]
    if queries:
        square = run(attacks.square, queries=queries, key=key)
        checks.append(against_white_box(BLACK_BOX, f"Square, {queries} queries", square.after))
    else:
        checks.append(Check(BLACK_BOX, NOT_RUN, {}, "No queries were allowed for a black-box attack."))
    if transfer_images is not None:
        checks.append(from_images(TRANSFER, "transfer", jnp.asarray(transfer_images, images.dtype)))
    else:
        checks.append(Check(TRANSFER, NOT_RUN, {}, "There was no other model to take attacked images from."))
    for name, label, other, reason in (
        (ADAPTIVE, "adaptive", adaptive_score_fn, "The model has nothing that an adaptive attack would replace."),
        (GATELESS, "without the gate", gateless_score_fn, "The model has no gate that could be left out."),
    ):
        if other is not None:
            checks.append(from_images(name, label, run(attacks.pgd, other, steps=steps).images))
        else:
            checks.append(Check(name, NOT_RUN, {}, reason))

    promise, kept, noise = _around(model, images, clean, radius, jax.random.fold_in(key, 2))
    return [
        *checks,
        judge.converged(CONVERGED, white_box, np.maximum(white_box, strength(doubled.after))),
        judge.grows(LAST, {f"{pgd}, best iterate": strength(best.after), pgd: iterated}, must_move=False),
        judge.grows(
            RESTARTS,
            {f"{pgd}, {STARTS} more starts": np.maximum(iterated, strength(restarted.after)), pgd: iterated},
            must_move=False,
        ),
        judge.reaches(FLOOR, at_radii, reach),
        judge.quiet(NOISE, noise, white_box, promise),
        neighbours_agree(NEIGHBOURS, kept, 255 * NEAR * radius),
        judge.deterministic(SAME_SCORE, *_differences(model, images)),
        judge.spread(SATURATED, promise),
    ]


def _around(model, images, clean, radius, key) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the gradient promises, how much of that a neighbour's keeps, and the mean change under noise; per image."""

    def noisy(number, size):
        keys = per_image_keys(jax.random.fold_in(key, number), len(images))
        return random_start(keys, images, jnp.asarray(size, images.dtype).reshape(1, 1, 1, 1), norm="linf")

    look = Partial(value_and_gradient, model)  # the program of the attacks' steps
    gradient, near = (np.asarray(evaluate(look, x)[1], np.float64) for x in (images, noisy(0, NEAR * radius)))
    total = np.abs(gradient).sum(axis=(1, 2, 3))
    kept = (gradient * np.sign(near)).sum(axis=(1, 2, 3)) / np.where(total > 0, total, 1)
    scores = [evaluate(model, noisy(draw, radius)) for draw in range(1, DRAWS + 1)]
    noise = np.mean(np.abs(np.asarray(scores, np.float64) - np.asarray(clean, np.float64)), axis=0)
    return radius * total, kept, noise


def _differences(model, images) -> tuple[np.ndarray, np.ndarray]:
    """How much the scores of the images differ when they are scored again, and in other places of other batches."""
    scores, again = (np.asarray(evaluate(model, images), np.float64) for _ in range(2))
    elsewhere = np.zeros_like(scores)
    for parity in range(2):
        stay = np.arange(len(images)) % 2 == parity
        company = jnp.where(stay.reshape(-1, 1, 1, 1), images, 1 - images)
        moved = np.roll(np.asarray(evaluate(model, jnp.roll(company, 1, axis=0)), np.float64), -1)
        elsewhere[stay] = np.abs(moved - scores)[stay]
    return np.abs(again - scores), elsewhere


def _reachable(direction, clean) -> np.ndarray:
    """For each image, how much the objective would rise if its score became the best one among the clean scores."""
    values = np.stack([np.asarray(direction(jnp.full_like(clean, score), clean), np.float64) for score in clean])
    return values.max(axis=0) - np.asarray(direction(clean, clean), np.float64)


def _check_transfer(transfer_images, images, radius) -> None:
    if np.shape(transfer_images) != images.shape:
        raise ValueError(
            f"transfer_images must have the shape of images, {images.shape}, got {np.shape(transfer_images)}."
        )
    farthest = float(np.abs(np.asarray(transfer_images, np.float64) - np.asarray(images, np.float64)).max(initial=0))
    if not farthest <= radius + 1e-6:  # also when it is not a number
        raise ValueError(
            f"transfer_images lie up to {farthest:g} away from images, farther than the radius {radius:g}."
        )
