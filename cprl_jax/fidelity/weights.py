"""The published weights of LPIPS, DISTS and their backbones, as arrays."""

import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cprl_jax.fidelity import tensor_files
from cprl_jax.fidelity.backbones import Parameters, kernel_shapes

Source = str | os.PathLike | Mapping[str, Any]

_TRUNK = "features."  # which the names of a whole network begin with, and those of its trunk alone lack


def read_backbone(source: Source, network: str) -> Parameters:
    """The convolutions of a torchvision state dict, as `backbones.features` takes them; its classifier is left out.

    Raises:
      ValueError: see `read_tensors`; a tensor is missing, unknown or of another shape than the network's.
    """
    shapes = dict(kernel_shapes(network))
    known = {f"{name}.{leaf}" for name in shapes for leaf in ("weight", "bias")}
    tensors = read_tensors(source, known | {name.removeprefix(_TRUNK) for name in known})
    if not any(name.startswith(_TRUNK) for name in tensors):
        tensors = {f"{_TRUNK}{name}": value for name, value in tensors.items()}
    unknown = sorted(name for name in tensors if name.startswith(_TRUNK) and name not in known)
    if unknown:
        raise ValueError(f"{_named(source)}: {unknown[0]!r} is not part of {network}: is it another network's file?")
    parameters: dict[str, dict[str, jax.Array]] = {}
    for name, shape in shapes.items():
        kernel = _take(tensors, f"{name}.weight", (shape[3], shape[2], *shape[:2]), source, network)
        bias = _take(tensors, f"{name}.bias", (shape[3],), source, network)
        parameters[name] = {"kernel": jnp.asarray(kernel.transpose(2, 3, 1, 0)), "bias": jnp.asarray(bias)}
    return parameters


def read_vectors(source: Source, widths: Mapping[str, int], *, what: str) -> dict[str, jax.Array]:
    """One weight >= 0 for each of so many channels, under each of the names; a file has them as [1, channels, 1, 1].

    Raises:
      ValueError: see `read_tensors`; one is missing, of another shape or has a negative value.
    """
    tensors = read_tensors(source, set(widths))
    vectors = {}
    for name, width in widths.items():
        vector = _take(tensors, name, (1, width, 1, 1), source, what).reshape(-1)
        if np.any(vector < 0):
            raise ValueError(f"{_named(source)}: {name!r} has negative values; the weights of {what} are at least 0.")
        vectors[name] = jnp.asarray(vector)
    return vectors


def read_tensors(source: Source, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The state dict that has the wanted names, as it is in the file but for a prefix, see `tensor_files.state_dict`.

    Args:
      source: the path of an .npz or .safetensors file or one of torch.save, 'owner/name' or 'owner/name:file' on
        Hugging Face, or a mapping from names to arrays. Code in a file is never executed.
      wanted: names that are looked for.

    Raises:
      ValueError: no such file, not one of these kinds, or no tensors in it.
    """
    if isinstance(source, Mapping):
        content = {name: value if isinstance(value, Mapping) else np.asarray(value) for name, value in source.items()}
    else:
        content = tensor_files.read(tensor_files.find(source))
    try:
        return tensor_files.state_dict(content, wanted).tensors
    except ValueError as error:
        raise ValueError(f"{_named(source)}: {error}") from None


def _take(tensors, name, shape, source, what):
    if name not in tensors:
        raise ValueError(f"{_named(source)}: {name!r} of {what} is missing: is it another network's file?")
    if tensors[name].shape != shape:
        raise ValueError(f"{_named(source)}: {name!r} has shape {tensors[name].shape}, {what} needs {shape}.")
    try:
        return tensor_files.as_float32(tensors[name], repr(name))
    except ValueError as error:
        raise ValueError(f"{_named(source)}: {error}") from None


def _named(source):
    return "the given arrays" if isinstance(source, Mapping) else str(source)
