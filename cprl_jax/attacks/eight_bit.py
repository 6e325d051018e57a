"""The result of an attack as the 8-bit files that its images would be saved as."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.attacks._radii import each_radius
from cprl_jax.attacks.arguments import check_images
from cprl_jax.attacks.enhance import EnhanceResult
from cprl_jax.attacks.gradients import as_constant, evaluate_per_image
from cprl_jax.attacks.projection import round_to_8_bit
from cprl_jax.attacks.result import AttackResult, finish, largest_change

Result = TypeVar("Result", AttackResult, EnhanceResult)


def as_8_bit(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    result: Result,
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | Sequence[float],
) -> Result:
    """What is left of an attack in a file: its images as `round_to_8_bit` rounds them, and their scores and changes.

    Rounding an attacked image to the nearest grey levels, as saving does, may double a change of 0.5/255, and takes
    back most of a small one. Here values are rounded towards the original where the nearest level is outside of the
    radius, so that 8-bit originals change by whole grey levels within it, and not at all below 1/255. Report the two
    results side by side. One evaluation of the network for each radius.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch].
      images: the original images, as they were given to the attack.
      result: what the attack returned: `fgsm`, `pgd`, `score_reflection`, `square`, `enhance` or the `attack` of a
        universal perturbation. (`perceptual` and `carlini_wagner` round by themselves, with `quantize=True`.)
      radius: the one that the attack was given, in the l-inf norm: a number, one per image, or the same list of several
        radii. 1 bounds nothing: for `enhance`, and for attacks in the l2 norm, whose ball rounding may leave.

    Returns:
      The result with other `images`, `after` and `max_change`; `before`, `zero_gradient_fraction` and a `trajectory`
      are those of the attack.

    Raises:
      ValueError: another attack's result, a number of radii that is not the result's, or what `round_to_8_bit` raises.
    """
    images, score_fn = check_images(images), as_constant(score_fn)
    if not isinstance(result, (AttackResult, EnhanceResult)):
        raise ValueError(
            f"as_8_bit takes an AttackResult or an EnhanceResult, got {type(result).__name__}: give quantize=True to "
            "the attack where it has this option, or round its images with round_to_8_bit."
        )

    def rounded(attacked, radius):
        attacked = round_to_8_bit(attacked, images, radius)
        return attacked, evaluate_per_image("score_fn", score_fn, attacked), largest_change(attacked, images)

    if result.images.ndim == 4:
        fields = rounded(result.images, radius)
    else:
        if np.ndim(radius) == 0 or len(radius) != len(result.images):
            raise ValueError(f"radius must be the list of {len(result.images)} radii of this result, got {radius!r}.")
        each = [rounded(*pair) for pair in zip(result.images, each_radius(radius), strict=True)]
        fields = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return finish(result._replace(**dict(zip(("images", "after", "max_change"), fields, strict=True))), images)
