"""Reading published weights of any of the usual formats into our variables, and writing our own."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from cprl_jax.models import torch_names
from cprl_jax.models.common import IMAGENET_MEAN, IMAGENET_STD
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_arrays

SUFFIXES = (".npz", ".safetensors", ".pth", ".pt", ".pkl")

# Of RGB in [0, 1]: the Caffe models were trained on 0..255 minus these means.
_CAFFE_MEAN = tuple(value / 255.0 for value in (123.68, 116.779, 103.939))
_CAFFE_STD = (1.0 / 255.0,) * 3

# What a checkpoint file may have around its state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "params")

_WRONG_NETWORK = "(is config.model the network of this file?)"

# The layers in which the score is linear; the first one's bias is added to it.
_LAST_LAYERS = {"resnet": ("head",), "hyperiqa": ("fc5b_fc", "fc5w_fc"), "ma19": ("head",)}

_Tensors = dict[str, np.ndarray]


def load_weights(variables: Mapping, source: str | os.PathLike, *, config_model: ml_collections.ConfigDict) -> dict:
    """Puts published weights, or our own, in the place of `variables`.

    Understood are, whatever the kind of file: our own names (from `save_weights`); torchvision's ResNets and SqueezeNet
    1.1 (the classifier is left out, but for MetaIQA, which has it); HyperIQA, MetaIQA and Ma19 as their authors publish
    them; SqueezeNet 1.1 in the names of Caffe and its Keras ports. The state dict may lie under 'state_dict', 'model'
    or 'params', and its names may begin with 'module.'. A file with the trunk alone leaves the head as it is, and the
    log says so; a linear head from torch is rescaled so that the scores under config_model.score_mean and .score_std
    are those of the file. Pickled code is never executed.

    Args:
      variables: of the network, as `initialize` returns them.
      source: a path (.npz, .safetensors, .pth, .pt, .pkl), or 'owner/name' or 'owner/name:file' on Hugging Face.
      config_model: `name`, `score_mean` and `score_std` are read.

    Returns:
      variables of the same structure, as float32 NumPy arrays.

    Raises:
      UserError: no such file; not a file of weights; a tensor is missing, unknown, not finite or of a wrong shape;
        torch or the connection would be needed and is not there.
    """
    network = config_model.name
    path = _find(str(source))
    tensors = _read(path)
    ours = _flat(variables)
    if any(name.startswith("params/") for name in tensors):
        found = tensors
    elif network == "squeezenet" and any(name.endswith("/w") for name in tensors):
        found = _from_caffe(tensors, path)
    elif torch_names.has_torch_names(network):
        found = _from_torch(tensors, ours, path, config_model)
    else:
        raise UserError(f"{path}: there are no published weights of {network!r}; give an .npz file saved by cprl_jax")
    return _assign(ours, found, path, network)


def save_weights(path: str | os.PathLike, variables: Mapping) -> None:
    """Writes variables to an .npz file, named by their slash-joined paths ('params/backbone/conv1/kernel').

    The file is complete or not there: it is written under another name and moved.
    """
    write_arrays(path, {name: np.asarray(value) for name, value in _flat(variables).items()})


def _flat(variables: Mapping) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(dict(variables), sep="/")


def _assign(ours: Mapping[str, Any], found: Mapping[str, np.ndarray], path: Path, network: str) -> dict:
    """`ours` with the values of `found`, which has the same names; any part but the trunk may be missing as a whole."""
    unknown = sorted(set(found) - set(ours))
    if unknown:
        raise UserError(f"{path}: {_listed(unknown)} not known to {network} {_WRONG_NETWORK}")
    parts: dict[str, list[str]] = {}
    for name in ours:
        parts.setdefault(_part(name), []).append(name)
    kept = []
    for part, names in parts.items():
        missing = sorted(name for name in names if name not in found)
        if missing and (len(missing) < len(names) or part == "trunk"):
            raise UserError(f"{path}: {_listed(missing)} of {network} missing {_WRONG_NETWORK}")
        if missing:
            kept.append(part)
    for name, value in found.items():
        expected = tuple(ours[name].shape)
        if value.shape != expected:
            raise UserError(f"{path}: {name} has shape {value.shape}, {network} needs {expected}")
    left = "".join(f"; not in the file, so left as it was: {part}" for part in kept if part != "input normalisation")
    logging.info("weights of %s from %s%s", network, path, left)
    merged = {name: np.asarray(found.get(name, value), np.float32) for name, value in ours.items()}
    return flax.traverse_util.unflatten_dict(merged, sep="/")


def _part(name: str) -> str:
    _, *place = name.split("/")
    if place[0] != "backbone":
        return "head"
    if place[1] == "input":
        return "input normalisation"
    return "local distortion layers" if place[1].startswith("lda") else "trunk"


def _from_caffe(tensors: _Tensors, path: Path) -> _Tensors:
    """Names and input convention of the Caffe SqueezeNet (HWIO, as its Keras ports store it) turned into ours.

    Its input is BGR. Turning over the input axis of the first kernel makes that RGB.
    """
    leaves = {"w": "kernel", "b": "bias"}
    found = {}
    for name, value in tensors.items():
        layer, _, leaf = name.rpartition("/")
        if leaf not in leaves:
            raise UserError(f"{path}: unknown name {name!r}; those of SqueezeNet end in /w and /b")
        if layer == "conv10":
            continue  # the classifier
        if name == "conv1/w" and value.ndim == 4:
            value = value[:, :, ::-1]
        found[f"params/backbone/{layer}/{leaves[leaf]}"] = value
    return {**found, **_input_normalization(_CAFFE_MEAN, _CAFFE_STD)}


def _from_torch(tensors: _Tensors, ours: Mapping[str, Any], path: Path, config_model) -> _Tensors:
    network = config_model.name
    names = {}
    for name in ours:
        theirs = torch_names.torch_name(network, name.split("/")[1:])
        if theirs is not None:
            names[name] = theirs
    if network == "hyperiqa" and not any(name.startswith("res.") for name in tensors):
        # A trunk as torchvision names it.
        names = {name: theirs.removeprefix("res.") if "/resnet/" in name else theirs for name, theirs in names.items()}
    if network == "metaiqa" and not any(name.startswith("resnet_layer.") for name in tensors):
        # A classifier as torchvision names it.
        names = {name: theirs.removeprefix("resnet_layer.") for name, theirs in names.items()}
    if network == "ma19" and not any(name.startswith("cnn.") for name in tensors):
        # The state dict of its nn.Sequential alone.
        names = {name: theirs.removeprefix("cnn.") for name, theirs in names.items()}
    wanted = set(names.values())
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    unknown = sorted(name for name in set(tensors) - wanted if not torch_names.is_classifier(network, name))
    if unknown:
        raise UserError(f"{path}: {_listed(unknown)} not known to {network} {_WRONG_NETWORK}")
    if network == "resnet" and "fc.weight" in tensors and tensors["fc.weight"].shape[0] != 1:
        tensors = {name: value for name, value in tensors.items() if not torch_names.is_classifier(network, name)}

    found = {}
    for name, theirs in names.items():
        if theirs not in tensors:
            continue
        value, expected = tensors[theirs], torch_names.torch_shape(ours[name].shape)
        if value.shape != expected:
            raise UserError(f"{path}: {theirs} has shape {value.shape}, {network} needs {expected} {_WRONG_NETWORK}")
        found[name] = torch_names.from_torch_layout(value, theirs)
    missing = sorted(names[name] for name in names if name not in found and _part(name) == "trunk")
    if missing:
        raise UserError(f"{path}: {_listed(missing)} of {network} missing {_WRONG_NETWORK}")
    _rescale_head(found, network, mean=float(config_model.score_mean), std=float(config_model.score_std))
    if any(_part(name) == "input normalisation" for name in ours):
        found.update(_input_normalization(IMAGENET_MEAN, IMAGENET_STD))
    return found


def _rescale_head(found: _Tensors, network: str, *, mean: float, std: float) -> None:
    """Makes mean + std * output what the output was before."""
    for layer in _LAST_LAYERS.get(network, ()):
        for leaf in ("kernel", "bias"):
            name = f"params/{layer}/{leaf}"
            if name in found:
                offset = mean if (layer, leaf) == (_LAST_LAYERS[network][0], "bias") else 0.0
                value = found[name]
                found[name] = (value - offset) / std
                if network == "ma19":  # its second output is the logarithm of the variance
                    found[name][..., 1] = value[..., 1] - (2.0 * math.log(std) if leaf == "bias" else 0.0)


def _input_normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> _Tensors:
    place = "batch_stats/backbone/input"
    return {f"{place}/mean": np.asarray(mean, np.float32), f"{place}/std": np.asarray(std, np.float32)}


def _find(source: str) -> Path:
    """The local path of a source, downloaded if it is a name on Hugging Face."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    repository, _, file = source.partition(":")
    parts = repository.split("/")
    if path.is_dir() or len(parts) != 2 or not all(parts) or (not file and path.suffix in SUFFIXES):
        raise UserError(
            f"config.model.weights: no file {source!r}; give a path ({', '.join(SUFFIXES)}) or a Hugging Face name, "
            "owner/name or owner/name:file"
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


def _read(path: Path) -> _Tensors:
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


def _read_npz(path: Path) -> _Tensors:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise UserError(f"{path}: not an .npz file of plain arrays ({_reason(error)})") from error


def _read_safetensors(path: Path) -> _Tensors:
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # its own, and KeyError for a type that an older version does not know
        raise UserError(f"{path}: not a safetensors file ({_reason(error)})") from error


def _read_torch(path: Path) -> _Tensors:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path}: reading it needs torch: pip install 'cprl_jax[torch]'") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch each have their own
        raise UserError(
            f"{path}: torch cannot read it as tensors alone ({_reason(error)}); if it holds a whole module, save the "
            "module's state_dict() instead"
        ) from error
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path}: not a state dict: tensors by name, at the top or under {', '.join(_WRAPPERS)}")
    # NumPy has no bfloat16.
    content = {name: value.float() if value.is_floating_point() else value for name, value in content.items()}
    return {name: value.detach().numpy() for name, value in content.items()}


def _reason(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _listed(names: list[str], shown: int = 5) -> str:
    """'a, b', or 'a, b, ... (7 in all)'."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text}, ... ({len(names)} in all)"
