"""Deep image structure and texture similarity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from cprl_jax.fidelity import backbones
from cprl_jax.fidelity._fidelity import Fidelity
from cprl_jax.fidelity._images import check_pair, not_finite_is_nan
from cprl_jax.fidelity.weights import Source, read_backbone, read_vectors

_MEAN = np.array([0.485, 0.456, 0.406]).reshape(1, 1, 1, 3)  # ImageNet's
_STD = np.array([0.229, 0.224, 0.225]).reshape(1, 1, 1, 3)
_CONSTANT = 1e-6  # c1 and c2 of the paper
_WIDTHS = (3, *backbones.NETWORKS["vgg16"].widths)  # the image itself is the first stage


def dists(parameters: dict[str, Any]) -> Partial:
    """The DISTS distance with these parameters, `distance(images, references) -> [batch]`: 0 for equal images.

    Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", IEEE TPAMI 2022: of
    the image and five stages of VGG-16 whose max-poolings are replaced by L2 pooling, the similarity of the channels'
    means (texture) and their covariances (structure), one minus the weighted sum of all. It is symmetric.

    The result takes floats in [0, 1], [batch, height, width, 3], of one shape and any size; half precision is computed
    as float32. The published code first resizes images so that the shorter side is 256 pixels, outside of the network:
    that is left to the caller. The gradient in the images costs no pass backwards through the references. The result is
    a pytree whose leaves are the parameters: hand it to a compiled function as an argument, for as a constant in one it
    makes compiling slow.

    Args:
      parameters: from `dists_parameters`.

    Raises:
      ValueError: something else as parameters; when called, different shapes, another rank, dtype or range, not 3
        channels.
    """
    if set(parameters) != {"vgg16", "alpha", "beta"}:
        raise ValueError(
            "parameters must have 'vgg16', 'alpha' and 'beta', as dists_parameters returns them; got "
            f"{', '.join(map(repr, parameters)) or 'nothing'}."
        )
    return Partial(_dists_distance, parameters)


def dists_parameters(backbone: Source, *, weights: Source | None = None) -> dict[str, Any]:
    """The parameters of `dists`, read from published weights.

    Args:
      backbone: torchvision's weights of VGG-16: the path of its state dict (.npz, .safetensors, or of torch.save),
        'owner/name[:file]' on Hugging Face, or a mapping from names to arrays, such as `random_backbone` returns.
      weights: the published 'alpha' and 'beta', as a path or one of the other forms. None weights all channels alike.

    Returns:
      a pytree of float32 arrays: {'vgg16': {'features.0': {'kernel', 'bias'}, ...}, 'alpha': [1475], 'beta': [1475]};
      alpha and beta as they are in the file, since `dists` divides them by their sum.

    Raises:
      ValueError: no such file, or a file of something else.
    """
    channels = sum(_WIDTHS)
    if weights is None:
        vectors = {name: jnp.ones(channels, jnp.float32) for name in ("alpha", "beta")}
    else:
        vectors = read_vectors(weights, {"alpha": channels, "beta": channels}, what="DISTS")
    return {"vgg16": read_backbone(backbone, "vgg16"), **vectors}


def _dists_distance(parameters, images, references):
    return _compute(parameters, *check_pair(images, references, channels=(3,)))


@jax.jit
def _compute(parameters, images, references):
    # One after the other and not as one batch, and with a barrier, for the reasons given in lpips.
    pair = [_stages(parameters["vgg16"], batch) for batch in (images, lax.optimization_barrier(references))]
    alpha, beta = parameters["alpha"].astype(images.dtype), parameters["beta"].astype(images.dtype)
    texture, structure = zip(*(_dissimilarities(*stage) for stage in zip(*pair, strict=True)), strict=True)
    texture, structure = (jnp.concatenate(parts, axis=-1) for parts in (texture, structure))
    weighted = texture * alpha.reshape(1, -1) + structure * beta.reshape(1, -1)
    distance = jnp.sum(weighted, axis=-1) / (jnp.sum(alpha) + jnp.sum(beta))
    return not_finite_is_nan(distance, images, references)


def _stages(parameters, images):
    normalized = (images - _MEAN.astype(images.dtype)) / _STD.astype(images.dtype)
    return [images, *backbones.features("vgg16", parameters, normalized, pool=_l2_pool)]


def _dissimilarities(first, second):
    """One minus the paper's l (texture) and s (structure), [batch, channels] each, exactly 0 for equal maps.

    With S = (2 a b + c) / (a^2 + b^2 + c), 1 - S = (a - b)^2 / (a^2 + b^2 + c), and alike for the covariance.
    """
    mean1, mean2 = jnp.mean(first, axis=(1, 2)), jnp.mean(second, axis=(1, 2))
    texture = jnp.square(mean1 - mean2) / (jnp.square(mean1) + jnp.square(mean2) + _CONSTANT)
    first, second = first - mean1[:, None, None], second - mean2[:, None, None]
    variances = jnp.mean(jnp.square(first), axis=(1, 2)) + jnp.mean(jnp.square(second), axis=(1, 2))
    structure = jnp.mean(jnp.square(first - second), axis=(1, 2)) / (variances + _CONSTANT)
    return texture, structure


def _l2_pool(x):
    """The root of the locally averaged squares at half the size; 1e-12 under it keeps its gradient finite.

    The window is Hanning's of 5 without its zeros, one axis at a time, as a sum of slices: on a CPU the gradient of a
    convolution with one channel a group takes far longer.
    """
    x = jnp.square(x)
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        x = jnp.pad(x, padding)
        before, at, after = (lax.slice_in_dim(x, i, x.shape[axis] - 2 + i, 2, axis) for i in range(3))
        x = 0.25 * before + 0.5 * at + 0.25 * after
    return jnp.sqrt(x + 1e-12)


FIDELITIES = {"dists": Fidelity(dists, "learned")}
