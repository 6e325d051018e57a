"""Adversarial training, the rival of CPRL's Tables 1 and 6: the loss on MOS of images attacked by FGSM."""

from collections.abc import Callable

import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from cprl_jax import attacks
from cprl_jax.config.field import Field
from cprl_jax.methods.method import DEPLOYED, Batch, Forward, Method, ScoreFn, direction_agreement


def adversarial_loss(batch: Batch, forward: Forward, settings: ml_collections.ConfigDict):
    """`loss_on_attacked` of FGSM, which pushes each score to the wrong side of the scale."""

    def attack(score_fn, batch):
        direction = attacks.reflect(batch.mos, batch.mid)
        return attacks.fgsm(score_fn, batch.images, radius=settings.epsilon / 255.0, direction=direction).images

    return loss_on_attacked(batch, forward, attack, weight=settings.weight)


def loss_on_attacked(
    batch: Batch,
    forward: Forward,
    attack: Callable[[ScoreFn, Batch], Float[Array, "batch height width 3"]],
    *,
    weight: float,
):
    """(1 - weight) loss(clean) + weight loss(attacked), and the metrics of adversarial training.

    Args:
      attack: `(score_fn, batch) -> attacked images`, RGB in [0, 1].
      weight: of the attacked images' loss.
    """

    def direction_of(score_fn, batch):
        return attack(score_fn, batch) - batch.images

    delta = direction_of(forward.constant, batch)
    scores = forward.gather(forward.scores(batch.images))
    attacked = forward.gather(forward.scores(batch.images + delta))
    mos_loss, adversarial = forward.label_loss(scores), forward.label_loss(attacked)
    return (1.0 - weight) * mos_loss + weight * adversarial, {
        "mos_loss": mos_loss,
        "adversarial_loss": adversarial,
        "score_std": jnp.std(scores),
        "direction_agreement": direction_agreement(forward, batch, delta, direction_of),
    }


METHOD = Method(
    "at",
    "adversarial training",
    adversarial_loss,
    source="Wang et al., Displays 2024, Table 1",
    settings={
        "batch_norm": DEPLOYED,
        "epsilon": Field(2.0, "radius of FGSM", "1/255", above=0, at_most=255),
        "weight": Field(
            0.5, "weight of the attacked images' loss; the clean images' is 1 - weight", at_least=0, at_most=1
        ),
    },
    metrics=("mos_loss", "adversarial_loss", "score_std", "direction_agreement"),
    gradients=lambda settings: 3,
    parts=lambda settings: [f"FGSM at {settings.epsilon:g}/255"],
)
