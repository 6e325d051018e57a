"""Score functions behind a transformation of their images, the simplest of defences.

    from cprl_jax.models import transformed

    defended = transformed.jpeg(score_fn, quality=75)

Their gradients go straight through what cannot be differentiated (`layers.transformations`): an attack that follows
them knows the defence. As a method of a run they are called as these functions are.
"""

import functools
from collections.abc import Callable

from jax.tree_util import Partial
from jaxtyping import Array, Float

from cprl_jax.attacks.loop import as_pytree
from cprl_jax.layers import transformations
from cprl_jax.layers.jpeg import jpeg as jpeg_of

ScoreFn = Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]


def jpeg(score_fn: ScoreFn, *, quality: int = 75) -> ScoreFn:
    """Scores of the images after JPEG compression, see `layers.jpeg.jpeg`.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch].
      quality: libjpeg's, 1 to 100.
    """
    return Partial(_behind(jpeg_of, quality=quality), as_pytree(score_fn))


def bit_depth(score_fn: ScoreFn, *, bits: int = 4) -> ScoreFn:
    """Scores of the images with 2^bits levels of each colour, see `layers.transformations.bit_depth`."""
    return Partial(_behind(transformations.bit_depth, bits=bits), as_pytree(score_fn))


def resize(score_fn: ScoreFn, *, scale: float = 0.5) -> ScoreFn:
    """Scores of the images made smaller by `scale` and brought back, see `layers.transformations.resize`."""
    return Partial(_behind(transformations.resize, scale=scale), as_pytree(score_fn))


def blur(score_fn: ScoreFn, *, sigma: float = 1.0) -> ScoreFn:
    """Scores of the images behind a Gaussian filter of `sigma` pixels, see `layers.transformations.blur`."""
    return Partial(_behind(transformations.blur, sigma=sigma), as_pytree(score_fn))


@functools.cache  # equal settings share compiled code
def _behind(transformation: Callable[..., Array], **settings: float) -> Callable[[ScoreFn, Array], Array]:
    def score(score_fn: ScoreFn, images: Array) -> Array:
        return score_fn(transformation(images, **settings))

    return score
