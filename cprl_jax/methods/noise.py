"""Training with Gaussian noise: what makes the certificates of median smoothing (`robustness.certify`) narrow."""

import jax
import jax.numpy as jnp
import ml_collections

from cprl_jax.config.field import Field
from cprl_jax.methods.method import Batch, Forward, Method


def noise_loss(batch: Batch, forward: Forward, settings: ml_collections.ConfigDict):
    """The loss on MOS of clip(x + sigma z, 0, 1), z a standard normal: the images that a smoothed model scores.

    The first images that the network sees are noisy ones, and so are the statistics of batch normalisation.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, batch.images.shape[1:], batch.images.dtype))(batch.keys)
    scores = forward.gather(forward.scores(jnp.clip(batch.images + settings.sigma * noise, 0, 1)))
    loss = forward.label_loss(scores)
    return loss, {"mos_loss": loss, "score_std": jnp.std(scores)}


METHOD = Method(
    "noise",
    "training with noise",
    noise_loss,
    source="Cohen et al., Certified Adversarial Robustness via Randomized Smoothing, ICML 2019, Sec. 3.3",
    settings={"sigma": Field(0.12, "standard deviation of the noise, in [0, 1] pixel units", above=0, at_most=1)},
    metrics=("mos_loss", "score_std"),
    parts=lambda settings: [f"sigma {settings.sigma:g}"],
)
