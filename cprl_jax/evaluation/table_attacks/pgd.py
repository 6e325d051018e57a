"""Projected gradient descent."""

from cprl_jax import attacks
from cprl_jax.config.field import Field
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack


def _run(score_fn, batch, condition, prepared):
    return attacks.pgd(
        score_fn,
        batch.images,
        radius=batch.radius,
        direction=attacks.reflect(batch.mos, batch.mid),
        steps=condition.settings["steps"],
        restarts=condition.settings["restarts"],
        key=batch.keys if condition.settings["restarts"] > 1 else None,
    )


ATTACK = TableAttack(
    "pgd",
    "PGD",
    "Several gradient steps inside the radius, away from the label's side of the scale; knows the model and the label.",
    _run,
    source="Madry et al., ICLR 2018",
    settings={"restarts": Field(1, "1: from the image itself; more: the best of as many random starts", at_least=1)},
    reads={"steps": "pgd_steps"},
    restarts=lambda settings, variant: settings["restarts"],
)
