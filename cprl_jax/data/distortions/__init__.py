"""Graded distortions of photographs: pure functions of an image, a level and a key of random numbers.

Every entry of `DISTORTIONS` has levels 1 (least) to 5 (most). A module of this package that declares DISTORTIONS adds
its entries, usually a family: the six of the embedded dataset (parameters ours), and the published ones, whose entries
name the generator that their parameters come from in `source`. docs/extending.md shows how to add one. All of them take
and give RGB in 0..255; parameters keep the scale of their source, as `unit` says.

Pointwise functions, noise and filters are written once for NumPy and JAX arrays: `DISTORTIONS[name].apply(image,
parameter, key)` on JAX arrays differentiates, maps and compiles where `differentiable` is set. Codecs and other
irregular ones are NumPy, SciPy and Pillow only.

`distort` rounds to 8 bits. Its results are the same on every machine up to the codecs that Pillow was built with.
"""

import importlib
import pkgutil

import numpy as np
from jaxtyping import UInt8

from cprl_jax.data.distortions._arrays import Key
from cprl_jax.data.distortions._color import luma
from cprl_jax.data.distortions._distortion import LEVELS, Distortion

__all__ = ["DISTORTIONS", "FAMILIES", "LEVELS", "Distortion", "Key", "distort", "luma"]


_FIRST = ("embedded", "kadid", "tid2013", "mlive")
"""Modules whose entries come first, in the order that sets made by `data.synthesize` have; the others by name."""


def _declared() -> dict[str, Distortion]:
    names = [file.name for file in pkgutil.iter_modules(__path__) if file.name[0] != "_"]
    names.sort(key=lambda name: (*_FIRST, name).index(name))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {name: entry for module in modules for name, entry in getattr(module, "DISTORTIONS", {}).items()}


DISTORTIONS: dict[str, Distortion] = _declared()
FAMILIES = tuple(dict.fromkeys(distortion.family for distortion in DISTORTIONS.values()))
"""In the order of their first entries."""
SMALLEST_SIDE = 16
"""In pixels, for the published distortions: their patches and windows need room."""


def distort(
    image: UInt8[np.ndarray, "height width 3"], name: str, *, level: int, key: Key
) -> UInt8[np.ndarray, "height width 3"]:
    """One distorted image.

    Args:
      image: RGB, uint8.
      name: a key of `DISTORTIONS`.
      level: 1 (least) to 5 (most).
      key: seed of the random numbers, for the distortions that use any: a whole number from 0, a sequence of them, or
        a JAX key. Equal keys give the same pattern at every level, only stronger.

    Raises:
      ValueError: an unknown name, a level outside 1..5, a key of another kind, or an image that is not uint8
        [height, width, 3] or, for the published distortions, has fewer than 16 rows or columns.
    """
    if name not in DISTORTIONS:
        raise ValueError(f"unknown distortion {name!r}: allowed are {', '.join(DISTORTIONS)}")
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is not allowed: levels are {LEVELS[0]} to {LEVELS[-1]}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}: allowed is uint8 [height, width, 3] (RGB)")
    distortion = DISTORTIONS[name]
    if distortion.family != "embedded" and min(image.shape[:2]) < SMALLEST_SIDE:
        raise ValueError(
            f"image is {image.shape[0]} x {image.shape[1]}: {name} needs {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels"
        )
    distorted = distortion.apply(image.astype(np.float64), distortion.parameters[level - 1], key)
    return np.clip(np.round(distorted), 0, 255).astype(np.uint8)
