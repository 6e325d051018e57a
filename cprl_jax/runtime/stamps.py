"""Stamps: what a kept result depends on, as one short text. Equal stamps, equal results."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

try:
    VERSION = importlib.metadata.version("cprl_jax")
except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
    VERSION = ""


def stamp(**parts: Any) -> str:
    """SHA-256 of everything that a result depends on, and of the package's version.

        stamp(variables=variables, module=module, pixels=crops, mos=mos, radius=2.0)

    Of an array, its dtype, shape and bits count, whether NumPy or JAX holds it. Lists and tuples are the same, and the
    order of a mapping's keys does not matter.

    Args:
      **parts: numbers, texts, None, paths, arrays, dtypes, classes and functions of a module (by name), and any
        mapping, sequence, dataclass (such as a flax module) or registered pytree of them. Of a pytree, its leaves count
        and not what is static in it.

    Raises:
      TypeError: anything else, such as a lambda, which has no name that would tell it from others.
    """
    described = _describe({"version": VERSION, "parts": parts})
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _describe(value: Any) -> Any:
    """The value as JSON, with a hash in place of the content of each array."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {"key": [str(jax.random.key_impl(value)), _describe(jax.random.key_data(value))]}
    if isinstance(value, jax.Array | np.ndarray | np.generic) and value.dtype != object:
        array = np.asarray(value)
        content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return {"array": [str(array.dtype), list(array.shape), content]}
    if isinstance(value, Mapping) or hasattr(value, "items"):  # a ConfigDict is no Mapping
        return {"mapping": {str(key): _describe(item) for key, item in value.items()}}
    if isinstance(value, list | tuple | range):
        return [_describe(item) for item in value]
    if isinstance(value, np.dtype):
        return {"dtype": str(value)}
    if callable(value) and "<" not in (name := getattr(value, "__qualname__", "<")):  # not <lambda>, not <locals>
        return {"name": f"{value.__module__}.{name}"}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {_describe(type(value))["name"]: fields}
    leaves = jax.tree_util.tree_leaves_with_path(value)
    if len(leaves) == 1 and leaves[0][1] is value:
        raise TypeError(f"a stamp cannot tell one {type(value).__name__} from another, got {value!r}")
    return {"tree": [[jax.tree_util.keystr(path), _describe(leaf)] for path, leaf in leaves]}
