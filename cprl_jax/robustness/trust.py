"""Is a model robust, or does it only mask its gradients? Checks that an honest evaluation passes.

An attack that follows gradients finds nothing where the gradient is zero, useless or missing, and its failure then
looks like robustness. Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 3.1,
and Carlini et al., "On Evaluating Adversarial Robustness", 2019, section 5, list what cannot happen when gradients are
what they should be; each check here is one of those, carried over from success rates of classifiers to changes of
scores.
"""

import itertools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from cprl_jax import attacks
from cprl_jax.attacks.gradients import evaluate
from cprl_jax.attacks.loop import as_pytree

PASSED, SUSPICIOUS, NOT_RUN = "passed", "suspicious", "not run"

ZERO_GRADIENTS = "gradients exist"
RADIUS = "strength grows with the radius"
UNBOUNDED = "an unbounded attack wins"
STEPS = "strength grows with the steps"
ITERATED = "many steps beat one"
BLACK_BOX = "black box does not beat white box"
TRANSFER = "transfer does not beat white box"
ADAPTIVE = "adaptive does not beat plain"

# A difference between two attacks counts when its mean over the images exceeds both of these.
MARGIN = 0.05  # share of the strength of the attack that ought to be the stronger one
STANDARD_ERRORS = 2.0  # how many standard errors of the mean paired difference

VANISHED = 0.5  # mean share of values without gradient from which the check of the gradients fails
MULTIPLES = (0.5, 1.0, 2.0, 4.0)  # times the radius
LONGER = 5  # times the steps, for the long attack


class Check(NamedTuple):
    """One check.

    Attributes:
      name: what must hold, one of the constants above.
      verdict: "passed", "suspicious" or "not run".
      numbers: what it is judged by. For `ZERO_GRADIENTS` shares of an image's values and a number of images; for all
        others the mean strength of each attack by its name, in score points.
      explanation: a sentence for a reader who knows what an attack is.
    """

    name: str
    verdict: str
    numbers: dict[str, float]
    explanation: str


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
) -> list[Check]:
    """Attacks the images in ways whose strengths must come in a certain order, and says where they do not.

    The strength of an attack on an image is how far it raises the direction's objective above its value at the clean
    image, in score points. One attack counts as stronger than another when the mean over the images of their difference
    exceeds 5 % of the mean strength of the one that should be stronger, a thousandth of the standard deviation of the
    clean scores, and two standard errors of that mean (paired by image). With few images only large differences count:
    "passed" means that there was no sign of masking, not that there is no masking.

    All attacks are in l-inf. They compile two programs (a step, an evaluation) and the black box's, and cost at most
    15 * steps + 1 gradients of the batch. Runs on concrete values, not under `jit`.

    Args:
      score_fn: the model; images [batch, height, width, 3] in [0, 1] to scores [batch].
      images: float32 or float64 RGB in [0, 1]; eight or more, of different quality.
      direction: what to push towards: `attacks.reflect(mos)`, `target_free()`, `up()`, `down()` or `away()`. Not
        `towards(target)`: steps pass a target, and long attacks come out weaker than they are.
      radius: the one that the model is judged at, in [0, 1] pixel units.
      steps: PGD steps; the long attacks take five times as many.
      queries: images that the black box (`attacks.square`) scores; 0 leaves it out.
      key: random key of the black box.
      transfer_images: these images attacked on another model within `radius`; None leaves that check out.
      adaptive_score_fn: the model with its masks and randomness replaced by something that has a useful gradient
        (`attacks.adaptive`); it is attacked, and `score_fn` scores what comes out. None leaves that check out.

    Returns:
      The checks, in this order: `ZERO_GRADIENTS`, `RADIUS`, `UNBOUNDED`, `STEPS`, `ITERATED`, `BLACK_BOX`, `TRANSFER`,
      `ADAPTIVE`.

    Raises:
      ValueError: a radius that is not in (0, 1], transferred images of another shape or farther away than the radius,
        or what the attacks raise.
    """
    radius, images = float(radius), jnp.asarray(images)
    if not 0 < radius <= 1:
        raise ValueError(f"radius must be in (0, 1] (in pixel units: 4/255 is four grey levels), got {radius}.")
    if transfer_images is not None:
        _check_transfer(transfer_images, images, radius)

    def pgd(radius, steps, score_fn=score_fn):
        with warnings.catch_warnings():  # the check of the gradients reports it instead
            warnings.filterwarnings("ignore", message=".*no gradient", category=UserWarning)
            return attacks.pgd(score_fn, images, radius=radius, steps=steps, direction=direction)

    def strength(scores):
        return np.asarray(direction(scores, clean) - direction(clean, clean), np.float64)

    plain = pgd(radius, steps)
    clean = plain.before
    judge = _Judge(np.asarray(clean, np.float64))
    radii = dict.fromkeys(min(multiple * radius, 1.0) for multiple in MULTIPLES)
    at_radii = {r: strength((plain if r == radius else pgd(r, steps)).after) for r in radii}
    # One step of 2.5 times the radius, brought back into the ball, is FGSM.
    single, long = (strength(pgd(radius, count).after) for count in (1, LONGER * steps))
    iterated = at_radii[radius]
    white_box = np.max([single, iterated, long], axis=0)  # per image, so that no accident of one attack decides
    unlimited = strength(pgd(1.0, LONGER * steps).after)

    checks = [
        _gradients(np.asarray(plain.zero_gradient_fraction, np.float64)),
        judge.grows(RADIUS, {f"PGD at {255 * r:g}/255": gain for r, gain in at_radii.items()}),
        # At radius 1 every other image is within reach, with its score.
        judge.grows(UNBOUNDED, {"best of the other images": _reachable(direction, clean), "PGD at 255/255": unlimited}),
        judge.grows(STEPS, {f"PGD-{steps}": iterated, f"PGD-{LONGER * steps}": long}),
        judge.grows(ITERATED, {"FGSM": single, f"PGD-{steps}": iterated}),
    ]

    def against_white_box(name, label, scores):
        checks.append(judge.grows(name, {label: strength(scores), "white box": white_box}, must_move=False))

    def leave_out(name, reason):
        checks.append(Check(name, NOT_RUN, {}, reason))

    if queries:
        square = attacks.square(score_fn, images, radius=radius, direction=direction, queries=queries, key=key)
        against_white_box(BLACK_BOX, f"Square, {queries} queries", square.after)
    else:
        leave_out(BLACK_BOX, "No queries were allowed for a black-box attack.")
    if transfer_images is not None:
        scores = evaluate(as_pytree(score_fn), jnp.asarray(transfer_images, images.dtype))
        against_white_box(TRANSFER, "transfer", scores)
    else:
        leave_out(TRANSFER, "There was no other model to take attacked images from.")
    if adaptive_score_fn is not None:
        adapted = pgd(radius, steps, adaptive_score_fn).images
        against_white_box(ADAPTIVE, "adaptive", evaluate(as_pytree(score_fn), adapted))
    else:
        leave_out(ADAPTIVE, "The model has nothing that an adaptive attack would have to replace.")
    return checks


