"""CPRL (Wang et al., Displays 2024): the invariance loss under causal interventions, and SortMask.

What the paper leaves open, and what was chosen here, is listed in docs/papers.md.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections

from cprl_jax.config.field import Field
from cprl_jax.losses import intervention, invariance_loss, magnitudes, perturb
from cprl_jax.methods.method import COMMON, DEPLOYED, Batch, Forward, Method, direction_agreement
from cprl_jax.models.change import NetworkChange
from cprl_jax.models.smooth_activations import LEARNED, SMOOTH, SmoothActivations


def cprl_loss(batch: Batch, forward: Forward, settings: ml_collections.ConfigDict):
    """The loss on MOS plus `weight` times the invariance loss (Sec. 4.2.1); both branches receive gradients.

    Both branches have the same masks and dropout: what is compared is the effect of the perturbation alone.
    """
    warm = jnp.minimum(1.0, (batch.step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    epsilon = warm * settings.epsilon / 255.0

    def direction_of(score_fn, batch):
        return intervention(score_fn, batch.images, epsilon=epsilon, steps=settings.direction_steps, keys=batch.keys)

    delta = direction_of(forward.constant, batch)
    keys = jax.vmap(jax.random.fold_in, (0, None))(batch.keys, 1)
    alphas = magnitudes(keys, count=settings.alphas, law=settings.alpha_law)[:, :, None, None, None]

    clean = forward.scores(batch.images)
    perturbed = jnp.stack([forward.scores(perturb(batch.images, alpha * delta)) for alpha in alphas])
    clean, perturbed = forward.gather(clean), forward.gather(perturbed)
    mos_loss = forward.label_loss(clean)
    invariance = invariance_loss(clean, perturbed, norm=settings.norm, relative=settings.relative)
    loss = mos_loss + warm * settings.weight * invariance
    if settings.mos_loss_on_interventions:
        on_interventions = jnp.mean(jnp.stack([forward.label_loss(scores) for scores in perturbed]))
        loss += warm * settings.mos_loss_on_interventions * on_interventions
    return loss, {
        "mos_loss": mos_loss,
        "invariance_loss": invariance,
        "score_std": jnp.std(clean),
        "direction_agreement": direction_agreement(forward, batch, delta, direction_of),
    }


def _parts(settings: ml_collections.ConfigDict) -> list[str]:
    parts = ["loss + SortMask" if settings.sort_mask else "loss only"]
    if settings.direction_steps > 1:
        parts.append(f"directions of {settings.direction_steps} steps")
    if settings.mos_loss_on_interventions:
        parts.append("loss on MOS of perturbed images")
    if settings.activation:
        parts.append(settings.activation)
    return parts


METHOD = Method(
    "cprl",
    "CPRL",
    cprl_loss,
    source="Wang et al., Displays 2024, Sec. 4.2",
    settings={
        "sort_mask": dataclasses.replace(COMMON["sort_mask"], default=True),
        "batch_norm": DEPLOYED,
        "weight": Field(1.0, "weight of the invariance loss beside the loss on MOS", at_least=0),
        "warmup_steps": Field(0, "the weight and epsilon grow linearly from 0 over these steps", at_least=0),
        "epsilon": Field(2.0, "|alpha| <= epsilon; also the radius of the ball", "1/255", above=0, at_most=255),
        "alphas": Field(2, "magnitudes drawn per image and step", at_least=1),
        "alpha_law": Field(
            "uniform", "on [-epsilon, epsilon] (the paper), or 'edge': always epsilon", choices=("uniform", "edge")
        ),
        "direction_steps": Field(
            1, "1: the sign of the gradient (the paper); more: ascent from a random start", at_least=1
        ),
        "norm": Field("absolute", "how the change of the score is measured", choices=("absolute", "squared")),
        "relative": Field(
            False, "divide by the standard deviation of the batch's scores, so that shrinking them does not pay"
        ),
        "mos_loss_on_interventions": Field(0.0, "weight of the loss on MOS of the perturbed images", at_least=0),
        "activation": Field("", "in place of the network's own ('' = its own)", choices=("", *SMOOTH, LEARNED)),
    },
    metrics=("mos_loss", "invariance_loss", "score_std", "direction_agreement"),
    gradients=lambda settings: 1 + settings.alphas + settings.direction_steps,
    parts=_parts,
    network=lambda settings: SmoothActivations(settings.activation) if settings.activation else NetworkChange(),
)
