"""Networks that score images, made from a configuration.

In short:

    module = models.create(config.model)
    variables = models.initialize(module, key, image_size=224)
    variables = models.load_weights(variables, "resnet50.pth", config_model=config.model)
    score_fn = models.score_fn(module, variables)      # images [b, h, w, 3] in [0, 1] -> scores [b]
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from absl import logging
from jaxtyping import Array, Float, Key

from cprl_jax.layers.sort_mask import SortMaskConv, SortMaskPlacement
from cprl_jax.models.weights import load_weights, save_weights
from cprl_jax.runtime.errors import UserError

__all__ = ["create", "initialize", "load_weights", "masked_convolutions", "save_weights", "score_fn"]

# Where each network of config.model.name is; imported when asked for.
NETWORKS = {
    "hyperiqa": ("cprl_jax.models.hyperiqa", "HyperIQA"),
    "resnet": ("cprl_jax.models.resnet", "ResNetScore"),
    "squeezenet": ("cprl_jax.models.squeezenet", "SqueezeNetScore"),
    "compact": ("cprl_jax.models.compact", "CompactScore"),
    "ma19": ("cprl_jax.models.ma19", "Ma19"),
    "metaiqa": ("cprl_jax.models.metaiqa", "MetaIQA"),
}
BACKBONES = ("resnet18", "resnet34", "resnet50")
HAVE_BACKBONE = ("hyperiqa", "metaiqa", "resnet")
DTYPES = ("float32", "bfloat16")


def create(config_model: ml_collections.ConfigDict, axis_name: str | None = None) -> nn.Module:
    """The network of a configuration: `module.apply(variables, images, train=False)` gives scores [batch].

    Args:
      config_model: `config.model`, see cprl_jax/config/defaults.py.
      axis_name: the mapped axis over which a training batch is spread, if any.

    Raises:
      UserError: an unknown name, backbone or dtype, or a number that is out of its range.
    """
    name = config_model.name
    _check("name", name, tuple(NETWORKS))
    _check("dtype", config_model.dtype, DTYPES)
    if not 0 <= config_model.dropout < 1:
        raise UserError(f"config.model.dropout is {config_model.dropout}; it must be at least 0 and below 1")
    if config_model.score_std <= 0:
        raise UserError(f"config.model.score_std is {config_model.score_std}; it must be positive")
    sort_mask = config_model.sort_mask
    try:
        placement = SortMaskPlacement(
            rate=sort_mask.rate,
            min_channels=sort_mask.min_channels,
            stages=tuple(sort_mask.stages),
            selection=sort_mask.selection,
        )
    except ValueError as error:
        raise UserError(f"config.model.sort_mask: {error}") from error
    options = {}
    if name in HAVE_BACKBONE:
        _check("backbone", config_model.backbone, BACKBONES)
        options["backbone"] = config_model.backbone
    file, network = NETWORKS[name]
    return getattr(importlib.import_module(file), network)(
        sort_mask=placement,
        score_mean=float(config_model.score_mean),
        score_std=float(config_model.score_std),
        dtype=jnp.dtype(config_model.dtype),
        axis_name=axis_name,
        dropout=float(config_model.dropout),
        **options,
    )


def initialize(module: nn.Module, key: Key[Array, ""], image_size: int) -> dict:
    """Random variables of a network for square images of `image_size` pixels, computed under jit.

    Warns, once for each module, when SortMask is asked for and covers no convolution.
    """
    _warn_if_nothing_is_masked(module, image_size)
    return _initializer(module, image_size)(key)


@functools.cache
def _initializer(module: nn.Module, image_size: int) -> Callable[[Array], dict]:
    return jax.jit(lambda key: module.init(key, jnp.zeros((1, image_size, image_size, 3))))


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
        jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, image_size, image_size, 3))), jax.random.key(0))
    return names


def score_fn(
    module: nn.Module, variables: Mapping, *, masks: str = "sorted", key: Key[Array, ""] | None = None
) -> Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]:
    """The network as a score function: RGB images in [0, 1] to scores, the higher the better, in evaluation mode.

    It is a `jax.tree_util.Partial`: it goes through jit as a pytree of `variables`, and those of equal modules share
    their compiled code.

    Args:
      module: a network.
      variables: of the network.
      masks: what SortMask does; the others are for attacks that know of it. 'sorted': the network as it is.
        'straight_through': the same scores, with every masked convolution differentiated as if it masked nothing
        (BPDA). 'random': the masks of training (a module with an `axis_name` draws them only under that axis).
      key: for random masks, the one draw of them that scores all images. Without it, `masks='random'` gives a
        function of (key, images), as `cprl_jax.attacks.adaptive.expectation` takes it.

    Raises:
      ValueError: an unknown `masks`, a key for masks that are not random, or a network without SortMask.
    """
    if masks != "sorted":
        if not hasattr(module, "sort_mask"):
            raise ValueError(f"{type(module).__name__} has no SortMask: masks must be 'sorted', got {masks!r}.")
        module = module.clone(sort_mask=dataclasses.replace(module.sort_mask, masks=masks))
    if masks == "random":
        bound = (variables,) if key is None else (variables, key)
        return jax.tree_util.Partial(_evaluation_mode_with_random_masks(module), *bound)
    if key is not None:
        raise ValueError(f"key is for masks='random', got a key and masks={masks!r}.")
    return jax.tree_util.Partial(_evaluation_mode(module), variables)


@functools.cache
def _evaluation_mode(module: nn.Module) -> Callable[[Mapping, Array], Array]:
    def score(variables: Mapping, images: Array) -> Array:
        return module.apply(variables, images, train=False)

    return score


@functools.cache
def _evaluation_mode_with_random_masks(module: nn.Module) -> Callable[[Mapping, Array, Array], Array]:
    def score(variables: Mapping, key: Array, images: Array) -> Array:
        return module.apply(variables, images, train=False, rngs={"mask": key})

    return score


def _check(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"config.model.{field} {value!r} is unknown; allowed: {', '.join(allowed)}")
