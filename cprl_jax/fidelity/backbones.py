"""The convolutional networks whose features LPIPS and DISTS compare: VGG-16, AlexNet and SqueezeNet 1.1.

A network is a tuple of layers, in the order and numbering of torchvision's `features`, so that the parameters of layer
i are those of 'features.i' in its published weights; and the numbers of the layers after which features are taken.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Parameters = dict[str, dict[str, jax.Array]]  # {'features.0': {'kernel': HWIO, 'bias': ...}, ...}


class Conv(NamedTuple):
    features: int
    window: int
    stride: int = 1
    padding: int = 0


class Fire(NamedTuple):
    """A 1x1 convolution to few channels, then a 1x1 and a 3x3 convolution side by side; a ReLU after each."""

    squeeze: int
    expand: int  # channels of each of the two


class Pool(NamedTuple):
    window: int
    stride: int
    overhang: bool = False  # whether the last window may hang over the border


class Relu(NamedTuple):
    pass


class Network(NamedTuple):
    layers: tuple[Conv | Fire | Pool | Relu, ...]
    taps: tuple[int, ...]  # features are what these layers give
    widths: tuple[int, ...]  # their channels


def _vgg16() -> Network:
    layers, taps = [], []
    for repeats, features in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        layers += [Conv(features, 3, padding=1), Relu()] * repeats
        taps.append(len(layers) - 1)
        layers.append(Pool(2, 2))
    return Network(tuple(layers[:-1]), tuple(taps), (64, 128, 256, 512, 512))


NETWORKS: dict[str, Network] = {
    # Simonyan and Zisserman, arXiv:1409.1556, configuration D.
    "vgg16": _vgg16(),
    # Krizhevsky, arXiv:1404.5997, as in torchvision.
    "alexnet": Network(
        layers=(
            Conv(64, 11, stride=4, padding=2),
            Relu(),
            Pool(3, 2),
            Conv(192, 5, padding=2),
            Relu(),
            Pool(3, 2),
            Conv(384, 3, padding=1),
            Relu(),
            Conv(256, 3, padding=1),
            Relu(),
            Conv(256, 3, padding=1),
            Relu(),
        ),
        taps=(1, 4, 7, 9, 11),
        widths=(64, 192, 384, 256, 256),
    ),
    # Iandola et al., arXiv:1602.07360, version 1.1 of their repository.
    "squeezenet": Network(
        layers=(
            Conv(64, 3, stride=2),
            Relu(),
            Pool(3, 2, overhang=True),
            Fire(16, 64),
            Fire(16, 64),
            Pool(3, 2, overhang=True),
            Fire(32, 128),
            Fire(32, 128),
            Pool(3, 2, overhang=True),
            Fire(48, 192),
            Fire(48, 192),
            Fire(64, 256),
            Fire(64, 256),
        ),
        taps=(1, 4, 7, 9, 10, 11, 12),
        widths=(64, 128, 256, 384, 384, 512, 512),
    ),
}


def kernel_shapes(network: str) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """The name and the HWIO shape of the kernel of every convolution."""
    channels = 3
    for index, layer in enumerate(NETWORKS[network].layers):
        name = f"features.{index}"
        if isinstance(layer, Conv):
            yield name, (layer.window, layer.window, channels, layer.features)
            channels = layer.features
        elif isinstance(layer, Fire):
            yield f"{name}.squeeze", (1, 1, channels, layer.squeeze)
            yield f"{name}.expand1x1", (1, 1, layer.squeeze, layer.expand)
            yield f"{name}.expand3x3", (3, 3, layer.squeeze, layer.expand)
            channels = 2 * layer.expand


def check_network(network: str) -> None:
    """Raises ValueError for an unknown network."""
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(map(repr, NETWORKS))}, got {network!r}.")


def random_backbone(key: jax.Array, *, network: str = "vgg16") -> dict[str, np.ndarray]:
    """An untrained network, in the names and layout of torchvision's state dict: `features.0.weight` and so on.

    Kernels are normal with variance 2 / fan-in (He et al., arXiv:1502.01852), which keeps the size of features from
    layer to layer; biases are 0. LPIPS and DISTS on it are for tests and for timing, not for judging images.

    Args:
      key: random key of the draw.
      network: "vgg16", "alexnet" or "squeezenet".

    Raises:
      ValueError: an unknown network.
    """
    check_network(network)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())  # far faster than JAX's, on a CPU
    tensors = {}
    for name, shape in kernel_shapes(network):
        kernel = random.standard_normal((shape[3], shape[2], *shape[:2]), np.float32)
        tensors[f"{name}.weight"] = np.float32(math.sqrt(2 / math.prod(shape[:3]))) * kernel
        tensors[f"{name}.bias"] = np.zeros(shape[3], np.float32)
    return tensors


def features(
    network: str,
    parameters: Parameters,
    images: Float[Array, "batch height width 3"],
    *,
    pool: Callable[[jax.Array], jax.Array] | None = None,
) -> list[Float[Array, "batch stage_height stage_width channels"]]:
    """What the layers at the network's taps give, in order; `pool` replaces the max-poolings."""
    layers, taps, _ = NETWORKS[network]
    outputs, x = [], images
    for index, layer in enumerate(layers):
        name = f"features.{index}"
        match layer:
            case Conv():
                x = _conv(x, parameters[name], stride=layer.stride, padding=layer.padding)
            case Fire():
                x = _relu(_conv(x, parameters[f"{name}.squeeze"]))
                x = [_conv(x, parameters[f"{name}.expand1x1"]), _conv(x, parameters[f"{name}.expand3x3"], padding=1)]
                x = _relu(jnp.concatenate(x, axis=-1))
            case Pool():
                x = pool(x) if pool else _max_pool(x, layer)
            case Relu():
                x = _relu(x)
        if index in taps:
            outputs.append(x)
    return outputs


def smallest_image(network: str) -> int:
    """The smallest height and width in pixels that leave every layer a pixel."""
    return next(size for size in range(1, 1000) if _fits(network, size))


def _fits(network, size):
    for layer in NETWORKS[network].layers:
        if isinstance(layer, Conv):
            size = (size + 2 * layer.padding - layer.window) // layer.stride + 1
        elif isinstance(layer, Pool):
            reach = size - layer.window
            size = (-(-reach // layer.stride) if layer.overhang else reach // layer.stride) + 1
        if size < 1:
            return False
    return True


def _relu(x):
    return jax.nn.relu(x)  # with derivative 0 at 0


def _conv(x, parameters, *, stride=1, padding=0):
    # In full float32 also where the accelerator would round its operands: the distances of close images are small
    # differences of large features.
    x = lax.conv_general_dilated(
        x,
        parameters["kernel"].astype(x.dtype),
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return x + parameters["bias"].astype(x.dtype).reshape(1, 1, 1, -1)


def _max_pool(x, layer):
    """Maxima of shifted slices, one axis at a time: on a CPU the gradient is ten times cheaper than XLA's own."""
    for axis in (1, 2):
        size = x.shape[axis]
        if layer.overhang:
            padding = [(0, 0)] * 4
            padding[axis] = (0, (layer.window - size) % layer.stride)
            x = jnp.pad(x, padding, constant_values=-jnp.inf)
        span = (x.shape[axis] - layer.window) // layer.stride * layer.stride + 1
        slices = [lax.slice_in_dim(x, at, at + span, layer.stride, axis) for at in range(layer.window)]
        x = jax.tree.reduce(jnp.maximum, slices)
    return x
