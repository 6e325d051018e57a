"""The loss on MOS, which every method has."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def mos_loss(
    scores: Float[Array, " batch"], mos: Float[Array, " batch"], *, kind: str = "l1", huber_delta: float = 10.0
) -> Float[Array, ""]:
    """Mean loss between scores and labels, both in MOS points (0..100).

    `kind` is 'l1' (HyperIQA's, the default), 'l2', or 'huber' (quadratic within `huber_delta` points).

    Raises:
      ValueError: unknown `kind`.
    """
    if kind == "l1":
        return jnp.mean(jnp.abs(scores - mos))
    if kind == "l2":
        return jnp.mean((scores - mos) ** 2)
    if kind == "huber":
        return jnp.mean(optax.losses.huber_loss(scores, mos, delta=huber_delta))
    raise ValueError(f"kind {kind!r}; allowed: 'l1', 'l2', 'huber'")


def correlation_loss(scores: Float[Array, " batch"], mos: Float[Array, " batch"]) -> Float[Array, ""]:
    """1 - PLCC over the batch: 0 when the scores are a rising linear function of the labels, 2 when a falling one.

    It does not change when the scores are shifted or scaled, so that (unlike an L1 or L2 loss) it does not reward a
    model for shrinking its scores towards the mean. A batch of constant scores or labels gives 1 with gradient 0.
    """
    centred_scores, centred_mos = scores - jnp.mean(scores), mos - jnp.mean(mos)
    # 1e-6 MOS points squared: far below any real variance, and it keeps the gradient finite where the variance is 0.
    norms = jnp.sqrt((jnp.mean(centred_scores**2) + 1e-6) * (jnp.mean(centred_mos**2) + 1e-6))
    return 1.0 - jnp.mean(centred_scores * centred_mos) / norms
