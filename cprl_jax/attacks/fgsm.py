"""The fast gradient sign method."""

from collections.abc import Callable, Sequence

from jaxtyping import Array, ArrayLike, Float

from cprl_jax.attacks.pgd import pgd
from cprl_jax.attacks.result import AttackResult


def fgsm(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | Sequence[float],
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]],
    norm: str = "linf",
    progress: bool = False,
) -> AttackResult:
    """One gradient step as long as the radius: x' = clip(x + radius * sign(gradient), 0, 1).

    Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, with the gradient of the direction's
    objective in place of a classification loss. It is `pgd` with one step and no random start, and takes, returns and
    raises the same; one gradient and one evaluation of the network.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch].
      images: float32 or float64 RGB images in [0, 1].
      radius: length of the step in [0, 1] pixel units: one number, an array with one per image, or a list of several
        radii, which become the first axis of every field of the result.
      direction: what to push towards: `up()`, `down()`, `reflect(mos)`, `target_free()`, `away()`, `towards(target)`,
        or a function like them.
      norm: "linf", or "l2" for x + radius * gradient / ||gradient||_2.
      progress: shows a progress bar, as `pgd` does.
    """
    # The default step of pgd, 2.5 radii for a single one, ends exactly on the ball.
    return pgd(score_fn, images, radius=radius, steps=1, norm=norm, direction=direction, progress=progress)
