"""What an entry of the registry of distortions says of itself."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from cprl_jax.data.distortions._arrays import Key

LEVELS = (1, 2, 3, 4, 5)


@dataclasses.dataclass(frozen=True)
class Distortion:
    """One kind of distortion.

    Attributes:
      apply: `(image, parameter, key) -> image`, a pure function. The image is Float[height, width, 3], RGB in 0..255;
        the result is floating or uint8, may leave 0..255, and is rounded and clipped to 8 bits by `distort`. `key`
        feeds the random numbers, where there are any.
      parameters: what `apply` gets at levels 1 to 5, in the unit that `unit` names.
      unit: meaning of the parameter.
      source: where function and parameters come from.
      family: "embedded", "kadid", "tid2013", "mlive" or another; but for "embedded", names begin with it: "kadid/jpeg".
      two_sided: the levels are not ordered by strength: the parameter passes through "nothing happens" and changes
        its sign there.
      differentiable: `apply` also takes JAX arrays Float[..., height, width, 3], under jit, vmap and grad, with
        gradients that are finite and not all zero. Others take NumPy arrays [height, width, 3] only.
    """

    apply: Callable[[np.ndarray | jax.Array, float, Key], np.ndarray | jax.Array]
    parameters: tuple[float, float, float, float, float]
    unit: str
    source: str = "ours"
    family: str = "embedded"
    two_sided: bool = False
    differentiable: bool = False
