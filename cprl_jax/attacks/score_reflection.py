"""The score reflection attack."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from cprl_jax.attacks._radii import over_radii
from cprl_jax.attacks.arguments import check_count, check_finite, check_images
from cprl_jax.attacks.pgd import ascend
from cprl_jax.attacks.result import AttackResult, finish


def score_reflection(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | Sequence[float],
    mid: float = 50.0,
    steps: int = 10,
    step_size: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | None = None,
    norm: str = "linf",
    key: Key[Array, ""] | Key[Array, " batch"] | None = None,
    progress: bool = False,
) -> AttackResult:
    """Drives each score to its mirror image on the other side of the scale: f(x') near 2 * mid - f(x).

    Good becomes bad by as much as it was good, which reverses a ranking where the radius allows it. The attack is
    named in Wang and Yuan, "Causal Perception Inspired Representation Learning for Trustworthy Image Quality
    Assessment" (the first version of CPRL), whose available text gives no formula. Here it is projected descent (see
    `pgd`) on |f(x') - (2 * mid - f(x))|; of all iterates, the start included, each image keeps the one whose score is
    nearest to the mirror image. It needs no labels and, unlike `pgd`, stops short of what the radius would allow.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch].
      images: float32 or float64 RGB images in [0, 1].
      radius: size of the ball in [0, 1] pixel units: one number, an array with one per image, or a list of several
        radii, which become the first axis of every field of the result.
      mid: the middle of the scale of the score function.
      steps: number of gradient steps, at least 1.
      step_size: length of a step in the units of `radius`; default 2.5 * radius / steps.
      norm: "linf" or "l2".
      key: random start from this key, or from one key per image; None starts at the image itself.
      progress: shows a progress bar over the steps, when called with values rather than inside `jit` and the like.

    Returns:
      `AttackResult`. Without a key, an image with a score of exactly `mid`, its own mirror image, comes back as it was.

    Raises:
      ValueError: as `pgd`; unless traced, a `mid` that is not finite.
    """
    images = check_images(images)
    steps = check_count("steps", steps)
    direction = Partial(_mirror, check_finite("mid", mid))

    def attack(radius):
        return ascend(
            score_fn,
            images,
            radius=radius,
            direction=direction,
            steps=steps,
            step_size=step_size,
            norm=norm,
            key=key,
            keep_best=True,
            progress="score reflection" if progress else "",
        )

    return finish(over_radii(attack, radius), images)


def _mirror(mid, scores, clean_scores):
    distance = scores - (2 * mid - clean_scores)
    # -|distance|, with a gradient also where the score is its own mirror image: 0 would look like a masked gradient.
    return jnp.where(distance > 0, -distance, distance)
