"""Plain training: the loss on MOS alone."""

import jax.numpy as jnp
import ml_collections

from cprl_jax.methods.method import Batch, Forward, Method


def plain_loss(batch: Batch, forward: Forward, settings: ml_collections.ConfigDict):
    """The loss on MOS that config.train describes."""
    scores = forward.gather(forward.scores(batch.images))
    loss = forward.label_loss(scores)
    return loss, {"mos_loss": loss, "score_std": jnp.std(scores)}


METHOD = Method("plain", "plain training", plain_loss, metrics=("mos_loss", "score_std"))
