"""The ends of what each image's score can be moved to."""

from cprl_jax import attacks
from cprl_jax.config.field import Field
from cprl_jax.evaluation.table_attacks.pgd import RESTARTS, towards
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack

LOW, HIGH = "low", "high"


def _run(score_fn, batch, condition, prepared):
    direction = attacks.down() if condition.variant == LOW else attacks.up()
    return towards(direction, score_fn, batch, condition.settings)


ATTACK = TableAttack(
    "reach",
    "Reach",
    "Gradient steps inside the radius that lower (low) or raise (high) every score, whatever its label; what an image "
    "can reach, from which the lowest SRCC of the whole set follows.",
    _run,
    source="Madry et al., ICLR 2018, each way",
    settings={"steps": Field(20, "gradient steps", at_least=1), "restarts": RESTARTS},
    direction="away",
    restarts=lambda settings, variant: settings["restarts"],
    variants=lambda settings: (LOW, HIGH),
)
