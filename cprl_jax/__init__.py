"""Robust no-reference image-quality models: how they are trained, attacked and judged.

    import cprl_jax

    cprl_jax.load         # a trained model, by name: cprl_jax.load("robust").score(["photo.jpg"])
    cprl_jax.attacks      # adversarial attacks on any score function
    cprl_jax.fidelity     # full-reference distances: how much an image changed
    cprl_jax.models       # the networks and their score functions
    cprl_jax.robustness   # robustness in numbers, landscapes, signs of masked gradients

Each is imported when it is first used, so that `import cprl_jax` alone imports neither them nor JAX. Everything else
belongs to the programs (`python -m cprl_jax.main --help`) and may change from one version to the next.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cprl_jax import attacks, fidelity, models, robustness
    from cprl_jax.deploy import load

__all__ = ["__version__", "attacks", "fidelity", "load", "models", "robustness"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        try:
            return metadata.version(__name__)
        except metadata.PackageNotFoundError:  # a source tree that is not installed
            return "0+unknown"
    if name == "load":
        return importlib.import_module(f"{__name__}.deploy").load
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
