"""Smooth adversarial training (SAT): adversarial training with smooth activations in place of the trunk's own.

Xie et al., "Smooth Adversarial Training", arXiv:2006.14536, 2020. What it leaves open is listed in docs/papers.md.
"""

import dataclasses

from cprl_jax.config.field import Field
from cprl_jax.methods import adversarial_training_pgd as pgd
from cprl_jax.models.smooth_activations import LEARNED, SMOOTH, SmoothActivations

METHOD = dataclasses.replace(
    pgd.METHOD,
    name="sat",
    title="smooth adversarial training",
    source="Xie et al., arXiv:2006.14536",
    settings={
        **pgd.OPTIONAL,
        "attack_steps": dataclasses.replace(pgd.OPTIONAL["attack_steps"], default=1),
        "activation": Field("silu", "in place of the network's own", choices=(*SMOOTH, LEARNED)),
    },
    parts=lambda settings: [settings.activation, pgd.attack_part(settings)],
    network=lambda settings: SmoothActivations(settings.activation),
)
