"""Distributions of opinions over grades, and the loss between them that NIMA is trained with.

Source: Talebi & Milanfar, "NIMA: Neural Image Assessment", TIP 2018, Eq. 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def earth_movers_distance(
    p: Float[Array, "batch grades"], q: Float[Array, "batch grades"], *, r: float = 2.0
) -> Float[Array, " batch"]:
    """(mean over grades of |CDF_p - CDF_q|^r)^(1/r), Eq. 1: in steps between grades, as a share of their number.

    r = 1 is the work of moving one distribution to the other, divided by the number of grades; training takes r = 2.
    The gradient is 0 where both are equal.

    Args:
      p, q: probabilities, of grades in rising order.
      r: the norm, at least 1.

    Raises:
      ValueError: r < 1.
    """
    if r < 1:
        raise ValueError(f"r must be at least 1, got {r}")
    mean = jnp.mean(jnp.abs(jnp.cumsum(p - q, axis=-1)) ** r, axis=-1)
    differ = mean > 0
    return jnp.where(differ, jnp.where(differ, mean, 1.0) ** (1.0 / r), 0.0)


def opinion_distribution(mos: Float[Array, " batch"], grades: Float[Array, " grades"]) -> Float[Array, "batch grades"]:
    """The distribution with this mean that spreads least: all opinions on the two grades around the MOS.

    Most data sets publish the mean of the opinions alone. A MOS beyond the grades counts as the last of them.

    Args:
      mos: on the scale of `grades`.
      grades: evenly spaced, rising.
    """
    place = (jnp.clip(mos, grades[0], grades[-1]) - grades[0]) / (grades[1] - grades[0])
    steps = jnp.arange(grades.shape[0], dtype=place.dtype)
    return jnp.maximum(0.0, 1.0 - jnp.abs(place.reshape(-1, 1) - steps.reshape(1, -1)))
