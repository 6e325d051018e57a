"""Losses: what a quality model is trained for. Pure functions of scores, labels and score functions."""

from cprl_jax.losses.distribution import earth_movers_distance, opinion_distribution
from cprl_jax.losses.invariance import intervention, invariance_loss, magnitudes, perturb
from cprl_jax.losses.mos import correlation_loss, fidelity_loss, mos_loss
from cprl_jax.losses.soft_rank import soft_ranks

__all__ = [
    "correlation_loss",
    "earth_movers_distance",
    "fidelity_loss",
    "intervention",
    "invariance_loss",
    "magnitudes",
    "mos_loss",
    "opinion_distribution",
    "perturb",
    "soft_ranks",
]
