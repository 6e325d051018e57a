"""CPRL's first version: an activation that keeps the channels of the highest ranks, and a minimax game. A reading.

Wang and Yuan, "Causal Perception inspired Representation Learning for Trustworthy Image Quality Assessment", 2024, of
which the abstract and the figures' captions are all that was available: docs/papers.md says what was chosen.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from cprl_jax.config.field import Field
from cprl_jax.losses import intervention, invariance_loss, perturb, soft_ranks
from cprl_jax.methods.method import DEPLOYED, Batch, Forward, Method, direction_agreement
from cprl_jax.models.change import NetworkChange

_SOFTNESS = 0.05  # of the gate, in shares of the channels


def channel_gates(
    maps: Float[Array, "batch height width channels"], *, keep: float, temperature: float
) -> Float[Array, "batch channels"]:
    """How much of each channel is kept, 0 to 1: of an image's channels the strongest share, with a smooth border.

    A channel's strength is its mean absolute value over the places; its soft rank among the image's channels, as a
    share of them, meets a sigmoid at 1 - keep. Strengths count relative to their spread, so that the gates do not
    depend on the scale of the maps.

    Args:
      maps: the values of an activation.
      keep: share of the channels.
      temperature: of the ranks, in standard deviations of the strengths.
    """
    channels = maps.shape[-1]
    strength = jnp.mean(jnp.abs(maps.astype(jnp.float32)), axis=(1, 2))
    deviation = strength - jnp.mean(strength, axis=-1, keepdims=True)
    # The floor is for an image whose channels are all equally strong: all have the mean rank then.
    floor = (1e-3 * jnp.mean(strength, axis=-1, keepdims=True)) ** 2 + 1e-12
    spread = jnp.sqrt(jnp.mean(deviation * deviation, axis=-1, keepdims=True) + floor)
    ranks = (soft_ranks(strength / spread, temperature) - 0.5) / channels
    return jax.nn.sigmoid((ranks - (1.0 - keep)) / _SOFTNESS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedChannels(NetworkChange):
    """The activations of some stages, times the gates of their channels."""

    stages: tuple[int, ...]
    keep: float
    temperature: float

    def activation(self, module, x, default, place):
        y = default(x)
        if place.stage not in self.stages:
            return y
        gates = channel_gates(y, keep=self.keep, temperature=self.temperature)
        return y * gates.astype(y.dtype)[:, None, None, :]


def minimax_loss(batch: Batch, forward: Forward, settings: ml_collections.ConfigDict):
    """The loss on MOS plus `weight` times the largest change of the score that an intervention on the image makes.

    What is kept is to be sufficient for the label, and necessary in that nothing else moves the score. The inner game
    looks for the change inside the l-inf ball (`losses.intervention`), the outer one learns to resist it; both scores
    receive gradients.
    """

    def direction_of(score_fn, batch):
        options = dict(epsilon=settings.epsilon / 255.0, steps=settings.direction_steps)
        return intervention(score_fn, batch.images, keys=batch.keys, **options)

    delta = direction_of(forward.constant, batch)
    clean = forward.gather(forward.scores(batch.images))
    intervened = forward.gather(forward.scores(perturb(batch.images, delta)))
    sufficiency = forward.label_loss(clean)
    necessity = invariance_loss(clean, intervened[None], relative=settings.relative)
    return sufficiency + settings.weight * necessity, {
        "mos_loss": sufficiency,
        "necessity_loss": necessity,
        "score_std": jnp.std(clean),
        "direction_agreement": direction_agreement(forward, batch, delta, direction_of),
    }


METHOD = Method(
    "cprl_v1",
    "CPRL, first version, a reading",
    minimax_loss,
    source="Wang and Yuan, 2024, of which the abstract is available",
    settings={
        "batch_norm": DEPLOYED,
        "stages": Field((2, 3), "of the trunk, whose activations are replaced", at_least=0),
        "keep": Field(0.9, "share of the channels that are kept", above=0, at_most=1),
        "temperature": Field(0.1, "of the soft ranks, in standard deviations of the channels' strengths", above=0),
        "weight": Field(1.0, "weight of the score's largest change beside the loss on MOS", at_least=0),
        "epsilon": Field(2.0, "radius of the ball in which it is sought", "1/255", above=0, at_most=255),
        "direction_steps": Field(3, "ascent steps of the inner game", at_least=1),
        "relative": Field(
            True, "divide by the standard deviation of the batch's scores, so that shrinking them does not pay"
        ),
    },
    metrics=("mos_loss", "necessity_loss", "score_std", "direction_agreement"),
    gradients=lambda settings: 2 + settings.direction_steps,
    network=lambda settings: RankedChannels(
        stages=tuple(settings.stages), keep=settings.keep, temperature=settings.temperature
    ),
    parts=lambda settings: [
        f"{settings.keep:g} of the channels",
        f"{settings.direction_steps} step{'s' if settings.direction_steps > 1 else ''} at {settings.epsilon:g}/255",
    ],
)
