"""Is a model robust, or does it only mask its gradients? Checks that an honest evaluation passes.

An attack that follows gradients finds nothing where the gradient is zero, useless or missing, and its failure then
looks like robustness. Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 3.1,
and Carlini et al., "On Evaluating Adversarial Robustness", 2019, section 5, list what cannot happen when gradients are
what they should be; each check here is one of those, carried over from success rates of classifiers to changes of
scores.
"""

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

Verdict = str  # PASSED, SUSPICIOUS or NOT_RUN


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
    verdict: Verdict
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
    "passed" means that no sign of masking was found, not that there is none.

    All attacks are in l-inf. They compile two programs (a step, an evaluation) and the black box's, and cost at most
    15 * steps + 1 gradients of the batch. Runs on concrete values, not under `jit`.

    Args:
      score_fn: the model; images [batch, height, width, 3] in [0, 1] to scores [batch].
      images: float32 or float64 RGB in [0, 1]; eight or more, of different quality.
      direction: what to push towards: `attacks.reflect(mos)`, `target_free()`, `up()`, `down()` or `away()`. Not
        `towards(target)`: steps pass a target, and long attacks come out weaker than they are.
      radius: that the model is judged at, in [0, 1] pixel units.
      steps: of PGD; the long attacks take five times as many.
      queries: of the black box (`attacks.square`); 0 leaves it out.
      key: of the black box.
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
    if not 0 < float(radius) <= 1:
        raise ValueError(f"radius must be in (0, 1] (in pixel units: 4/255 is four grey levels), got {radius}.")
    images = jnp.asarray(images)
    if transfer_images is not None:
        _check_transfer(transfer_images, images, float(radius))
    with warnings.catch_warnings():
        # Reported here instead.
        warnings.filterwarnings("ignore", message=".*no gradient", category=UserWarning)
        return _check(
            score_fn, images, direction, float(radius), steps, queries, key, transfer_images, adaptive_score_fn
        )


def _check(score_fn, images, direction, radius, steps, queries, key, transfer_images, adaptive_score_fn):
    def pgd(radius, steps):
        return attacks.pgd(score_fn, images, radius=radius, steps=steps, direction=direction)

    def strength(scores):
        return np.asarray(direction(scores, clean) - direction(clean, clean), np.float64)

    plain = pgd(radius, steps)
    clean = plain.before
    judge = _Judge(_floor(np.asarray(clean, np.float64)))
    at_radii = {r: strength((plain if r == radius else pgd(r, steps)).after) for r in _radii(radius)}
    # One step of 2.5 times the radius, brought back into the ball, is FGSM.
    single, iterated, long = (
        strength(pgd(radius, 1).after),
        at_radii[radius],
        strength(pgd(radius, LONGER * steps).after),
    )
    white_box = np.maximum(np.maximum(single, iterated), long)  # per image, so that no accident of one attack decides
    unlimited = strength(pgd(1.0, LONGER * steps).after)

    checks = [
        _gradients(np.asarray(plain.zero_gradient_fraction, np.float64)),
        judge.grows(RADIUS, {f"PGD at {255 * r:g}/255": gain for r, gain in at_radii.items()}),
        _unbounded(judge, unlimited, _reachable(direction, clean)),
        judge.grows(STEPS, {f"PGD-{steps}": iterated, f"PGD-{LONGER * steps}": long}),
        judge.grows(ITERATED, {"FGSM": single, f"PGD-{steps}": iterated}),
    ]

    def against_white_box(name, label, scores):
        return judge.grows(name, {label: strength(scores), "white box": white_box}, must_move=False)

    if queries:
        scores = attacks.square(score_fn, images, radius=radius, direction=direction, queries=queries, key=key).after
        checks.append(against_white_box(BLACK_BOX, f"Square, {queries} queries", scores))
    else:
        checks.append(_left_out(BLACK_BOX, "No queries were allowed for a black-box attack."))
    if transfer_images is not None:
        scores = evaluate(as_pytree(score_fn), jnp.asarray(transfer_images, images.dtype))
        checks.append(against_white_box(TRANSFER, "transfer", scores))
    else:
        checks.append(_left_out(TRANSFER, "There was no other model to take attacked images from."))
    if adaptive_score_fn is not None:
        adapted = attacks.pgd(adaptive_score_fn, images, radius=radius, steps=steps, direction=direction).images
        checks.append(against_white_box(ADAPTIVE, "adaptive", evaluate(as_pytree(score_fn), adapted)))
    else:
        checks.append(_left_out(ADAPTIVE, "The model has nothing that an adaptive attack would have to replace."))
    return checks


