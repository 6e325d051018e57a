"""The score reflection attack of CPRL's first version."""

from cprl_jax import attacks
from cprl_jax.config.field import Field
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack


def _run(score_fn, batch, condition, prepared):
    options = {"mid": batch.mid, "steps": condition.settings["steps"]}
    return attacks.score_reflection(score_fn, batch.images, radius=batch.radius, **options)


ATTACK = TableAttack(
    "score_reflection",
    "Score reflection",
    "Gradient steps towards the clean score's mirror image on the other side of the scale; knows the model, not the "
    "label.",
    _run,
    source="Wang and Yuan, Causal Perception Inspired Representation Learning (the first version of CPRL)",
    settings={"steps": Field(10, "gradient steps", at_least=1)},
    direction="mirror",
)
