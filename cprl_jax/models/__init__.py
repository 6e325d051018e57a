"""Networks that score images, made from a configuration.

In short:

    module = models.create(config.model)
    variables = models.initialize(module, key, image_size=224)
    variables = models.load_weights(variables, "resnet50.pth", config_model=config.model)
    score_fn = models.score_fn(module, variables)      # images [b, h, w, 3] in [0, 1] -> scores [b]

`NETWORKS` are those there are, by name: every file of this folder that declares a `NETWORK`.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from absl import logging
from jaxtyping import Array, Float, Key

from cprl_jax.config.field import Field, listed, near
from cprl_jax.fidelity import tensor_files
from cprl_jax.layers.sort_mask import SortMaskConv, SortMaskPlacement
from cprl_jax.models import fitted, weights
from cprl_jax.models.change import NetworkChange, check_change
from cprl_jax.models.network import Network
from cprl_jax.models.weights import save_weights
from cprl_jax.runtime.declarations import declarations
from cprl_jax.runtime.errors import UserError

__all__ = [
    "NETWORKS",
    "create",
    "initialize",
    "last_map",
    "load_weights",
    "masked_convolutions",
    "network_of",
    "save_weights",
    "score_fn",
    "weights_file",
]


NETWORKS: dict[str, Network] = declarations(__name__, "NETWORK")

_UNCHANGED = NetworkChange()
_DTYPE = Field("float32", choices=("float32", "bfloat16"))
_DROPOUT = Field(0.0, at_least=0, below=1)
_SCORE_STD = Field(1.0, above=0)


def network_of(config_model: ml_collections.ConfigDict) -> Network:
    """The declaration of the network that `config.model.name` names.

    Raises:
      UserError: an unknown name.
    """
    name = config_model.name
    if name not in NETWORKS:
        raise UserError(f"config.model.name is {name!r}{near(name, NETWORKS)}; allowed: {listed(NETWORKS)}")
    return NETWORKS[name]


def create(
    config_model: ml_collections.ConfigDict, axis_name: str | None = None, change: NetworkChange = _UNCHANGED
) -> nn.Module:
    """The network of a configuration: `module.apply(variables, images, train=False)` gives scores [batch].

    Args:
      config_model: `config.model`, see cprl_jax/config/defaults.py.
      axis_name: the mapped axis over which a training batch is spread, if any.
      change: what the training method changes in the network.

    Raises:
      UserError: an unknown name, backbone or dtype, or a value that is out of its range.
    """
    network = network_of(config_model)
    for name, field in (("dtype", _DTYPE), ("dropout", _DROPOUT), ("score_std", _SCORE_STD)):
        field.check(f"config.model.{name}", config_model[name])
    options = network.settings_of(config_model)
    if network.variants:
        options["backbone"] = network.variant(config_model.backbone)
    return network.module(
        sort_mask=_placement(network, config_model.sort_mask),
        change=change,
        score_mean=float(config_model.score_mean),
        score_std=float(config_model.score_std),
        dtype=jnp.dtype(config_model.dtype),
        axis_name=axis_name,
        dropout=float(config_model.dropout),
        **options,
    )


def _placement(network: Network, sort_mask: ml_collections.ConfigDict) -> SortMaskPlacement:
    """Where masks are; no `stages` and `min_channels=0` mean those that the network declares."""
    stages = tuple(sort_mask.stages) or network.sort_mask.stages
    for stage in stages:
        if stage not in network.stages:
            raise UserError(
                f"config.model.sort_mask.stages names {stage!r}; the stages of {network.name} are "
                f"{listed(network.stages)}"
            )
    min_channels = sort_mask.min_channels or network.sort_mask.min_channels
    rate = sort_mask.rate if network.stages else 0.0  # without convolutions there is nothing to mask
    try:
        return SortMaskPlacement(rate, min_channels, stages, sort_mask.selection)
    except ValueError as error:
        raise UserError(f"config.model.sort_mask: {error}") from error


def load_weights(
    variables: Mapping,
    source: str | os.PathLike,
    *,
    config_model: ml_collections.ConfigDict,
    field: str = "config.model.weights",
) -> dict:
    """Puts published weights, or our own, in the place of `variables`.

    Understood are, whatever the kind of file: our own names (from `save_weights`); the names under which a network's
    authors or torchvision publish it (an image classifier is left out, but for MetaIQA, which has it); SqueezeNet 1.1
    in the names of Caffe and its Keras ports. The state dict may lie anywhere in the file, behind any prefix such as
    'module.'; of several copies the averaged one is taken (ema, swa), else the first, and the log says so. A file with
    the trunk alone leaves the head as it is, and the log says so; a linear head from torch is rescaled so that the
    scores under config_model.score_mean and .score_std are those of the file. Torch is not needed, and pickled code is
    never executed.

    Args:
      variables: of the network, as `initialize` returns them.
      source: the path of an .npz or .safetensors file or one of torch.save, whatever it is called; 'owner/name' or
        'owner/name:file' on Hugging Face; or 'imagenet': the file of an installed package that the network declares.
      config_model: `name`, `backbone`, `score_mean`, `score_std` and the network's settings are read.
      field: what the person who gave `source` calls it; for messages.

    Returns:
      variables of the same structure, as float32 NumPy arrays.

    Raises:
      UserError: no such file; not a file of weights; a tensor is missing, unknown, not finite or of a wrong shape; the
        connection or a package would be needed and is not there.
    """
    path = weights_file(source, config_model=config_model, field=field)
    network = network_of(config_model)
    if network.fit is not None:
        return fitted.load(create(config_model), variables, path, network.read)
    return weights.load(network, variables, path, config_model=config_model)


def weights_file(
    source: str | os.PathLike, *, config_model: ml_collections.ConfigDict, field: str = "config.model.weights"
) -> Path:
    """The file that `load_weights` reads for the same arguments; raises UserError if there is none."""
    network = network_of(config_model)
    if str(source) == "imagenet":
        source = weights.packaged(NETWORKS, network.name, network.variant(config_model.backbone))
    try:
        return tensor_files.find(source)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from error


def initialize(module: nn.Module, key: Key[Array, ""], image_size: int) -> dict:
    """Random variables of a network for square images of `image_size` pixels, computed under jit.

    Warns, once for each module, when SortMask is asked for and covers no convolution.

    Raises:
      UserError: the network has no place for what the training method changes.
    """
    _check_change(module, image_size)
    _warn_if_nothing_is_masked(module, image_size)
    return _initializer(module, image_size)(key)


@functools.cache
def _initializer(module: nn.Module, image_size: int) -> Callable[[Array], dict]:
    def init(key):
        return module.init({"params": key, "change": key}, jnp.zeros((1, image_size, image_size, 3)))

    return jax.jit(init)


_check_change = functools.cache(check_change)


@functools.cache
def _warn_if_nothing_is_masked(module: nn.Module, image_size: int) -> None:
    if module.sort_mask.rate > 0 and not masked_convolutions(module, image_size):
        logging.warning(
            "config.model.sort_mask covers no convolution of this network: none in stages %s has %d input channels or "
            "more; lower config.model.sort_mask.min_channels, or set other stages",
            module.sort_mask.stages,
            module.sort_mask.min_channels,
        )


def masked_convolutions(module: nn.Module, image_size: int) -> list[str]:
    """The names of the convolutions that SortMask covers ('backbone/layer2_1/conv1'), in the order of their use."""
    names = []

    def note(call: Callable, arguments, keywords, context):
        if isinstance(context.module, SortMaskConv) and context.method_name == "__call__":
            names.append("/".join(context.module.path))
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        keys = dict.fromkeys(("params", "change"), jax.random.key(0))
        jax.eval_shape(lambda: module.init(keys, jnp.zeros((1, image_size, image_size, 3))))
    return names


def last_map(
    module: nn.Module, variables: Mapping, images: Float[Array, "batch height width 3"]
) -> Float[Array, "batch *places channels"] | None:
    """The last map, or vectors, that a network's submodule `backbone` returns, in evaluation mode; None without one."""

    def keep(submodule: nn.Module, method: str) -> bool:
        return submodule.path == ("backbone",) and method == "__call__"

    kept = module.apply(variables, images, train=False, capture_intermediates=keep, mutable=["intermediates"])[1]
    outputs = kept.get("intermediates", {}).get("backbone", {})
    maps = [leaf for leaf in jax.tree.leaves(outputs) if jnp.ndim(leaf) > 1]
    return maps[-1] if maps else None


