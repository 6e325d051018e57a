"""ResNet-18, -34 and -50: the trunk of HyperIQA, and a score of its own (global pooling and one linear layer)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import (
    Dropout,
    batch_norm,
    conv,
    global_mean,
    imagenet_normalize,
    kaiming_normal_fan_out,
    linear,
    max_pool,
)

# Blocks of the four stages, and whether the blocks are bottlenecks.
ARCHITECTURES = {"resnet18": ((2, 2, 2, 2), False), "resnet34": ((3, 4, 6, 3), False), "resnet50": ((3, 4, 6, 3), True)}


class ResNet(nn.Module):
    """The convolutional part of a ResNet (He et al., CVPR 2016, table 1), in the variant of torchvision.

    That is: the stride of a bottleneck is on its 3x3 convolution, padding is explicit and symmetric, and batch
    normalisation has epsilon 1e-5. Submodules are named as torchvision's, with `layer1.0` as `layer1_0` and
    `downsample.0` and `.1` as `downsample_conv` and `downsample_bn`.

    Attributes:
      architecture: 'resnet18', 'resnet34' or 'resnet50'.
      sort_mask: which convolutions are masked; stages 1 to 4 are torchvision's layer1 to layer4.
      dtype: of the computation; parameters and statistics are float32.
      axis_name: the mapped axis over which the batch is spread, if any.
    """

    architecture: str = "resnet50"
    sort_mask: SortMaskPlacement = SortMaskPlacement()
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool
    ) -> tuple[Float[Array, "batch stage_height stage_width channels"], ...]:
        """The maps of stages 1 to 4, at 1/4, 1/8, 1/16 and 1/32 of the size of x, in the dtype of the computation.

        Args:
          x: normalised RGB.
          train: whether batch statistics are those of x (and are updated) and masks are random.
        """
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {self.architecture!r}; allowed: {', '.join(ARCHITECTURES)}")
        blocks_per_stage, bottleneck = ARCHITECTURES[self.architecture]
        shared = dict(train=train, dtype=self.dtype, axis_name=self.axis_name)

        x = conv(
            x,
            64,
            7,
            name="conv1",
            stride=2,
            padding=3,
            use_bias=False,
            kernel_init=kaiming_normal_fan_out,
            sort_mask=self.sort_mask,
            **shared,
        )
        x = batch_norm(x, name="bn1", **shared)
        x = nn.relu(max_pool(x, window=3, stride=2, padding=((1, 1), (1, 1))))
        maps = []
        for stage, blocks in enumerate(blocks_per_stage, start=1):
            for block in range(blocks):
                x = ResidualBlock(
                    64 * 2 ** (stage - 1),
                    bottleneck=bottleneck,
                    stage=stage,
                    sort_mask=self.sort_mask,
                    stride=2 if block == 0 and stage > 1 else 1,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"layer{stage}_{block}",
                )(x, train)
            maps.append(x)
        return tuple(maps)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 with four times the channels at the end; plus the input."""

    channels: int
    bottleneck: bool
    stage: int
    stride: int
    sort_mask: SortMaskPlacement
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch out_height out_width features"]:
        shared = dict(train=train, dtype=self.dtype, axis_name=self.axis_name)

        def convolution(x, features, kernel_size, stride, name):
            return conv(
                x,
                features,
                kernel_size,
                name=name,
                stage=self.stage,
                sort_mask=self.sort_mask,
                stride=stride,
                padding=kernel_size // 2,
                use_bias=False,
                kernel_init=kaiming_normal_fan_out,
                **shared,
            )

        if self.bottleneck:
            layers = [(self.channels, 1, 1), (self.channels, 3, self.stride), (4 * self.channels, 1, 1)]
        else:
            layers = [(self.channels, 3, self.stride), (self.channels, 3, 1)]
        shortcut, features = x, layers[-1][0]
        for number, (width, kernel_size, stride) in enumerate(layers, start=1):
            x = convolution(x, width, kernel_size, stride, f"conv{number}")
            x = batch_norm(x, name=f"bn{number}", **shared)
            if number < len(layers):
                x = nn.relu(x)
        if self.stride > 1 or shortcut.shape[-1] != features:
            shortcut = convolution(shortcut, features, 1, self.stride, "downsample_conv")
            shortcut = batch_norm(shortcut, name="downsample_bn", **shared)
        return nn.relu(x + shortcut)


class ResNetScore(nn.Module):
    """A ResNet whose pooled features are mapped to a score by one linear layer.

    Attributes:
      backbone: 'resnet18', 'resnet34' or 'resnet50'.
      sort_mask: which convolutions of the backbone are masked.
      score_mean, score_std: score = score_mean + score_std * output of the linear layer.
      dtype: of the backbone's computation; the head computes in float32.
      axis_name: the mapped axis over which the batch is spread, if any.
      dropout: rate, on the pooled features.
    """

    backbone: str = "resnet50"
    sort_mask: SortMaskPlacement = SortMaskPlacement()
    score_mean: float = 0.0
    score_std: float = 1.0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], the higher the better; float32."""
        resnet = ResNet(
            self.backbone, sort_mask=self.sort_mask, dtype=self.dtype, axis_name=self.axis_name, name="backbone"
        )
        features = global_mean(resnet(imagenet_normalize(images), train)[-1])
        features = Dropout(self.dropout, self.axis_name)(features, train)
        return self.score_mean + self.score_std * linear(features, 1, name="head")[:, 0]
