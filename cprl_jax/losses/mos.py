"""The loss on MOS, which every method has."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def mos_loss(
    scores: Float[Array, " batch"],
    mos: Float[Array, " batch"],
    *,
    kind: str = "l1",
    huber_delta: float = 10.0,
    fidelity_std: float = 20.0,
) -> Float[Array, ""]:
    """Mean loss between scores and labels, both in MOS points (0..100).

    `kind` is 'l1' (HyperIQA's, the default), 'l2', 'huber' (quadratic within `huber_delta` points), or 'fidelity'
    (UNIQUE's, of pairs, with a standard deviation of `fidelity_std` points of every score and every label).

    Raises:
      ValueError: unknown `kind`, or scores and labels of different shapes.
    """
    _check_shapes(scores, mos)
    if kind == "l1":
        return jnp.mean(jnp.abs(scores - mos))
    if kind == "l2":
        return jnp.mean((scores - mos) ** 2)
    if kind == "huber":
        return jnp.mean(optax.losses.huber_loss(scores, mos, delta=huber_delta))
    if kind == "fidelity":
        return fidelity_loss(scores, mos, std=fidelity_std, mos_std=fidelity_std)
    raise ValueError(f"kind {kind!r}; allowed: 'l1', 'l2', 'huber', 'fidelity'")


def _check_shapes(scores, mos) -> None:
    if scores.ndim != 1 or scores.shape != mos.shape:
        raise ValueError(f"scores and labels must both be [batch], got shapes {scores.shape} and {mos.shape}.")


def fidelity_loss(
    scores: Float[Array, " batch"],
    mos: Float[Array, " batch"],
    *,
    std: float | Float[Array, " batch"],
    mos_std: float | Float[Array, " batch"],
) -> Float[Array, ""]:
    """The mean over all pairs of 1 - sqrt(p g) - sqrt((1 - p)(1 - g)): in [0, 1], and 0 where p = g for every pair
    (both to 2e-4).

    p and g are the probabilities that the one image of a pair is better than the other, by the scores and by the labels
    (Thurstone's model): Phi of the difference by the root of the sum of both variances. An offset that all scores have
    in common does not change the loss, so that training by it alone does not learn one. Fewer than two images have loss
    0. Source: Zhang et al., "Uncertainty-Aware Blind Image Quality Assessment in the Laboratory and Wild",
    IEEE TIP 2021, Eq. 2 to 5; 1e-8 under each root and beside the variance as in its code.

    Args:
      scores: of the images of the batch, on any scale.
      mos: their labels, on any scale.
      std: standard deviation of a score, one for all or one for each, above 0; a constant for differentiation.
      mos_std: standard deviation of a label.
    """
    _check_shapes(scores, mos)
    first, second = jnp.triu_indices(scores.shape[0], k=1)

    def better(values, deviation):
        """The probabilities that the first image of each pair is the better one, and that it is the worse one."""
        variance = jnp.broadcast_to(jnp.asarray(deviation, jnp.float32), scores.shape) ** 2
        deviation = jax.lax.stop_gradient(jnp.sqrt(variance[first] + variance[second] + 1e-8))
        difference = (values[first] - values[second]) / deviation
        return jax.scipy.special.ndtr(difference), jax.scipy.special.ndtr(-difference)

    losses = 1.0 - sum(jnp.sqrt(p * g + 1e-8) for p, g in zip(better(scores, std), better(mos, mos_std), strict=True))
    return jnp.sum(losses) / max(1, losses.size)


def correlation_loss(scores: Float[Array, " batch"], mos: Float[Array, " batch"]) -> Float[Array, ""]:
    """1 - PLCC over the batch: 0 when the scores are a rising linear function of the labels, 2 when a falling one.

    It does not change when the scores are shifted or scaled, as long as they spread by far more than 0.001 MOS points:
    so (unlike an L1 or L2 loss) it does not reward a model for shrinking its scores towards the mean. A batch of
    constant labels gives 1 with gradient 0; one of constant scores gives 1 with a large gradient, which pulls them
    apart.
    """
    _check_shapes(scores, mos)
    centred_scores, centred_mos = scores - jnp.mean(scores), mos - jnp.mean(mos)
    # 1e-6 MOS points squared: far below any real variance, and it keeps the gradient finite where the variance is 0.
    norms = jnp.sqrt((jnp.mean(centred_scores**2) + 1e-6) * (jnp.mean(centred_mos**2) + 1e-6))
    return 1.0 - jnp.mean(centred_scores * centred_mos) / norms
