"""Projected gradient descent."""

from cprl_jax import attacks
from cprl_jax.config.field import Field
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack

RESTARTS = Field(1, "1: from the image itself; more: the best of as many random starts", at_least=1)


def towards(direction, score_fn, batch, settings):
    """PGD in a direction, as the settings `steps` and `restarts` say."""
    return attacks.pgd(
        score_fn,
        batch.images,
        radius=batch.radius,
        direction=direction,
        steps=settings["steps"],
        restarts=settings["restarts"],
        key=batch.keys if settings["restarts"] > 1 else None,
    )


def _run(score_fn, batch, condition, prepared):
    return towards(attacks.reflect(batch.mos, batch.mid), score_fn, batch, condition.settings)


ATTACK = TableAttack(
    "pgd",
    "PGD",
    "Several gradient steps inside the radius, away from the label's side of the scale; knows the model and the label.",
    _run,
    source="Madry et al., ICLR 2018",
    settings={"restarts": RESTARTS},
    reads={"steps": "pgd_steps"},
    restarts=lambda settings, variant: settings["restarts"],
)
