"""Which way an attack pushes the score of each image.

A direction is a function `direction(scores: Float[B], clean_scores: Float[B]) -> Float[B]`: the objective that the
attack ascends, one number per image, from the current scores and those of the unattacked images (constants for
differentiation). The ones here are `jax.tree_util.Partial`s, so that they go through `jit`, `pmap` and the like as
arguments. Any function of that form will do; the objective of an image must depend on that image's scores alone.
"""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike, Float


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
    """
    return Partial(_reflect, jnp.asarray(mos), jnp.asarray(mid))


def target_free(mid: float = 50.0) -> Partial:
    """Pushes each score away from its own side of the scale: down where the clean score > mid, up elsewhere.

    Needs no labels: the model's score of the unattacked image decides (Liu et al., "Defense Against Adversarial Attacks
    on No-Reference Image Quality Models with Gradient Norm Regularization", CVPR 2024; "Target-Free" in CPRL).

    Args:
      mid: the middle of the scale of the score function.
    """
    return Partial(_target_free, jnp.asarray(mid))


def _raise(scores, clean_scores):
    del clean_scores
    return scores


def _lower(scores, clean_scores):
    del clean_scores
    return -scores


def _reflect(mos, mid, scores, clean_scores):
    del clean_scores
    if mos.ndim and mos.shape != scores.shape:  # a single label in an array would broadcast over the batch unnoticed
        raise ValueError(f"reflect needs one label per image: got mos of shape {mos.shape} for scores {scores.shape}.")
    return jnp.where(mos > mid, -scores, scores)


def _target_free(mid, scores, clean_scores):
    return jnp.where(clean_scores > mid, -scores, scores)
