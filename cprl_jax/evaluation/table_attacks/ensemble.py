"""The worst of several attacks for each image."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from cprl_jax import attacks
from cprl_jax.attacks.ensemble import BUDGETS, cost, has_converged
from cprl_jax.config.field import Field, listed
from cprl_jax.evaluation.table_attacks.table_attack import TableAttack
from cprl_jax.runtime.errors import UserError


class _Result(NamedTuple):
    """What is kept of an `attacks.EnsembleResult`: all that is per image, `which` as a number for each attack."""

    images: Float[Array, "batch height width 3"]
    before: Float[Array, " batch"]
    after: Float[Array, " batch"]
    max_change: Float[Array, " batch"]
    zero_gradient_fraction: Float[Array, " batch"]
    settled: Float[Array, " batch"]
    won: Float[Array, "batch members"]


def _run(score_fn, batch, condition, prepared):
    result = attacks.ensemble(
        score_fn,
        batch.images,
        radius=batch.radius,
        direction=attacks.reflect(batch.mos, batch.mid),
        key=batch.keys,
        adaptive_score_fn=prepared,
        budget=_budget(condition.variant),
    )
    won = jax.nn.one_hot(result.which, len(result.members), dtype=batch.images.dtype)
    return _Result(**{name: getattr(result, name) for name in _Result._fields if name != "won"}, won=won)


def _budget(variant):
    return BUDGETS[variant or "quick"]


def _gradients(settings, variant):
    spent = cost(_budget(variant), ways=1, has_adaptive=True, is_stochastic=False)
    return spent.gradients + spent.queries / 3


def _images(settings, variant):
    return settings["standard_images"] if variant == "standard" else 0


def _summary(arrays):
    """Whether the attack converged, and the share of images that each of its attacks won."""
    # No score goes back: how far it went is how far the objective rose.
    gains = [np.abs(arrays[name] - arrays["before"]) for name in ("before", "settled", "after")]
    shares = zip(attacks.EnsembleResult.members, arrays["won"].mean(axis=0), strict=True)
    won = {f"won_by_{name.replace(' ', '_')}": float(share) for name, share in shares}
    return {"converged": bool(has_converged(*gains)), **won}


def _check(settings, methods):
    if not settings["budgets"] or len(set(settings["budgets"])) < len(settings["budgets"]):
        raise UserError(
            f"config.evaluation.ensemble.budgets is {settings['budgets']}; name each once, at least one of "
            f"{listed(BUDGETS)}"
        )


ATTACK = TableAttack(
    "ensemble",
    "Worst of ensemble",
    "For each image the worst of PGD, of momentum ascent with an adaptive step (with gradients as they are, through "
    "gates and averaged over noise), of the square attack and of random points inside the radius, away from the "
    "label's side of the scale; knows the model, its method and the label.",
    _run,
    source="attacks.ensemble, after Croce and Hein, ICML 2020",
    settings={
        "budgets": Field(
            ("quick",),
            "work for an image: 110 gradients (185 with gates) and 188 other evaluations, or 1110 (1710) and 15120; "
            "each has its own rows",
            choices=tuple(sorted(BUDGETS)),
        ),
        "standard_images": Field(
            0, "test images of the standard budget, evenly over the ranks of their MOS", at_least=0, zero="all"
        ),
    },
    steps=lambda settings, variant: _budget(variant).iterations,
    restarts=lambda settings, variant: _budget(variant).starts,
    gradients=_gradients,
    variants=lambda settings: tuple("" if budget == "quick" else budget for budget in settings["budgets"]),
    prepare=lambda context, condition: context.adaptive,
    depends_on=lambda context, condition: context.adaptive,
    check=_check,
    used=lambda settings, variant: [_budget(variant), _images(settings, variant)],
    images=_images,
    summary=_summary,
)
