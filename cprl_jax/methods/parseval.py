"""Parseval training: a penalty that brings the singular values of every layer to 1, and with them its Lipschitz bound.

Cisse et al., "Parseval Networks: Improving Robustness to Adversarial Examples", ICML 2017.
"""

import math
from collections.abc import Mapping

import flax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from cprl_jax.config.field import Field
from cprl_jax.methods.method import Batch, Forward, Method


def tightness(kernel: Float[Array, "*window inputs outputs"]) -> Float[Array, ""]:
    """||W W^T - I||^2 / 2, the squared Frobenius norm, of the matrix W [outputs, inputs] of a layer; 0: W is tight.

    A convolution with a k x k kernel multiplies the unfolded image, in which a pixel occurs up to k^2 times: W has a
    row for each output, times k (the paper's Sec. 4.2 divides the layer's output by it), so that a tight layer keeps
    norms or lowers them. With more rows than columns the smaller W^T W takes the place of W W^T: the two penalties
    differ by a constant. Each channel of a depthwise convolution is a layer of one row.

    Args:
      kernel: of a linear layer, or of a convolution (HWIO).
    """
    *window, inputs, outputs = kernel.shape
    places = math.prod(window)
    rows = places**0.5 * kernel.reshape(places * inputs, outputs).T
    if window and inputs == 1:
        return jnp.sum((jnp.sum(rows * rows, axis=1) - 1.0) ** 2) / 2
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    return jnp.sum((gram - jnp.eye(gram.shape[0], dtype=gram.dtype)) ** 2) / 2


def penalty(params: Mapping) -> Float[Array, ""]:
    """The sum of `tightness` over the kernels of convolutions and linear layers, but that which gives the score."""
    kernels = [
        value
        for path, value in flax.traverse_util.flatten_dict(dict(params)).items()
        if path[-1] == "kernel" and value.ndim >= 2 and value.shape[-1] > 1
    ]
    return sum((tightness(kernel) for kernel in kernels), start=jnp.zeros(()))


def parseval_loss(batch: Batch, forward: Forward, settings: ml_collections.ConfigDict):
    """The loss on MOS plus `weight` times the penalty."""
    scores = forward.gather(forward.scores(batch.images))
    mos_loss, parseval = forward.label_loss(scores), penalty(forward.params)
    return mos_loss + settings.weight * parseval, {
        "mos_loss": mos_loss,
        "parseval_loss": parseval,
        "score_std": jnp.std(scores),
    }


METHOD = Method(
    "parseval",
    "Parseval training",
    parseval_loss,
    source="Cisse et al., Parseval Networks, ICML 2017, Sec. 4.2",
    settings={"weight": Field(1e-4, "beta, the weight of the penalty", at_least=0)},
    metrics=("mos_loss", "parseval_loss", "score_std"),
    parts=lambda settings: [f"beta {settings.weight:g}"],
)
