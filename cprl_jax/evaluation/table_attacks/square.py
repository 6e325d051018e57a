"""The square attack, which needs scores only."""

from cprl_jax import attacks
from cprl_jax.config.field import Field
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack


def _run(score_fn, batch, condition, prepared):
    direction = attacks.reflect(batch.mos, batch.mid)
    options = {"queries": condition.settings["queries"], "key": batch.keys}
    return attacks.square(score_fn, batch.images, radius=batch.radius, direction=direction, **options)


ATTACK = TableAttack(
    "square",
    "Square",
    "Random search with squares inside the radius, away from the label's side of the scale; asks for scores and never "
    "for gradients.",
    _run,
    source="Andriushchenko et al., ECCV 2020",
    settings={"queries": Field(200, "changed images that are scored", at_least=1)},
    steps=lambda settings, variant: settings["queries"],
    gradients=lambda settings, variant: settings["queries"] / 3,
)
