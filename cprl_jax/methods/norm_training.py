"""Norm training (NT): a penalty on the l1 norm of the score's gradient in the image, by a finite difference."""

import jax
import jax.numpy as jnp
import ml_collections

from cprl_jax.config.field import Field
from cprl_jax.methods.method import DEPLOYED, Batch, Forward, Method, direction_agreement
from cprl_jax.models.common import IMAGENET


def norm_training_loss(batch: Batch, forward: Forward, settings: ml_collections.ConfigDict):
    """loss on MOS + weight * mean(((f(x + h v) - f(x)) / h)^2) / 2, with v the sign of the gradient of f.

    To first order the quotient is the l1 norm of the gradient. Both scores receive gradients, v is a constant, and
    x + h v may leave [0, 1], all as in the published code. There, h = 0.01 counts in units of the normalised input,
    which makes it 0.01 times the standard deviation of each channel in pixel units.
    """

    def direction_of(score_fn, batch):
        return jnp.sign(jax.grad(lambda x: jnp.sum(score_fn(x)))(batch.images))

    direction = direction_of(forward.constant, batch)
    if settings.normalized_step:
        size, unit = settings.normalized_step, jnp.asarray(IMAGENET.std).reshape(1, 1, 1, 3)
    else:
        size, unit = settings.step / 255.0, 1.0
    clean = forward.scores(batch.images)
    moved = forward.scores(batch.images + size * unit * direction)
    norm = jnp.mean(forward.gather((moved - clean) / size) ** 2) / 2
    scores = forward.gather(clean)
    mos_loss = forward.label_loss(scores)
    return mos_loss + settings.weight * norm, {
        "mos_loss": mos_loss,
        "norm_loss": norm,
        "score_std": jnp.std(scores),
        "direction_agreement": direction_agreement(forward, batch, direction, direction_of),
    }


METHOD = Method(
    "nt",
    "norm training",
    norm_training_loss,
    source="Liu et al., Defense Against Adversarial Attacks on No-Reference Image Quality Models, CVPR 2024, Eq. 6",
    settings={
        "batch_norm": DEPLOYED,
        "weight": Field(1e-3, "weight of the penalty", at_least=0),
        "step": Field(0.58, "length of the finite difference along the gradient's sign", "1/255", above=0, at_most=255),
        "normalized_step": Field(
            0.0, "the step in units of the ImageNet-normalised input, 0.01 as published; 0 = `step`", at_least=0
        ),
    },
    metrics=("mos_loss", "norm_loss", "score_std", "direction_agreement"),
    gradients=lambda settings: 3,
)
