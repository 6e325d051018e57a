"""MetaIQA's network, which Causal-IQA trains as well: a whole ImageNet classifier, and a head that reads its logits."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import IMAGENET, Dropout, batch_norm, global_mean, linear
from cprl_jax.models.network import TORCHVISION, MaskableModule, Network, PublishedWeights, ScoreNetwork
from cprl_jax.models.resnet import TORCH_RULES, ResNet
from cprl_jax.models.torch_names import TorchNames

CLASSES = 1000
HIDDEN = (1024, 512)


class Classifier(MaskableModule):
    """A ResNet with its last layer: logits of ImageNet's classes; all that is trained at the lower rate.

    Attributes: as `ResNet`'s.
    """

    architecture: str

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width 3"], train: bool) -> Float[Array, "batch 1000"]:
        resnet = ResNet(self.architecture, **self.shared, name="resnet")
        return linear(global_mean(resnet(x, train)[-1]), CLASSES, name="fc")


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), with one learned slope (torch's PReLU)."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
        slope = self.param("slope", nn.initializers.constant(0.25), (1,), jnp.float32)
        return jnp.where(x >= 0, x, slope.reshape(1, 1) * x)


class MetaIQA(ScoreNetwork):
    """Zhu et al., "MetaIQA: Deep Meta-Learning for No-Reference Image Quality Assessment", CVPR 2020, as published.

    Logits -> 1024 -> 512 -> 1 with batch normalisation, PReLU and dropout between, and a logistic sigmoid at the end:
    the output is in (0, 1), so that `score_mean=0` and `score_std=100` give scores on the scale of the labels.

    Attributes:
      backbone: 'resnet18', 'resnet34' or 'resnet50'.
      dropout: rate, before the last two layers (published: 0.5).
    """

    backbone: str = "resnet18"
    score_std: float = 100.0
    dropout: float = 0.5

    normalization = IMAGENET

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], the higher the better; float32."""
        x = self.trunk(Classifier, images, train, architecture=self.backbone)
        for number, features in enumerate(HIDDEN, start=1):
            x = linear(x, features, name=f"fc{number}")
            x = batch_norm(x, name=f"bn{number}", train=train, dtype=jnp.float32, axis_name=self.axis_name)
            x = PReLU(name=f"relu{number}")(x)
            x = Dropout(self.dropout, self.axis_name)(x, train)
        x = linear(x, 1, name="fc3")
        return self.score(nn.sigmoid(x[:, 0]))


NETWORK = Network(
    name="metaiqa",
    title="MetaIQA",
    source="Zhu et al., CVPR 2020",
    weights=(PublishedWeights("zhuhancheng/MetaIQA", "none stated"), TORCHVISION),
    module=MetaIQA,
    variants=("resnet18", "resnet34", "resnet50"),
    stages=(0, 1, 2, 3, 4),
    sort_mask=SortMaskPlacement(stages=(2, 3), min_channels=128),
    torch_names=TorchNames(
        rules=(
            (r"^backbone\.(resnet\.)?", "resnet_layer."),
            (r"^(fc|bn|relu)(\d)\.", r"net.\1\2."),
            (r"\.slope$", ".weight"),
            *TORCH_RULES,
        ),
        prefix="resnet_layer.",
    ),
)
