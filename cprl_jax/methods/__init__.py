"""Training methods, one file each: a module of this package that declares METHOD is a method.

`METHODS` maps names to declarations. docs/extending.md shows how to add one.
"""

from collections.abc import Mapping, Sequence

import ml_collections

from cprl_jax.config.field import listed, near
from cprl_jax.methods.method import Batch, Forward, Method
from cprl_jax.runtime.declarations import declarations
from cprl_jax.runtime.errors import UserError

__all__ = ["METHODS", "Batch", "Forward", "Method", "check_names", "title"]

METHODS: Mapping[str, Method] = declarations(__name__, "METHOD")


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names as a tuple, or raises UserError for an unknown, repeated or missing one."""
    for name in names:
        if name not in METHODS:
            raise UserError(f"unknown method {name!r}{near(name, METHODS)}; allowed: {listed(METHODS)}")
    if not names or len(set(names)) != len(names):
        raise UserError(f"methods {'+'.join(names)!r}: name each method once; allowed: {listed(METHODS)}")
    return tuple(names)


def title(name: str, settings: ml_collections.ConfigDict) -> str:
    """A row's title, by what ran: 'CPRL (loss + SortMask, directions of 2 steps)'; `settings` is config.<name>."""
    method = METHODS[name]
    parts = [*method.parts(settings)]
    if settings.sort_mask and not any("SortMask" in part for part in parts):
        parts.append("with SortMask")
    return f"{method.title} ({', '.join(parts)})" if parts else method.title
