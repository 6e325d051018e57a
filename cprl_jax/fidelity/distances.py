"""Every measure as a distance: 0 for equal images, larger for farther apart."""

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from cprl_jax.fidelity._fidelity import Fidelity

_FILES = pkgutil.iter_modules(sys.modules[__package__].__path__)
_MODULES = [importlib.import_module(f"{__package__}.{file.name}") for file in _FILES if file.name[0] != "_"]
FIDELITIES: Mapping[str, Fidelity] = {
    name: fidelity for module in _MODULES for name, fidelity in getattr(module, "FIDELITIES", {}).items()
}
"""Every measure by its name: the entries of FIDELITIES in the files of this package."""


def distance(name_or_function: str | Callable, **options: Any) -> Callable:
    """A measure in the form that attacks take: `distance(images, references) -> [batch]`.

    | name | distance | options |
    |---|---|---|
    | "chebyshev", "mse", "gmsd" | the measure itself | none |
    | "psnr" | 10^(-PSNR / 20), the root mean squared error: decreasing in PSNR, and 0 instead of infinite | none |
    | "ssim", "ms_ssim" | 1 - similarity | those of `ssim` and `ms_ssim` |
    | "lpips", "dists" | the measure itself | `parameters`, from `lpips_parameters` or `dists_parameters` |

    Args:
      name_or_function: a name of `FIDELITIES`; the function of that name in this package; or any function
        `(images, references, **options) -> [batch]` that is a distance already. A callable pytree comes back as it is.
      options: passed on to the measure. Arrays among the options of a user's function become leaves of the result.

    Returns:
      a callable pytree (`jax.tree_util.Partial`), whose leaves are the arrays among the options: it may be an argument
      of a compiled function. Equal names and options give equal ones, so that nothing is compiled twice.

    Raises:
      ValueError: an unknown name or option, an option that is neither an array nor hashable, or no parameters where
        they are needed.
    """
    name = _name(name_or_function)
    if name is None:
        return _bound(name_or_function, options)
    fidelity = FIDELITIES[name]
    if fidelity.kind == "learned":
        if set(options) != {"parameters"}:
            raise ValueError(
                f"{name} needs parameters={name}_parameters(...) and nothing else, got "
                f"{', '.join(map(repr, options)) or 'no options'}."
            )
        return fidelity.measure(options["parameters"])
    function = fidelity.distance or fidelity.measure
    allowed = inspect.signature(function).parameters.keys() - {"images", "references"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        has = f"its options are {', '.join(map(repr, sorted(allowed)))}" if allowed else "it has none"
        raise ValueError(f"{name} has no option {unknown[0]!r}: {has}.")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return Partial(_with_options(function, _hashable(options), fidelity.kind == "similarity"))


def _name(name_or_function) -> str | None:
    """The name of a measure of this package, None for any other function."""
    if not isinstance(name_or_function, str):
        if not callable(name_or_function):
            raise ValueError(f"give the name of a measure or a function, got {name_or_function!r}.")
        return next((name for name, entry in FIDELITIES.items() if entry.measure is name_or_function), None)
    if name_or_function not in FIDELITIES:
        close = difflib.get_close_matches(name_or_function.lower().replace("-", "_"), FIDELITIES, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown measure {name_or_function!r}; known: {', '.join(map(repr, FIDELITIES))}.{hint}")
    return name_or_function


def _bound(function, options):
    if not jax.tree_util.all_leaves([function]):
        # A Partial or another callable pytree has its arrays as leaves already.
        if options:
            raise ValueError(
                f"bind the options {', '.join(map(repr, options))} in the function itself: it is a pytree."
            )
        return function
    arrays = {name: value for name, value in options.items() if _is_tree_of_arrays(value)}
    static = {name: value for name, value in options.items() if name not in arrays}
    return Partial(_with_options(function, _hashable(static), False), **arrays)


def _is_tree_of_arrays(value):
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves)


@lru_cache(maxsize=256)
def _with_options(function, options, is_similarity):
    """One function object for equal options: what compiled code is found by."""

    def measured(images, references, **arrays):
        value = function(images, references, **dict(options), **arrays)
        return 1 - value if is_similarity else value

    return measured


def _hashable(options):
    for name, value in options.items():
        try:
            hash(value)
        except TypeError as error:
            raise ValueError(
                f"option {name!r} is a {type(value).__name__}, which is neither an array nor hashable."
            ) from error
    return tuple(sorted(options.items()))
