"""Plugs: the modules of a package that declare themselves."""

import importlib
import pkgutil
import sys
from typing import Any


def declarations(package: str, constant: str) -> dict[str, Any]:
    """What the modules of a package declare under the name `constant`, by the declarations' own `name`, in file order.

    Called in the package's `__init__`, so that a new file is found without being named.
    """
    modules = [module for module in pkgutil.iter_modules(sys.modules[package].__path__) if module.name != "__main__"]
    declared = (getattr(importlib.import_module(f"{package}.{module.name}"), constant, None) for module in modules)
    return {entry.name: entry for entry in declared if entry is not None}
