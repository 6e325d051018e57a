"""The target-free attack, which needs no label."""

from cprl_jax import attacks
from cprl_jax.config.field import Field
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack


def _run(score_fn, batch, condition, prepared):
    direction = attacks.target_free(batch.mid)
    return attacks.pgd(
        score_fn, batch.images, radius=batch.radius, direction=direction, steps=condition.settings["steps"]
    )


ATTACK = TableAttack(
    "target_free",
    "Target-free",
    "Gradient steps away from the side of the scale where the model's own clean score lies; knows the model, not the "
    "label.",
    _run,
    source="Liu et al., CVPR 2024; CPRL, Table 4",
    settings={"steps": Field(1, "gradient steps; 1, as published, is the sign of one gradient", at_least=1)},
    direction="target_free",
)
