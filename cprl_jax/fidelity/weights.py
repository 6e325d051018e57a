"""Reading the published weights of LPIPS, DISTS and their backbones."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cprl_jax.fidelity.backbones import Parameters, kernel_shapes

_SUFFIXES = (".npz", ".safetensors", ".pth", ".pt")

Source = str | os.PathLike | Mapping[str, Any]


def read_backbone(source: Source, network: str) -> Parameters:
    """The convolutions of a torchvision state dict, as `backbones.features` takes them; its classifier is left out.

    Raises:
      ValueError: see `read_tensors`; a tensor is missing, unknown or of another shape than the network's.
    """
    tensors = read_tensors(source)
    parameters: dict[str, dict[str, jax.Array]] = {}
    for name, shape in kernel_shapes(network):
        kernel = _take(tensors, f"{name}.weight", (shape[3], shape[2], *shape[:2]), source, network)
        bias = _take(tensors, f"{name}.bias", (shape[3],), source, network)
        parameters[name] = {"kernel": jnp.asarray(kernel.transpose(2, 3, 1, 0)), "bias": jnp.asarray(bias)}
    known = {f"{name}.{leaf}" for name in parameters for leaf in ("weight", "bias")}
    unknown = sorted(name for name in tensors if name.startswith("features.") and name not in known)
    if unknown:
        raise ValueError(f"{_named(source)}: {unknown[0]!r} is not part of {network}: is it another network's file?")
    return parameters


def read_vectors(source: Source, widths: Mapping[str, int], *, what: str) -> dict[str, jax.Array]:
    """One weight >= 0 for each of so many channels, under each of the names; a file has them as [1, channels, 1, 1].

    Raises:
      ValueError: see `read_tensors`; one is missing, of another shape or has a negative value.
    """
    tensors = read_tensors(source)
    vectors = {}
    for name, width in widths.items():
        vector = _take(tensors, name, (1, width, 1, 1), source, what).reshape(-1)
        if np.any(vector < 0):
            raise ValueError(f"{_named(source)}: {name!r} has negative values; the weights of {what} are at least 0.")
        vectors[name] = jnp.asarray(vector)
    return vectors


def read_tensors(source: Source) -> dict[str, np.ndarray]:
    """All tensors of a state dict by name, as float32.

    Args:
      source: a path (.npz, .safetensors, .pth, .pt), 'owner/name:file' on Hugging Face, or a mapping from names to
        arrays. Pickled code is never executed.

    Raises:
      ValueError: no such file, not one of these kinds, torch would be needed and is not there, or values that are not
        finite.
    """
    tensors = source if isinstance(source, Mapping) else _read(_find(str(source)))
    result = {}
    for name, value in tensors.items():
        value = np.asarray(value)
        if jnp.issubdtype(value.dtype, jnp.floating):  # also bfloat16; the rest are counters of batch normalisation
            result[name] = value.astype(np.float32)
            if not np.all(np.isfinite(result[name])):
                raise ValueError(f"{_named(source)}: {name!r} holds values that are not finite.")
    return result


def _take(tensors, name, shape, source, what):
    if name not in tensors:
        raise ValueError(f"{_named(source)}: {name!r} of {what} is missing: is it another network's file?")
    if tensors[name].shape != shape:
        raise ValueError(f"{_named(source)}: {name!r} has shape {tensors[name].shape}, {what} needs {shape}.")
    return tensors[name]


def _named(source):
    return "the given arrays" if isinstance(source, Mapping) else str(source)


def _find(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    repository, _, file = source.partition(":")
    if not file or repository.count("/") != 1 or not all(repository.split("/")):
        raise ValueError(
            f"no file {source!r}; give a path ({', '.join(_SUFFIXES)}) or 'owner/name:file' on Hugging Face."
        )
    import huggingface_hub  # here: slow to import, and rarely needed

    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:  # connection, service, name or cache: the library has no common class
        raise ValueError(
            f"{source!r} is no local file, and could not be fetched from Hugging Face ({_reason(error)}); check the "
            "name and the connection, or give the path of a local file."
        ) from error


def _read(path: Path) -> Mapping[str, np.ndarray]:
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
    if path.suffix not in readers:
        raise ValueError(f"{path}: unknown kind of file; allowed: {', '.join(_SUFFIXES)}.")
    try:
        return readers[path.suffix](path)
    except ImportError as error:
        raise ValueError(f"{path}: reading it needs {error.name}, which is not installed.") from error
    except Exception as error:  # every format's library has its own kinds
        raise ValueError(f"{path}: not a {path.suffix} file of plain tensors ({_reason(error)}).") from error


def _read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_safetensors(path):
    import safetensors.numpy

    return safetensors.numpy.load_file(path)


def _read_torch(path):
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.detach().float().numpy() for name, value in content.items() if value.is_floating_point()}


def _reason(error):
    """The kind of an error and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
