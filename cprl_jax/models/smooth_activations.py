"""Smooth activations in place of a network's own: its gradient has no jumps for an attack, or a training, to miss.

Xie et al., "Smooth Adversarial Training", arXiv:2006.14536, 2020. What it leaves open is listed in docs/papers.md.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.models.change import NetworkChange

SMOOTH = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=True),
    "softplus": nn.softplus,
    "elu": nn.elu,
    "mish": jax.nn.mish,
}
LEARNED = "smooth_relu"
FIRST_ROOT = 20.0  # of beta
SMALLEST_BETA = 1e-6  # by which `smooth_relu` divides


def smooth_relu(x: Float[Array, "*shape"], beta: Float[Array, ""]) -> Float[Array, "*shape"]:
    """x - log(1 + beta x) / beta for x > 0, else 0: its slope beta x / (1 + beta x) has no jump; ReLU as beta grows."""
    return nn.relu(x - jnp.log1p(beta * jnp.abs(x)) / beta)


@dataclasses.dataclass(frozen=True)
class SmoothActivations(NetworkChange):
    """Every activation of the trunk is another one.

    Attributes:
      kind: a name of `SMOOTH`, or 'smooth_relu' with a beta that each place learns (parameter `NAME_root_beta`, its
        square root).
    """

    kind: str = "silu"

    def activation(self, module, x, default, place):
        if self.kind != LEARNED:
            return SMOOTH[self.kind](x)
        root = module.param(f"{place.name}_root_beta", nn.initializers.constant(FIRST_ROOT), (), jnp.float32)
        beta = jnp.maximum(jnp.square(root), SMALLEST_BETA)
        return smooth_relu(x.astype(jnp.float32), beta).astype(x.dtype)
