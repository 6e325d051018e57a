"""Generalised divisive normalisation, an activation that divides each channel by the energy of all.

Ballé et al., "Density Modeling of Images Using a Generalized Normalization Transformation", ICLR 2016.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

INITIAL_BETA = 1e-4
# Far below what the initial values or published weights give; reached only if training drives a gamma below zero.
_SMALLEST_ENERGY = 1e-12


def _identity(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    return jnp.eye(*shape, dtype=dtype)


class GDN(nn.Module):
    """y_c = x_c / sqrt(beta_c + sum_k x_k^2 gamma[k, c]) at every position, c and k running over the channels.

    As in the published code of Ma19 (see cprl_jax/models/ma19.py): `gamma` [channels, channels] is indexed by input and
    output channel (TensorFlow's layer has it transposed), and both parameters are used as they are, neither squared nor
    bounded. Initial values: gamma the identity, `beta` [channels] 1e-4. The sum is held at 1e-12 or more, so that a
    parameter that training has made negative gives a large number and no NaN.

    It computes in float32 (float64 for such an x): squares of half precision would overflow.

    Attributes:
      dtype: dtype of the result; None for that of x.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        channels = x.shape[-1]
        gamma = self.param("gamma", _identity, (channels, channels))
        beta = self.param("beta", nn.initializers.constant(INITIAL_BETA), (channels,))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(-1, channels)
        energy = jnp.matmul(wide * wide, gamma, precision=lax.Precision.HIGHEST) + beta.reshape(1, channels)
        normalized = wide * lax.rsqrt(jnp.maximum(energy, _SMALLEST_ENERGY))
        return normalized.reshape(x.shape).astype(self.dtype or x.dtype)
