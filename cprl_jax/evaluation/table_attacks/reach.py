"""The ends of what each image's score can be moved to."""

from cprl_jax import attacks
from cprl_jax.config.field import Field
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack

LOW, HIGH = "low", "high"


def _run(score_fn, batch, condition, prepared):
    return attacks.pgd(
        score_fn,
        batch.images,
        radius=batch.radius,
        direction=attacks.down() if condition.variant == LOW else attacks.up(),
        steps=condition.settings["steps"],
        restarts=condition.settings["restarts"],
        key=batch.keys if condition.settings["restarts"] > 1 else None,
    )


ATTACK = TableAttack(
    "reach",
    "Reach",
    "Gradient steps inside the radius that lower (low) or raise (high) every score, whatever its label; what an image "
    "can reach, from which the lowest SRCC of the whole set follows.",
    _run,
    source="Madry et al., ICLR 2018, each way",
    settings={
        "steps": Field(20, "gradient steps", at_least=1),
        "restarts": Field(1, "1: from the image itself; more: the best of as many random starts", at_least=1),
    },
    direction="away",
    restarts=lambda settings, variant: settings["restarts"],
    variants=lambda settings: (LOW, HIGH),
)