class _Judge:
    """Orders attacks by their strengths on images with these clean scores."""

    def __init__(self, clean: np.ndarray):
        # What counts as no strength at all: far below what matters, far above float32's rounding.
        self._floor = 1e-3 * max(float(clean.std()), 1e-3 * float(np.abs(clean).max()))

    def stronger(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether the first attack, which should not be the stronger one, noticeably is."""
        difference = first - second
        error = difference.std(ddof=1) / np.sqrt(difference.size) if difference.size > 1 else 0.0
        return bool(difference.mean() > max(MARGIN * abs(second.mean()), self._floor, STANDARD_ERRORS * error))

    def grows(self, name: str, gains: dict[str, np.ndarray], *, must_move: bool = True) -> Check:
        """Suspicious if one attack is noticeably stronger than the next, or the last one achieves nothing."""
        numbers = {label: float(gain.mean()) for label, gain in gains.items()}
        listed = ", ".join(f"{label} {mean:.3g}" for label, mean in numbers.items())
        if not np.isfinite(list(numbers.values())).all():
            return Check(name, SUSPICIOUS, numbers, "Attacked images have scores that are not finite numbers.")
        pairs = itertools.pairwise(gains)
        if broken := [f"{a} moves scores farther than {b}" for a, b in pairs if self.stronger(gains[a], gains[b])]:
            text = f"{' and '.join(broken)}, although it should not ({listed} points)."
            return Check(name, SUSPICIOUS, numbers, text)
        if must_move and list(numbers.values())[-1] <= self._floor:
            return Check(name, SUSPICIOUS, numbers, f"None of these attacks moves any score ({listed} points).")
        return Check(name, PASSED, numbers, f"{listed} points.")


def _gradients(fractions: np.ndarray) -> Check:
    blind = int(np.count_nonzero(fractions == 1))
    numbers = {"mean share": float(fractions.mean()), "largest share": float(fractions.max()), "blind images": blind}
    share = f"{100 * fractions.mean():.3g} %"
    text = f"{share} of the values have no gradient; {blind} of {fractions.size} images have none at all"
    if fractions.mean() > VANISHED or blind:
        return Check(ZERO_GRADIENTS, SUSPICIOUS, numbers, f"{text}. Attacks are blind there.")
    return Check(ZERO_GRADIENTS, PASSED, numbers, f"{text}.")


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
