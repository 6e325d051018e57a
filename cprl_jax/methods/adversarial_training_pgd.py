"""Adversarial training with PGD (Madry et al., ICLR 2018): the loss of `at` on images attacked in several steps.

Methods that change the network train with it too: `OPTIONAL` has its settings for them.
"""

import dataclasses

import ml_collections

from cprl_jax import attacks
from cprl_jax.config.field import Field
from cprl_jax.methods import adversarial_training
from cprl_jax.methods.adversarial_training import loss_on_attacked
from cprl_jax.methods.method import Batch, Forward
from cprl_jax.methods.plain import plain_loss


def pgd_loss(batch: Batch, forward: Forward, settings: ml_collections.ConfigDict):
    """The loss of adversarial training on images attacked by PGD; the plain loss where `attack_steps` is 0."""
    if not settings.attack_steps:
        return plain_loss(batch, forward, settings)

    def attack(score_fn, batch):
        return attacks.pgd(
            score_fn,
            batch.images,
            radius=settings.epsilon / 255.0,
            direction=attacks.reflect(batch.mos, batch.mid),
            steps=settings.attack_steps,
            step_size=settings.step_size / 255.0 if settings.step_size else None,
            key=batch.keys if settings.random_start else None,
        ).images

    return loss_on_attacked(batch, forward, attack, weight=settings.weight)


def gradients(settings: ml_collections.ConfigDict) -> int:
    """Those of the attack, and one each for the clean and the attacked image."""
    return 2 + settings.attack_steps if settings.attack_steps else 1


def attack_part(settings: ml_collections.ConfigDict) -> str:
    """'PGD of 7 steps at 2/255', 'FGSM at 2/255', 'clean images alone': what a row's title says of the attack."""
    steps = settings.attack_steps
    if not steps:
        return "clean images alone"
    full_step = not settings.step_size or settings.step_size >= settings.epsilon
    if steps == 1 and full_step and not settings.random_start:
        return f"FGSM at {settings.epsilon:g}/255"
    return f"PGD of {steps} step{'s' if steps > 1 else ''} at {settings.epsilon:g}/255"


SETTINGS = {
    **adversarial_training.METHOD.settings,
    "epsilon": Field(2.0, "radius of the attack", "1/255", above=0, at_most=255),
    "attack_steps": Field(7, "gradient steps of the attack", at_least=1),
    "step_size": Field(
        0.0, "length of one of them", "1/255", above=0, at_most=255, zero="2.5 epsilon / attack_steps, as attacks.pgd"
    ),
    "random_start": Field(True, "the attack starts from a random point of its ball"),
}
OPTIONAL = {
    **SETTINGS,
    "attack_steps": Field(
        0,
        "gradient steps of the attack in training; 1 without a random start is FGSM",
        at_least=1,
        zero="trained on clean images alone",
    ),
    "random_start": dataclasses.replace(SETTINGS["random_start"], default=False),
}

METHOD = dataclasses.replace(
    adversarial_training.METHOD,
    name="at_pgd",
    loss=pgd_loss,
    source="Madry et al., ICLR 2018, with the objective of Wang et al., Displays 2024, Table 1",
    settings=SETTINGS,
    gradients=gradients,
    parts=lambda settings: [attack_part(settings)],
)
