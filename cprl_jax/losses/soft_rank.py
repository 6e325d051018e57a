"""Ranks that can be differentiated."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def soft_ranks(values: Float[Array, "*sets members"], temperature: float) -> Float[Array, "*sets members"]:
    """The rank of each member in its set, 1 (smallest) to the number of members, smoothly.

    rank_i = 1/2 + sum over k of sigmoid((value_i - value_k) / temperature): Qin et al., "A general approximation
    framework for direct optimization of information retrieval measures", 2010, counted from below. As the temperature
    goes to 0 these become the ranks (of equal values the mean of theirs), as it grows all become the mean rank; the
    sum of the ranks is always the same. Memory and time grow with the square of the members.

    Args:
      values: any range.
      temperature: above 0: the difference of two values at which their order is clear.
    """
    differences = values[..., :, None] - values[..., None, :]
    return 0.5 + jnp.sum(jax.nn.sigmoid(differences / temperature), axis=-1)
