"""The fast gradient sign method."""

from collections.abc import Callable

from jaxtyping import Array, ArrayLike, Float

from cprl_jax.attacks.pgd import pgd
from cprl_jax.attacks.result import AttackResult


def fgsm(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"],
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]],
    norm: str = "linf",
) -> AttackResult:
    """One gradient step as long as the radius: x' = clip(x + radius * sign(gradient), 0, 1).

    Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, with the gradient of the direction's
    objective in place of a classification loss. It is `pgd` with one step and no random start, and takes, returns and
    raises the same; one gradient and one evaluation of the network.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch].
      images: float32 or float64 RGB images in [0, 1].
      radius: length of the step in [0, 1] pixel units, one number or one per image.
      direction: what to push towards: `up()`, `down()`, `reflect(mos)`, `target_free()`, or a function like them.
      norm: "linf", or "l2" for x + radius * gradient / ||gradient||_2.
    """
    return pgd(score_fn, images, radius=radius, steps=1, step_size=radius, norm=norm, direction=direction)