class _Judge:
    """Orders attacks by strength; `floor` is what counts as no strength at all, in score points."""

    def __init__(self, floor: float):
        self._floor = floor

    def stronger(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether the first attack, which should not be the stronger one, noticeably is."""
        difference = first - second
        error = difference.std(ddof=1) / np.sqrt(difference.size) if difference.size > 1 else 0.0
        return bool(difference.mean() > max(MARGIN * abs(second.mean()), self._floor, STANDARD_ERRORS * error))

    def idle(self, gain: np.ndarray) -> bool:
        """Whether an attack achieved nothing."""
        return bool(gain.mean() <= self._floor)

    def grows(self, name: str, gains: dict[str, np.ndarray], *, must_move: bool = True) -> Check:
        """Suspicious if one attack is noticeably stronger than the next, or none achieves anything."""
        numbers = _means(gains)
        if trouble := _not_finite(name, numbers):
            return trouble
        listed = ", ".join(f"{label} {mean:.3g}" for label, mean in numbers.items())
        pairs = zip(gains.items(), list(gains.items())[1:], strict=False)
        broken = [(a, b) for (a, first), (b, second) in pairs if self.stronger(first, second)]
        if broken:
            inversions = " and ".join(f"{a} moves scores farther than {b}" for a, b in broken)
            return Check(name, SUSPICIOUS, numbers, f"{inversions}, although it should not ({listed} points).")
        if must_move and self.idle(list(gains.values())[-1]):
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


def _unbounded(judge: _Judge, gain: np.ndarray, reachable: np.ndarray) -> Check:
    """At radius 1 every image is within reach: the attack must do at least as well as the best one at hand."""
    gains = {"best of the other images": reachable, "PGD at 255/255": gain}
    if trouble := _not_finite(UNBOUNDED, _means(gains)):
        return trouble
    numbers = _means(gains)
    listed = f"{numbers['PGD at 255/255']:.3g} points, at least {numbers['best of the other images']:.3g} are possible"
    if judge.idle(gain):
        return Check(UNBOUNDED, SUSPICIOUS, numbers, f"Even without a limit the attack moves no score ({listed}).")
    if judge.stronger(reachable, gain):
        text = f"Without a limit the attack does worse than replacing the image by another one would ({listed})."
        return Check(UNBOUNDED, SUSPICIOUS, numbers, text)
    return Check(UNBOUNDED, PASSED, numbers, f"Without a limit the attack gets where it wants ({listed}).")


def _reachable(direction, clean) -> np.ndarray:
    """For each image, how much the objective would rise if its score became the best one among the clean scores."""
    values = np.stack([np.asarray(direction(jnp.full_like(clean, score), clean), np.float64) for score in clean])
    return values.max(axis=0) - np.asarray(direction(clean, clean), np.float64)


def _left_out(name: str, reason: str) -> Check:
    return Check(name, NOT_RUN, {}, reason)


def _not_finite(name: str, numbers: dict[str, float]) -> Check | None:
    if all(map(np.isfinite, numbers.values())):
        return None
    return Check(name, SUSPICIOUS, numbers, "Attacked images have scores that are not finite numbers.")


def _means(gains: dict[str, np.ndarray]) -> dict[str, float]:
    return {label: float(gain.mean()) for label, gain in gains.items()}


def _radii(radius: float) -> list[float]:
    return list(dict.fromkeys(min(multiple * radius, 1.0) for multiple in MULTIPLES))


def _floor(clean: np.ndarray) -> float:
    """Far below what matters, far above float32's rounding."""
    return 1e-3 * max(float(clean.std()), 1e-3 * float(np.abs(clean).max()))


def _check_transfer(transfer_images, images, radius) -> None:
    if np.shape(transfer_images) != images.shape:
        raise ValueError(
            f"transfer_images must have the shape of images, {images.shape}, got {np.shape(transfer_images)}."
        )
    farthest = float(np.abs(np.asarray(transfer_images, np.float64) - np.asarray(images, np.float64)).max(initial=0))
    if farthest > radius + 1e-6:
        raise ValueError(
            f"transfer_images lie up to {farthest:g} away from images, farther than the radius {radius:g}."
        )
