"""NIMA: a VGG-16 whose last layer gives the distribution of opinions over ten grades, or one score.

Talebi & Milanfar, "NIMA: Neural Image Assessment", TIP 2018.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cprl_jax.config.field import Field
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import IMAGENET, Dropout, Normalization, flatten_channels_first, linear
from cprl_jax.models.network import PYIQA, TORCHVISION, Network, PublishedWeights, ScoreNetwork, Tensors
from cprl_jax.models.torch_names import TorchNames
from cprl_jax.models.vgg import VGG16, torch_rules

GRADES = 10
HALF_RANGE = 2.5  # outputs are between its negative and itself: 0..100 with score_mean=50 and score_std=20
HIDDEN = 256  # of the scalar form


def adaptive_average_pool(
    x: Float[Array, "batch height width channels"], cells: int
) -> Float[Array, "batch cells cells channels"]:
    """Means over cells x cells parts of the map that meet or overlap: torch's AdaptiveAvgPool2d."""

    def weights(pixels):
        matrix = np.zeros((cells, pixels), np.float32)
        for cell in range(cells):
            first, end = cell * pixels // cells, -(-(cell + 1) * pixels // cells)
            matrix[cell, first:end] = 1.0 / (end - first)
        return matrix

    return jnp.einsum("ih,bhwc,jw->bijc", weights(x.shape[1]), x.astype(jnp.float32), weights(x.shape[2]))


class NIMA(ScoreNetwork):
    """VGG-16, its map averaged over a grid of cells, and a linear layer to ten grades with a softmax.

    The score is the mean of the distribution. The grades are evenly spaced from `score_mean` - 2.5 `score_std` to
    `score_mean` + 2.5 `score_std`: 0..100 as config.model has it, and with 5.5 and 1.8 the 1..10 of the published
    weights. The scalar form has a hidden layer and a logistic sigmoid in the place of the softmax, over the same range.

    Attributes:
      output: 'distribution' or 'scalar'.
      grid: cells on each side of the averaged map: 7 as in VGG-16, or 1.
      imagenet_input: whether images are normalised as VGG-16's weights for ImageNet want it.
      dropout: rate, before the first linear layer (published: 0.75).
    """

    output: str = "distribution"
    grid: int = 7
    imagenet_input: bool = True

    smallest_image = 32  # five max-poolings leave one pixel

    @property
    def normalization(self) -> Normalization:
        return IMAGENET if self.imagenet_input else Normalization()

    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 32x32 pixels, the higher the better; float32.

        Raises:
          ValueError: smaller images, or an unknown `output`.
        """
        if self.output == "scalar":
            return self.score(HALF_RANGE * (2.0 * nn.sigmoid(self.last_layer(images, train)[:, 0]) - 1.0))
        probabilities, grades = self.distribution(images, train)
        return probabilities @ grades

    def distribution(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> tuple[Float[Array, "batch grades"], Float[Array, " grades"]]:
        """The probability of each grade, and the grades as scores: `apply(..., method="distribution")`.

        Raises:
          ValueError: images of less than 32x32 pixels, or `output` is not 'distribution'.
        """
        if self.output != "distribution":
            raise ValueError(f"there is a distribution with output='distribution', got output={self.output!r}")
        grades = self.score(jnp.linspace(-HALF_RANGE, HALF_RANGE, GRADES))
        return nn.softmax(self.last_layer(images, train)), grades

    @nn.compact
    def last_layer(self, images: Float[Array, "batch height width 3"], train: bool) -> Float[Array, "batch outputs"]:
        """What the last layer gives: logits of the grades, or of the score."""
        x = adaptive_average_pool(self.trunk(VGG16, images, train), self.grid)
        x = Dropout(self.dropout, self.axis_name)(flatten_channels_first(x), train)
        if self.output == "scalar":
            return linear(nn.relu(linear(x, HIDDEN, name="head_hidden")), 1, name="head")
        return linear(x, GRADES, name="head")


def from_pyiqa(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """pyiqa's names turned into those of the first torch version; others stay as they are."""
    renamed = {}
    for name, value in tensors.items():
        name = re.sub(r"^base_model\.features_(\d+)", r"features.\1", name)
        if "base_model.features_0.weight" in tensors:
            name = re.sub(r"^classifier\.2\.", "classifier.1.", name)
        renamed[name] = value
    return renamed


NETWORK = Network(
    name="nima",
    title="NIMA",
    source="Talebi & Milanfar, TIP 2018",
    weights=(PublishedWeights("yunxiaoshi/Neural-IMage-Assessment", "MIT"), PYIQA, TORCHVISION),
    module=NIMA,
    settings={
        "output": Field(
            "distribution",
            "of opinions over ten grades, the mean of which is the score; or the score itself",
            choices=("distribution", "scalar"),
        ),
        "grid": Field(
            7, "cells on each side of the map before the last layer; 1 is global pooling", at_least=1, at_most=7
        ),
        "imagenet_input": Field(
            True, "images are normalised as for ImageNet; False is for weights of the first torch version"
        ),
    },
    stages=(1, 2, 3, 4, 5),
    sort_mask=SortMaskPlacement(stages=(3, 4), min_channels=128),
    torch_names=TorchNames(
        rules=((r"^backbone\.", ""), (r"^head\.", "classifier.1."), *torch_rules()),
        ours_alone=("head_hidden.",),
        classifier=("classifier.",),
    ),
    prepare=from_pyiqa,
    # The distribution's mean is not linear in the last layer: the weights give their distribution on any scale.
    rescale=lambda tensors, mean, std: None,
)
