"""UNIQUE: bilinear features of ResNet-34, and a score with its uncertainty, learned from pairs of images.

Zhang et al., "Uncertainty-Aware Blind Image Quality Assessment in the Laboratory and Wild", IEEE TIP 2021. Its loss on
pairs is `config.train.mos_loss="fidelity"` (`losses.fidelity_loss`), for any network.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import IMAGENET, Dropout, kaiming_normal, linear
from cprl_jax.models.network import TORCHVISION, Network, PublishedWeights, ScoreNetwork, Tensors
from cprl_jax.models.resnet import TORCH_RULES, ResNet
from cprl_jax.models.torch_names import TorchNames


def bilinear_features(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels*channels"]:
    """The mean over all pixels of products of two channels, its signed square root, of length 1; in float32.

    The gradient is finite everywhere: 0 where all of x is 0.
    """
    x = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
    products = jnp.einsum("bpc,bpd->bcd", x, x) / x.shape[1]
    products = products.reshape(x.shape[0], -1)
    roots = jnp.sign(products) * jnp.sqrt(jnp.abs(products) + 1e-8)
    energy = jnp.sum(roots * roots, axis=-1, keepdims=True)
    return roots / jnp.sqrt(jnp.where(energy > 0, energy, 1.0))


class UNIQUE(ScoreNetwork):
    """UNIQUE as published: ResNet-34, bilinear pooling, and one linear layer to a mean and a standard deviation."""

    normalization = IMAGENET

    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], the higher the better; float32."""
        return self.mean_and_std(images, train)[0]

    @nn.compact
    def mean_and_std(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """The score and its standard deviation: `apply(..., method="mean_and_std")`.

        The deviation is what the weights give, whatever `score_std` is; of published weights, that of the scores.
        """
        features = bilinear_features(self.trunk(ResNet, images, train, architecture="resnet34")[-1])
        features = Dropout(self.dropout, self.axis_name)(features, train)
        output = linear(features, 2, name="head", kernel_init=kaiming_normal)
        return self.score(output[:, 0]), nn.softplus(output[:, 1])


def without_classifier(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """The published tensors but those of ResNet's last layer, which is in the file and has no part in the score."""
    return {name: value for name, value in tensors.items() if not name.startswith("backbone.fc.")}


def rescale(tensors: Tensors, mean: float, std: float) -> None:
    """`linear_head` for the score alone: the second output of the last layer is left as it is."""
    for leaf, offset in (("kernel", 0.0), ("bias", mean)):
        if (name := f"params/head/{leaf}") in tensors:
            tensors[name] = tensors[name].copy()
            tensors[name][..., 0] = (tensors[name][..., 0] - offset) / std


NETWORK = Network(
    name="unique",
    title="UNIQUE",
    source="Zhang et al., IEEE TIP 2021",
    weights=(PublishedWeights("zwx8981/UNIQUE", "none stated"), TORCHVISION),
    module=UNIQUE,
    stages=(0, 1, 2, 3, 4),
    sort_mask=SortMaskPlacement(stages=(2, 3), min_channels=128),
    torch_names=TorchNames(rules=((r"^head\.", "fc."), *TORCH_RULES), prefix="backbone.", classifier=("fc.",)),
    prepare=without_classifier,
    rescale=rescale,
)
