"""Attacks of the tables, one file each: a module of this package that declares ATTACK is an attack.

`ATTACKS` maps names to declarations; config.evaluation.attacks lists names. docs/extending.md shows how to add one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cprl_jax.evaluation.table_attacks.table_attack import Batch, Condition, Context, TableAttack
from cprl_jax.runtime.declarations import declarations

__all__ = ["ATTACKS", "Batch", "Condition", "Context", "TableAttack", "check", "conditions"]

ATTACKS: Mapping[str, TableAttack] = declarations(__name__, "ATTACK")


def conditions(evaluation: Any) -> list[Condition]:
    """What config.evaluation asks for: every attack, in its variants, at every radius."""
    asked = [(ATTACKS[name], ATTACKS[name].read(evaluation)) for name in evaluation.attacks]
    return [
        Condition(attack, variant, float(radius), settings)
        for attack, settings in asked
        for variant in attack.variants(settings)
        for radius in (evaluation.radii if attack.has_radius else (0.0,))
    ]


def check(evaluation: Any, methods: Sequence[str]) -> None:
    """Checks what the attacks need beside their fields, such as files, before anything is trained.

    Raises:
      UserError: naming the field.
    """
    for name in evaluation.attacks:
        ATTACKS[name].check(ATTACKS[name].read(evaluation), methods)
