"""Learned perceptual image patch similarity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from cprl_jax.fidelity import backbones
from cprl_jax.fidelity._fidelity import Fidelity
from cprl_jax.fidelity._images import check_pair, not_finite_is_nan, safe_sqrt
from cprl_jax.fidelity.weights import Source, read_backbone, read_vectors

# From the published code (ScalingLayer), for values in [-1, 1]: nearly ImageNet's mean and standard deviation.
_SHIFT = np.array([-0.030, -0.088, -0.188]).reshape(1, 1, 1, 3)
_SCALE = np.array([0.458, 0.448, 0.450]).reshape(1, 1, 1, 3)
_EPSILON = 1e-10


def lpips(parameters: dict[str, Any]) -> Partial:
    """The LPIPS distance with these parameters, `distance(images, references) -> [batch]`: 0 for equal images.

    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, Eq. 1, version
    0.1 of the published code: features of five layers (SqueezeNet: seven), each scaled to length 1 over the channels;
    their squared differences, weighted by channel, averaged over the map and added over the layers.

    The result takes floats in [0, 1], [batch, height, width, 3], of one shape; half precision is computed as float32.
    Each side needs 16 pixels with VGG-16, 31 with AlexNet, 17 with SqueezeNet; larger images are not resized, as in the
    published code, whose weights come from patches of 64x64. The gradient in the images costs no pass backwards through
    the references. The result is a pytree whose leaves are the parameters: hand it to a compiled function as an
    argument, for as a constant in one it makes compiling slow.

    Args:
      parameters: from `lpips_parameters`.

    Raises:
      ValueError: parameters without, or with more than one, network; when called, different shapes, another rank,
        dtype or range, not 3 channels, or an image too small for the network.
    """
    network = [name for name in parameters if name in backbones.NETWORKS]
    if len(network) != 1 or "heads" not in parameters:
        raise ValueError(
            f"parameters must have 'heads' and one of {', '.join(map(repr, backbones.NETWORKS))}, as lpips_parameters "
            f"returns them; got {', '.join(map(repr, parameters)) or 'nothing'}."
        )
    return Partial(_DISTANCES[network[0]], parameters)


def lpips_parameters(backbone: Source, *, heads: Source | None = None, network: str = "vgg16") -> dict[str, Any]:
    """The parameters of `lpips`, read from published weights.

    Args:
      backbone: torchvision's weights of the network: the path of its state dict (.npz, .safetensors, or of torch.save),
        'owner/name[:file]' on Hugging Face, or a mapping from names to arrays, such as `random_backbone` returns.
      heads: the published linear weights ('lin0.model.1.weight' and so on), as a path or one of the other forms. None
        weights all channels alike, by 1: the paper's "cosine distance" (times two).
      network: "vgg16", "alexnet" or "squeezenet", which backbone and heads must belong to.

    Returns:
      a pytree of float32 arrays: {network: {'features.0': {'kernel', 'bias'}, ...}, 'heads': one [channels] a layer}.

    Raises:
      ValueError: an unknown network, no such file, or a file of something else.
    """
    backbones.check_network(network)
    widths = {f"lin{index}.model.1.weight": width for index, width in enumerate(backbones.NETWORKS[network].widths)}
    if heads is None:
        weights = {name: jnp.ones(width, jnp.float32) for name, width in widths.items()}
    else:
        weights = read_vectors(heads, widths, what=f"LPIPS on {network}")
    return {network: read_backbone(backbone, network), "heads": tuple(weights.values())}


def _distance_on(network: str):
    """The distance on one network: a function that exists once, so that compiled code is found again."""
    smallest = backbones.smallest_image(network)

    def lpips_distance(parameters, images, references):
        images, references = check_pair(images, references, channels=(3,))
        if min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"LPIPS on {network} needs at least {smallest} pixels on each side, got {images.shape[1]}x"
                f"{images.shape[2]}."
            )
        return compute(parameters, images, references)

    @jax.jit
    def compute(parameters, images, references):
        # One after the other and not as one batch: what depends on constant references alone is not differentiated,
        # nor repeated under vmap.
        # Without the barrier XLA would evaluate a whole network while compiling, very slowly, if both references and
        # parameters are constants of a function around this one.
        pair = (images, lax.optimization_barrier(references))
        pair = [backbones.features(network, parameters[network], _scaled(batch)) for batch in pair]
        total = jnp.zeros(images.shape[0], images.dtype)
        for first, second, weights in zip(*pair, parameters["heads"], strict=True):
            difference = jnp.square(_unit_length(first) - _unit_length(second))
            weights = weights.astype(difference.dtype).reshape(1, 1, 1, -1)
            total += jnp.mean(jnp.sum(difference * weights, axis=-1), axis=(1, 2))
        return not_finite_is_nan(total, images, references)

    return lpips_distance


_DISTANCES = {network: _distance_on(network) for network in backbones.NETWORKS}


def _scaled(images):
    return (2 * images - 1 - _SHIFT.astype(images.dtype)) / _SCALE.astype(images.dtype)


def _unit_length(x):
    return x / (safe_sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) + _EPSILON)


FIDELITIES = {"lpips": Fidelity(lpips, "learned")}
