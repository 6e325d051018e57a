"""NIMA's training: the distance between the predicted distributions of opinions and those of the labels."""

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from cprl_jax.config.field import Field
from cprl_jax.losses import earth_movers_distance, opinion_distribution
from cprl_jax.methods.method import Batch, Forward, Method
from cprl_jax.runtime.errors import UserError


def distance_loss(batch: Batch, forward: Forward, settings: ml_collections.ConfigDict):
    """The mean earth mover's distance (Eq. 1) to the distributions that the MOS stand for.

    Raises:
      UserError: a network without a method `distribution`, as `models.nima.NIMA` has it, or one that does not call it.
    """
    distributions = []

    def note(call, arguments, keywords, context):
        output = call(*arguments, **keywords)
        if context.method_name == "distribution":
            distributions.append(output)
        return output

    with nn.intercept_methods(note):  # the score, which is all that a network gives, is the mean of its distribution
        scores = forward.gather(forward.scores(batch.images))
    if not distributions:
        raise UserError(
            "config.methods has emd, which needs a network that gives a distribution of opinions: set "
            "config.model.name=nima with config.model.nima.output=distribution, or leave emd out"
        )
    probabilities, grades = distributions[0]
    distances = earth_movers_distance(probabilities, opinion_distribution(batch.mos, grades), r=settings.r)
    metrics = {"mos_loss": forward.label_loss(scores), "score_std": jnp.std(scores)}
    return jnp.mean(forward.gather(distances)), metrics


METHOD = Method(
    "emd",
    "training on distributions of opinions",
    distance_loss,
    source="Talebi & Milanfar, TIP 2018, Eq. 1",
    settings={"r": Field(2.0, "norm of the distance between cumulative distributions", at_least=1)},
    metrics=("mos_loss", "score_std"),
    parts=lambda settings: [f"r = {settings.r:g}"],
)
