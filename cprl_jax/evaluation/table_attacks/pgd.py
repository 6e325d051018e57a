"""Projected gradient descent."""

from cprl_jax import attacks
from cprl_jax.config.field import Field
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack
from cprl_jax.runtime.errors import UserError

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
    settings = condition.settings | {"steps": _steps(condition.settings, condition.variant)}
    return towards(attacks.reflect(batch.mos, batch.mid), score_fn, batch, settings)


def _steps(settings, variant):
    return int(variant or settings["steps"])


def _check(settings, methods):
    steps = [settings["steps"], *settings["more_steps"]]
    if len(set(steps)) < len(steps):
        raise UserError(
            f"config.evaluation.pgd.more_steps is {tuple(settings['more_steps'])} beside config.evaluation.pgd_steps="
            f"{settings['steps']}; name each number of steps once"
        )


ATTACK = TableAttack(
    "pgd",
    "PGD",
    "Several gradient steps inside the radius, away from the label's side of the scale; knows the model and the label.",
    _run,
    source="Madry et al., ICLR 2018",
    settings={
        "restarts": RESTARTS,
        "more_steps": Field(
            (),
            "the attack again with each of these numbers of gradient steps, in rows of its own: (50,100)",
            at_least=1,
        ),
    },
    reads={"steps": "pgd_steps"},
    steps=_steps,
    restarts=lambda settings, variant: settings["restarts"],
    variants=lambda settings: ("", *map(str, settings["more_steps"])),
    check=_check,
    used=lambda settings, variant: {"steps": _steps(settings, variant), "restarts": settings["restarts"]},
)
