"""The perceptual attack at one fixed trade-off for each fidelity."""

import numpy as np

from cprl_jax import attacks, fidelity
from cprl_jax.config.field import Field
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack


def _run(score_fn, batch, condition, prepared):
    settings, steps = condition.settings, condition.settings["steps"]
    # Sign steps do not obey the Chebyshev distance, which sees the largest change only: there the steps' length does.
    by_length = condition.variant == "chebyshev"
    result = attacks.perceptual(
        score_fn,
        batch.images,
        fidelity.distance(condition.variant),
        key=batch.keys,
        multipliers=(np.inf if by_length else settings[f"{condition.variant}_multiplier"],),
        step_size=settings["chebyshev_radius"] / 255.0 / steps if by_length else settings["step_size"],
        steps=steps,
        quantize=False,
    )
    return attacks.AttackResult(*(getattr(result, field)[0] for field in attacks.AttackResult._fields))


ATTACK = TableAttack(
    "perceptual",
    "Perceptual",
    "Gradient steps that change the score either way while a fidelity (named in brackets) holds the image back, at a "
    "fixed trade-off; knows the model, not the label, and has no radius.",
    _run,
    source="Zhang et al., NeurIPS 2022; CPRL, Table 4",
    settings={
        "fidelities": Field(
            ("chebyshev", "ssim"), "fidelities that hold the image back", choices=("chebyshev", "ssim")
        ),
        "steps": Field(200, "gradient steps, each of the score and of the fidelity", at_least=1),
        "step_size": Field(1e-3, "in [0, 1] pixel units", above=0, at_most=1),
        "ssim_multiplier": Field(1e-6, "weight of the squared change of the score (0..100) beside 1 - SSIM", above=0),
        "chebyshev_radius": Field(
            2.0, "how far all steps together may lead, beside the start's noise of 1", "1/255", above=0, at_most=255
        ),
    },
    direction="away",
    has_radius=False,
    variants=lambda settings: tuple(settings["fidelities"]),
)
