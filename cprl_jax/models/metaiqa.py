"""MetaIQA's network, which Causal-IQA trains as well: a whole ImageNet classifier, and a head that reads its logits."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import Dropout, batch_norm, global_mean, imagenet_normalize, linear
from cprl_jax.models.resnet import ResNet

CLASSES = 1000
HIDDEN = (1024, 512)


class Classifier(nn.Module):
    """A ResNet with its last layer: logits of ImageNet's classes; all that is trained at the lower rate.

    Attributes: as `ResNet`'s.
    """

    architecture: str
    sort_mask: SortMaskPlacement
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width 3"], train: bool) -> Float[Array, "batch 1000"]:
        resnet = ResNet(
            self.architecture, sort_mask=self.sort_mask, dtype=self.dtype, axis_name=self.axis_name, name="resnet"
        )
        return linear(global_mean(resnet(x, train)[-1]), CLASSES, name="fc")


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), with one learned slope (torch's PReLU)."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
        slope = self.param("slope", nn.initializers.constant(0.25), (1,), jnp.float32)
        return jnp.where(x >= 0, x, slope.reshape(1, 1) * x)


class MetaIQA(nn.Module):
    """Zhu et al., "MetaIQA: Deep Meta-Learning for No-Reference Image Quality Assessment", CVPR 2020, as published.

    Logits -> 1024 -> 512 -> 1 with batch normalisation, PReLU and dropout between, and a logistic sigmoid at the end:
    the output is in (0, 1), so that `score_mean=0` and `score_std=100` give scores on the scale of the labels.

    Attributes:
      backbone: 'resnet18', 'resnet34' or 'resnet50'.
      sort_mask: which convolutions of the backbone are masked.
      score_mean, score_std: score = score_mean + score_std * output.
      dtype: of the backbone's computation; the head computes in float32.
      axis_name: the mapped axis over which the batch is spread, if any.
      dropout: rate, before the last two layers (published: 0.5).
    """

    backbone: str = "resnet18"
    sort_mask: SortMaskPlacement = SortMaskPlacement()
    score_mean: float = 0.0
    score_std: float = 100.0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.5

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], the higher the better; float32."""
        x = Classifier(self.backbone, self.sort_mask, self.dtype, self.axis_name, name="backbone")(
            imagenet_normalize(images), train
        )
        for number, features in enumerate(HIDDEN, start=1):
            x = linear(x, features, name=f"fc{number}")
            x = batch_norm(x, name=f"bn{number}", train=train, dtype=jnp.float32, axis_name=self.axis_name)
            x = PReLU(name=f"relu{number}")(x)
            x = Dropout(self.dropout, self.axis_name)(x, train)
        x = linear(x, 1, name="fc3")
        return self.score_mean + self.score_std * nn.sigmoid(x[:, 0])
