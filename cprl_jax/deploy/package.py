"""The folder of a model for others: `model.safetensors`, `config.json`, and `README.md`, its card. No code, no pickle.

config.json:

    format    "cprl_jax model"
    version   of the format, 1
    method    what trained it, as in config.methods; of a run of Causal-IQA 'UPDATE/seed-K'
    network   the method whose network it has, since methods may change a network; mostly the same
    scale     what the scores mean: {"worst": 0, "best": 100}
    weights   {"dtype": of `tensors.DTYPES`, "sha256": of model.safetensors}
    config    fields of a configuration: model (the network and its settings), NETWORK (the settings of that method),
              seed (of the places of crops), dataset.resize, evaluation.crops, .crop_size and .batch_size
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import ml_collections
from flax.traverse_util import flatten_dict

from cprl_jax import models
from cprl_jax.config.defaults import completed, to_json
from cprl_jax.config.field import near
from cprl_jax.config.fields import ALL
from cprl_jax.deploy import tensors
from cprl_jax.methods import METHODS
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file
from cprl_jax.training.setup import create_model

FORMAT, VERSION = "cprl_jax model", 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
SCALE = {"worst": 0, "best": 100}
_TEXTS = ("method", "network")
_JUDGED = ("crops", "crop_size", "batch_size")


class Package(NamedTuple):
    """What a folder holds.

    Attributes:
      config: a whole configuration; what the folder does not say has its default.
      method, network: as in config.json.
      module, variables: the network, and its variables in float32.
      dtype: in which the weights are kept.
    """

    config: ml_collections.ConfigDict
    method: str
    network: str
    module: nn.Module
    variables: Mapping
    dtype: str


def is_package(folder: Path) -> bool:
    """Whether a folder is meant to be one: it has weights under their name, or a config.json that says so."""
    if (folder / WEIGHTS).exists():
        return True
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def read(folder: Path) -> Package:
    """Reads a folder; nothing but its weights and its config.json is opened.

    Raises:
      UserError: naming the file that is missing, damaged, of a later version, or not the one that belongs to the other.
    """
    content = _read_description(folder / CONFIG)
    path = folder / WEIGHTS
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); get the model again") from None
    try:
        config, network = _config_of(content), content["network"]
        module = create_model(config, network)
        size = config.evaluation.crop_size
        expected = jax.eval_shape(lambda: models.initialize(module, jax.random.key(0), size))
    except ValueError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    try:
        if hashlib.sha256(weights).hexdigest() != content["weights"]["sha256"]:
            raise ValueError("its checksum is not the one in config.json: it is damaged, or another model's")
        variables = tensors.decode(weights, expected)
    except ValueError as error:
        raise UserError(f"{path}: {error}; get the model again") from None
    return Package(config, content["method"], network, module, variables, content["weights"]["dtype"])


def write(folder: Path, package: Package, card: str) -> None:
    """Writes a folder, whole or not at all, over an older one of the same kind.

    Raises:
      UserError: the folder holds something else.
      ValueError: an unknown dtype, or weights that are not finite.
    """
    check(folder)
    weights = tensors.encode(package.variables, package.dtype)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "method": package.method,
        "network": package.network,
        "scale": SCALE,
        "weights": {"dtype": package.dtype, "sha256": hashlib.sha256(weights).hexdigest()},
        "config": _kept(package.config, package.network),
    }
    with _replaced(folder) as new:
        write_file(new / WEIGHTS, weights)
        write_file(new / CONFIG, json.dumps(description, indent=2) + "\n")
        write_file(new / CARD, card)


def check(folder: Path) -> None:
    """Raises UserError where a model would not be written: over a file, or over a folder with anything else in it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give another folder")
    others = sorted(set(os.listdir(folder)) - set(FILES)) if folder.exists() else []
    # A run's folder has a config.json as well.
    if others or (folder.exists() and os.listdir(folder) and not is_package(folder)):
        raise UserError(
            f"{folder} holds {(others or os.listdir(folder))[0]}, which is of no model; give another folder"
        )


@contextlib.contextmanager
def _replaced(folder: Path):
    """A new folder to fill, which takes the place of `folder` when it is full."""
    folder = Path(os.path.abspath(folder))
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:  # Ctrl-C, too
            if old.exists() and not folder.exists():
                os.rename(old, folder)
            raise
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _kept(config: ml_collections.ConfigDict, network: str) -> dict:
    """The fields that config.json keeps: no path of this machine, no settings of other networks."""
    values = json.loads(to_json(config))
    others = {"weights", *models.NETWORKS} - {config.model.name}
    return {
        "seed": values["seed"],
        "dataset": {"resize": values["dataset"]["resize"]},
        "model": {name: value for name, value in values["model"].items() if name not in others},
        network: values[network],
        "evaluation": {name: values["evaluation"][name] for name in _JUDGED},
    }


def _read_description(path: Path) -> dict:
    """The content of a config.json, whose own entries are of the right kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); get the model again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); get the model again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f'{path} is not that of a model: it has no "format": "{FORMAT}"')
    if (version := content.get("version")) != VERSION:
        raise UserError(f"{path} is of version {version!r}; this cprl_jax reads version {VERSION}: install another one")
    weights = content.get("weights")
    known = isinstance(weights, dict) and weights.get("dtype") in tensors.DTYPES
    wrong = [name for name in _TEXTS if not isinstance(content.get(name), str)]
    wrong += ["weights"] * (not known or not isinstance(weights.get("sha256"), str))
    wrong += ["config"] * (not isinstance(content.get("config"), dict))
    wrong += ["scale"] * (content.get("scale") != SCALE)
    if wrong:
        raise UserError(f"{path} is damaged: {wrong[0]} is missing or wrong; get the model again")
    return content


def _config_of(content: Mapping) -> ml_collections.ConfigDict:
    """The whole configuration; raises ValueError, naming the field, for one that is unknown or has a wrong value."""
    if content["network"] not in METHODS:
        raise ValueError(f"network is {content['network']!r}, which is no method{near(content['network'], METHODS)}")
    fields = content["config"]
    for name in flatten_dict(dict(fields), sep="."):
        if name not in ALL:
            raise ValueError(f"config.{name} is not known to this version of cprl_jax{near(name, ALL)}")
    return ml_collections.ConfigDict(completed(fields) | {"methods": (content["network"],)})
