"""Datasets, splits and the input pipeline.

`load` gives a `QualityDataset` by its name in a config; `splits` divides it, `pipeline` makes training batches of it
and `crops` the fixed crops to test on.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cprl_jax.data.by_name import DATASETS, FIELDS, RELEASES, QualityDataset, computed_labels, load

__all__ = ["DATASETS", "FIELDS", "RELEASES", "QualityDataset", "computed_labels", "load"]


def __getattr__(name: str) -> Any:
    """On first use: the programs of this folder must own Ctrl-C before anything is imported that takes seconds."""
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.by_name"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
