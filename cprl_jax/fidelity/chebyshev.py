"""The Chebyshev distance: the largest change of any value."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.fidelity._fidelity import Fidelity
from cprl_jax.fidelity._images import check_pair, not_finite_is_nan


def chebyshev(
    images: Float[ArrayLike, "batch height width channels"], references: Float[ArrayLike, "batch height width channels"]
) -> Float[Array, " batch"]:
    """max |image - reference| over the pixels and channels of each image: the l-inf norm of the change, in [0, 1].

    It is what the radius of an l-inf attack bounds. Values that share the maximum share its gradient; at the reference
    the gradient is 0.

    Args:
      images: floats in [0, 1]. Half precision is computed as float32.
      references: the same shape.

    Raises:
      ValueError: different shapes, another rank, dtype or range.
    """
    return _largest(*check_pair(images, references))


@jax.jit
def _largest(images, references):
    change = images - references
    # |change|, but with derivative 0 at 0, where JAX's own is 1.
    largest = jnp.max(change * lax.stop_gradient(jnp.sign(change)), axis=(1, 2, 3))
    return not_finite_is_nan(largest, images, references)


FIDELITIES = {"chebyshev": Fidelity(chebyshev)}
