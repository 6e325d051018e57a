"""Several radii in one call."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Result = TypeVar("Result")


def each_radius(radius: Any) -> list:
    """The radii of a list or an array, one of one element as a number."""
    return [each[0] if np.shape(each) == (1,) else each for each in radius]


def over_radii(attack: Callable[[Any], Result], radius: Any) -> Result:
    """`attack(radius)`, or its results for several radii stacked along a new first axis.

    A list, a tuple or an array [radii, 1] or [radii, batch] stands for several radii; each of them is a number or one
    number per image. They are attacked one after another: memory does not grow with their number (but for the results),
    and nothing is compiled again.

    Raises:
      ValueError: an empty list of radii.
    """
    several = isinstance(radius, (list, tuple)) or np.ndim(radius) == 2
    if not several:
        return attack(radius)
    if len(radius) == 0:
        raise ValueError("radius is an empty list: give one radius, or a list of at least one.")
    results = [attack(each) for each in each_radius(radius)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
