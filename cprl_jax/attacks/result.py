"""What an attack returns."""

from typing import NamedTuple

from jaxtyping import Array, Float


class AttackResult(NamedTuple):
    """Attacked images and what the attack did to their scores; a pytree, constant for differentiation.

    Attributes:
      images: the attacked images, in [0, 1].
      before: scores of the original images.
      after: scores of the attacked images, exactly those in `images`.
      max_change: largest change of any pixel value in each image, max |x' - x|, in [0, 1] pixel units.
      zero_gradient_fraction: share of each image's values (pixels times channels) at which the first gradient gave the
        attack nothing to follow: it was exactly 0, or not a number. 1 means that the attack never had a direction, so
        an unchanged score says nothing about robustness. With a random start it is measured at that start.
    """

    images: Float[Array, "batch height width 3"]
    before: Float[Array, " batch"]
    after: Float[Array, " batch"]
    max_change: Float[Array, " batch"]
    zero_gradient_fraction: Float[Array, " batch"]
