"""Generalised divisive normalisation, an activation that divides each channel by the energy of all.

Ballé et al., "Density Modeling of Images Using a Generalized Normalization Transformation", ICLR 2016.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

INITIAL_BETA = 1e-4
SMALLEST_BETA = 1e-6  # of Ballé's code; published weights are above it, and their gammas above 0


def _identity(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    return jnp.eye(*shape, dtype=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def at_least(parameter: Float[Array, "*shape"], bound: float) -> Float[Array, "*shape"]:
    """max(parameter, bound), with the gradient of the parameter where it is allowed to move: above, and upwards.

    With that of the maximum, a parameter that a step of training took below its bound would stay there for good.
    """
    return jnp.maximum(parameter, bound)


def _at_least_forward(parameter: Array, bound: float) -> tuple[Array, Array]:
    return at_least(parameter, bound), parameter


def _at_least_backward(bound: float, parameter: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where((parameter >= bound) | (gradient < 0), gradient, 0.0),)


at_least.defvjp(_at_least_forward, _at_least_backward)


class GDN(nn.Module):
    """y_c = x_c / sqrt(beta_c + sum_k x_k^2 gamma[k, c]) at every position, c and k running over the channels.

    As in the published code of Ma19 (see cprl_jax/models/ma19.py): `gamma` [channels, channels] is indexed by input and
    output channel (TensorFlow's layer has it transposed), and both parameters are used as they are, not squared.
    Initial values: gamma the identity, `beta` [channels] 1e-4. They count as at least 0 and 1e-6, whatever training
    makes of them.

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
        gamma, beta = at_least(gamma, 0.0), at_least(beta, SMALLEST_BETA)
        energy = jnp.matmul(wide * wide, gamma, precision=lax.Precision.HIGHEST) + beta.reshape(1, channels)
        normalized = wide * lax.rsqrt(energy)
        return normalized.reshape(x.shape).astype(self.dtype or x.dtype)
