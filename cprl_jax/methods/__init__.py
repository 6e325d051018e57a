"""Training methods, one file each: a module of this package that declares METHOD is a method.

`METHODS` maps names to declarations. docs/extending.md shows how to add one.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import ml_collections

from cprl_jax import models
from cprl_jax.config.field import listed, near
from cprl_jax.methods.method import Batch, Forward, Method, ScoreFn
from cprl_jax.runtime.declarations import declarations
from cprl_jax.runtime.errors import UserError

__all__ = ["METHODS", "Batch", "Forward", "Method", "adaptive_score_fn", "check_names", "title"]

METHODS: Mapping[str, Method] = declarations(__name__, "METHOD")


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names as a tuple, or raises UserError for an unknown, repeated or missing one."""
    for name in names:
        if name not in METHODS:
            raise UserError(f"unknown method {name!r}{near(name, METHODS)}; allowed: {listed(METHODS)}")
    if not names or len(set(names)) != len(names):
        raise UserError(
            f"methods {'+'.join(names)!r}: name at least one, and each method once; allowed: {listed(METHODS)}"
        )
    return tuple(names)


def title(name: str, settings: ml_collections.ConfigDict) -> str:
    """A row's title, by what ran: 'CPRL (loss + SortMask, directions of 2 steps)'; `settings` is config.<name>."""
    method = METHODS[name]
    parts = [*method.parts(settings)]
    if settings.sort_mask and not any("SortMask" in part for part in parts):
        parts.append("with SortMask")
    if settings.distorted_copies:
        parts.append("with distorted copies")
    return f"{method.title} ({', '.join(parts)})" if parts else method.title


def adaptive_score_fn(name: str, module: nn.Module, variables: Mapping) -> ScoreFn | None:
    """The model as an attacker who knows the method differentiates it; None where there is nothing to go around.

    It is what the method declares, else the network with SortMask differentiated as if it masked nothing.
    """
    if declared := METHODS[name].adaptive:
        return declared(module, variables)
    sort_mask = getattr(module, "sort_mask", None)
    return models.score_fn(module, variables, masks="straight_through") if sort_mask and sort_mask.rate > 0 else None