def score_fn(
    module: nn.Module,
    variables: Mapping,
    *,
    masks: str = "sorted",
    key: Key[Array, ""] | None = None,
    dtype: Any = jnp.float32,
) -> Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]:
    """The network as a score function: RGB images in [0, 1] to scores, the higher the better, in evaluation mode.

    It is a `jax.tree_util.Partial`: it goes through jit as a pytree of `variables`, and those of equal modules share
    their compiled code.

    The score of a network that is random in evaluation mode too (`NetworkChange.draws`) is the mean over so many draws,
    which are the same at every call.

    Args:
      module: a network.
      variables: of the network.
      masks: what SortMask does; the others are for attacks that know of it. 'sorted': the network as it is.
        'straight_through': the same scores, with every masked convolution differentiated as if it masked nothing
        (BPDA). 'random': the masks of training (a module with an `axis_name` draws them only under that axis).
      key: for random masks, the one draw of them that scores all images. Without it, `masks='random'` gives a
        function of (key, images), as `cprl_jax.attacks.adaptive.expectation` takes it. For a network that is random in
        evaluation mode too, the key of its draws; another one for each judge that an attacker has not seen.
      dtype: of the computation, whatever the module was trained in: rounding to bfloat16 hides small changes of an
        image from the score, and makes any network look robust.

    Raises:
      ValueError: an unknown `masks`, a key for a network and masks that are not random, or a network without SortMask.
    """
    dtype = jnp.dtype(dtype)
    if (trained := getattr(module, "dtype", None)) is not None and jnp.dtype(trained) != dtype:
        module = module.clone(dtype=dtype)
    if masks != "sorted":
        if not hasattr(module, "sort_mask"):
            raise ValueError(f"{type(module).__name__} has no SortMask: masks must be 'sorted', got {masks!r}.")
        module = module.clone(sort_mask=dataclasses.replace(module.sort_mask, masks=masks))
    if masks == "random":
        bound = (variables,) if key is None else (variables, key)
        return jax.tree_util.Partial(_evaluation_mode_with_random_masks(module), *bound)
    if draws := getattr(module, "change", _UNCHANGED).draws:
        key = jax.random.key(0) if key is None else key
        return jax.tree_util.Partial(_mean_over_draws(module, draws), variables, key)
    if key is not None:
        raise ValueError(f"key is for masks='random' and networks that are random, got a key and masks={masks!r}.")
    return jax.tree_util.Partial(_evaluation_mode(module), variables)


@functools.cache
def _evaluation_mode(module: nn.Module) -> Callable[[Mapping, Array], Array]:
    def score(variables: Mapping, images: Array) -> Array:
        return module.apply(variables, images, train=False)

    return score


@functools.cache
def _mean_over_draws(module: nn.Module, draws: int) -> Callable[[Mapping, Array, Array], Array]:
    def score(variables: Mapping, key: Array, images: Array) -> Array:
        def draw(key):
            return module.apply(variables, images, train=False, rngs={"change": key})

        return jnp.mean(jax.vmap(draw)(jax.random.split(key, draws)), axis=0)

    return score


@functools.cache
def _evaluation_mode_with_random_masks(module: nn.Module) -> Callable[[Mapping, Array, Array], Array]:
    def score(variables: Mapping, key: Array, images: Array) -> Array:
        return module.apply(variables, images, train=False, rngs={"mask": key})

    return score
