"""The fast gradient sign method."""

from cprl_jax import attacks
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack


def _run(score_fn, batch, condition, prepared):
    direction = attacks.reflect(batch.mos, batch.mid)
    return attacks.fgsm(score_fn, batch.images, radius=batch.radius, direction=direction)


ATTACK = TableAttack(
    "fgsm",
    "FGSM",
    "One gradient step as long as the radius, away from the label's side of the scale; knows the model and the label.",
    _run,
    source="Goodfellow et al., ICLR 2015",
    steps=lambda settings, variant: 1,
)
