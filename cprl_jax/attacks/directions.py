"""Which way an attack pushes the score of each image.

A direction is a function `direction(scores: Float[B], clean_scores: Float[B]) -> Float[B]`: the objective that the
attack ascends, one number per image, from the current scores and those of the unattacked images (constants for
differentiation). The ones here are pytrees, so that they go through `jit`, `pmap` and the like as arguments. Any
function of that form will do; the objective of an image must depend on that image's scores alone.

An objective without a gradient at the image itself names others that lead uphill: see `Alternatives`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.attacks.arguments import check_finite
from cprl_jax.attacks.gradients import as_constant


def up() -> Partial:
    """Raises the score of every image."""
    return Partial(_raise)


def down() -> Partial:
    """Lowers the score of every image."""
    return Partial(_lower)


def reflect(mos: Float[ArrayLike, " batch"], mid: float = 50.0) -> Partial:
    """Pushes each score away from its label's side of the scale: down where mos > mid, up elsewhere.

    CPRL's Table 1, row "adversarial training": the sign of mos - mid decides. At mos == mid that sign is 0 and would
    leave the image unattacked; here its score goes up.

    Args:
      mos: labels, higher is better, on the scale of the score function; one per image, or one number for all.
      mid: the middle of that scale.

    Raises:
      ValueError: unless traced, a label or a middle that is not finite.
    """
    return Partial(_reflect, check_labels("mos", mos), check_finite("mid", mid))


def target_free(mid: float = 50.0) -> Partial:
    """Pushes each score away from the side of its clean score: down where the clean score > mid, up elsewhere.

    Needs no labels: the model's score of the unattacked image decides (Liu et al., "Defense Against Adversarial Attacks
    on No-Reference Image Quality Models with Gradient Norm Regularization", CVPR 2024; "Target-Free" in CPRL).

    Args:
      mid: the middle of the scale of the score function.

    Raises:
      ValueError: unless traced, a middle that is not finite.
    """
    return Partial(_target_free, check_finite("mid", mid))


def towards(target: Float[ArrayLike, " batch"] | Float[ArrayLike, ""]) -> Partial:
    """Brings each score to a target: the objective is -|score - target|.

    Steps of a fixed length pass the target and come back, so an attack ends within what one step changes; a smaller
    step size ends nearer.

    Args:
      target: scores to reach, on the scale of the score function; one per image, or one number for all.

    Raises:
      ValueError: unless traced, a target that is not finite.
    """
    return Partial(_towards, check_labels("target", target))


def away() -> "Alternatives":
    """Moves each score as far as possible from that of the unattacked image, whichever way: |score - clean score|.

    That objective has no gradient at the image itself. So an attack goes both ways, `up()` and `down()`, and keeps the
    larger change of each image.
    """
    # One function for both ways, so that they are compiled once.
    return Alternatives(Partial(_distance_to_clean), tuple(Partial(_push, jnp.asarray(rise)) for rise in (True, False)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Alternatives:
    """A direction that is followed by trying others; each image keeps the result with the highest objective.

    Gradient attacks try each of `directions`; as a function of the scores it is `objective`, which attacks without
    gradients use as it is.

    Attributes:
      objective: what decides between the results.
      directions: the directions to try, at least one.
    """

    objective: Callable
    directions: tuple[Callable, ...]

    def __call__(self, scores: Float[Array, " batch"], clean_scores: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return self.objective(scores, clean_scores)


def constant(direction: Callable) -> Callable:
    """The direction as a pytree whose arrays are constants for differentiation; its alternatives stay alternatives.

    Raises:
      ValueError: it is no function, or one of this file that makes a direction, and was not called.
    """
    if direction in (up, down, reflect, target_free, towards, away):
        raise ValueError(f"direction must be {direction.__name__}(...), what this function returns: call it.")
    if not callable(direction):
        raise ValueError(f"direction must be attacks.up(), attacks.down() or the like, got {direction!r}.")
    if isinstance(direction, Alternatives):
        return Alternatives(as_constant(direction.objective), tuple(map(as_constant, direction.directions)))
    return as_constant(direction)


def alternatives(direction: Callable) -> tuple[Callable, ...]:
    """The directions to try, of one from `constant`: its alternatives, or the direction itself."""
    return direction.directions if isinstance(direction, Alternatives) else (direction,)


def check_labels(name: str, values: ArrayLike) -> Array:
    """Labels or targets as floats. Raises ValueError, unless traced, where one is not finite."""
    values = check_finite(name, values)
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.float32)


def _raise(scores, clean_scores):
    del clean_scores
    return scores


def _lower(scores, clean_scores):
    del clean_scores
    return -scores


def _reflect(mos, mid, scores, clean_scores):
    del clean_scores
    _check_one_per_image("reflect", "label", mos, scores)
    return jnp.where(mos > mid, -scores, scores)


def _target_free(mid, scores, clean_scores):
    return jnp.where(clean_scores > mid, -scores, scores)


def _towards(target, scores, clean_scores):
    del clean_scores
    _check_one_per_image("towards", "target", target, scores)
    distance = scores - target.astype(scores.dtype)
    # -|distance|, with no gradient at the target itself: there the slope of jnp.abs is 1, and would lead away again.
    return -distance * lax.stop_gradient(jnp.sign(distance))


def _distance_to_clean(scores, clean_scores):
    return jnp.abs(scores - clean_scores)


def _push(rise, scores, clean_scores):
    del clean_scores
    return jnp.where(rise, scores, -scores)


def _check_one_per_image(direction, what, values, scores):
    if values.ndim and values.shape != scores.shape:  # one in an array would broadcast over the batch unnoticed
        raise ValueError(
            f"{direction} needs one {what} per image, or one number: got shape {values.shape} for scores "
            f"{scores.shape}."
        )
