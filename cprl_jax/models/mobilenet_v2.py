"""MobileNet-V2 with a score head: a trunk of 2.2 million parameters, in the convention of torchvision or of TensorFlow.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2, at full width.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.config.field import Field
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import (
    IMAGENET,
    Normalization,
    global_mean,
    global_std,
    kaiming_normal,
    kaiming_normal_fan_out,
)
from cprl_jax.models.network import TORCHVISION, MaskableModule, Network, PublishedWeights, ScoreNetwork, Tensors
from cprl_jax.models.torch_names import TorchNames
from cprl_jax.runtime.errors import UserError

STAGES = (  # blocks, stride of the first block, expansion of the channels, channels
    (1, 1, 1, 16),
    (2, 2, 6, 24),
    (3, 2, 6, 32),
    (4, 2, 6, 64),
    (3, 1, 6, 96),
    (3, 2, 6, 160),
    (1, 1, 6, 320),
)
BLOCKS = sum(blocks for blocks, *_ in STAGES)
STEM_CHANNELS, LAST_CHANNELS = 32, 1280
POOLED_STAGES = (3, 5, 6)  # as EfficientNet-Lite's: the last of 1/8, of 1/16, and all but the last of 1/32 of the size
CONVENTIONS = ("torch", "tensorflow")


class ConventionalModule(MaskableModule, kw_only=True):
    """Convolutions in one of two conventions.

    Attributes:
      convention: 'torch': zeros on both sides, then batch normalisation; 'tensorflow': padding 'SAME', where with a
        stride the odd pixel comes after the image, and a bias in which batch normalisation is contained.
    """

    convention: str = "torch"

    def normalized_conv(
        self,
        x: Float[Array, "batch height width channels"],
        features: int,
        kernel_size: int,
        *,
        name: str,
        train: bool,
        depthwise: bool = False,
        **options: Any,
    ) -> Float[Array, "batch out_height out_width features"]:
        """A convolution `name`_conv and, in torch's convention, batch normalisation `name`_bn; in a compact method."""
        torch = self.convention == "torch"
        x = self.conv(
            x,
            features,
            kernel_size,
            name=f"{name}_conv",
            train=train,
            padding=kernel_size // 2 if torch else "SAME",
            groups=features if depthwise else 1,
            use_bias=not torch,
            kernel_init=kaiming_normal if depthwise else kaiming_normal_fan_out,
            **options,
        )
        return self.batch_norm(x, name=f"{name}_bn", train=train) if torch else x

    def activated_conv(
        self,
        x: Float[Array, "batch height width channels"],
        features: int,
        kernel_size: int,
        *,
        name: str,
        stage: int,
        train: bool,
        **options: Any,
    ) -> Float[Array, "batch out_height out_width features"]:
        """`normalized_conv` and ReLU6."""
        x = self.normalized_conv(x, features, kernel_size, name=name, stage=stage, train=train, **options)
        return self.activate(x, nn.relu6, name=f"{name}_relu", stage=stage, train=train)


class MobileNetV2(ConventionalModule):
    """The convolutional part. Its blocks are numbered as in torchvision, from 1.

    Attributes:
      sort_mask: its stages are the seven of STAGES, 0 is the stem. The depthwise convolutions can be masked: they read
        32 channels in stage 1, then 96 and 144, 144 and 192, 192 and 384, 384 and 576, 576 and 960, 960.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool
    ) -> tuple[Float[Array, "batch stage_height stage_width channels"], ...]:
        """The maps of the seven stages, at 1/2, 1/4, 1/8, 1/16, 1/16, 1/32 and 1/32 of the size, and the last layer's.

        Args:
          x: normalised RGB.
          train: whether batch statistics are those of x (and are updated) and masks are random.
        """
        x = self.activated_conv(x, STEM_CHANNELS, 3, name="stem", stride=2, stage=0, train=train)
        maps, number = [], 0
        for stage, (blocks, stride, expansion, channels) in enumerate(STAGES, start=1):
            for block in range(blocks):
                number += 1
                x = Block(
                    channels,
                    stride=stride if block == 0 else 1,
                    expansion=expansion,
                    stage=stage,
                    convention=self.convention,
                    **self.shared,
                    name=f"block{number}",
                )(x, train)
            x = self.end_stage(x, stage=stage, train=train)
            maps.append(x)
        return (*maps, self.activated_conv(x, LAST_CHANNELS, 1, name="last", stage=len(STAGES), train=train))


class Block(ConventionalModule):
    """Expansion by a 1x1 convolution, a depthwise convolution, and a linear 1x1 one; plus the input where it fits."""

    channels: int
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
            y = self.activated_conv(y, expanded, 1, name="expand", **here)
        y = self.activated_conv(y, expanded, 3, name="depthwise", depthwise=True, stride=self.stride, **here)
        y = self.normalized_conv(y, self.channels, 1, name="project", **here)
        return y + x if y.shape == x.shape else y


class MobileNetV2Score(ScoreNetwork):
    """MobileNet-V2; means and deviations of some stages' channels are standardised and mapped to a score linearly.

    What comes behind those stages, which classifies, has no part in the score.

    Attributes:
      convention: of padding, batch normalisation and input: 'torch' or 'tensorflow'.
    """

    convention: str = "torch"

    @property
    def normalization(self) -> Normalization:
        return IMAGENET if self.convention == "torch" else Normalization((128 / 255,) * 3, (128 / 255,) * 3)

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], the higher the better; float32."""
        maps = self.trunk(MobileNetV2, images, train, convention=self.convention)
        pooled = [pool(maps[stage - 1]) for stage in POOLED_STAGES for pool in (global_mean, global_std)]
        features = jnp.concatenate(pooled, axis=-1)
        return self.standardized_score(features, train)


def from_tensorflow(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """TensorFlow's weights turned into ours: layers numbered as they are applied ('00_conv/w', '01_dw/b'), HWIO.

    Other names stay as they are.

    Raises:
      UserError: the weights are of the other convention, or a layer is missing.
    """
    convention = settings["convention"]
    known = [name for name in tensors if re.fullmatch(r"\d+_(conv|dw)/[wb]", name)]
    if not any(name.startswith("params/") for name in tensors) and bool(known) != (convention == "tensorflow"):
        raise UserError(
            f"config.model.mobilenet_v2.convention is {convention!r}, but the file has "
            f"{'the layers of TensorFlow' if known else 'no layers of TensorFlow'}: set it to "
            f"{'tensorflow' if known else 'torch'!r}"
        )
    if not known:
        return tensors
    if unknown := sorted(set(tensors) - set(known)):
        raise UserError(f"unknown name {unknown[0]!r}; those of MobileNet-V2 are like '00_conv/w' and '01_dw/b'")
    places = ["stem", *(f"block{n}/{part}" for n in range(1, BLOCKS + 1) for part in _PARTS[n == 1 :]), "last"]
    layers = sorted({name.partition("/")[0] for name in known}, key=lambda layer: int(layer.partition("_")[0]))
    if len(layers) not in (len(places), len(places) + 1):  # the last one classifies
        raise UserError(f"{len(layers)} layers; MobileNet-V2 has {len(places)}, and one that classifies")
    return {
        f"params/backbone/{place}_conv/{ours}": tensors[f"{layer}/{theirs}"]
        for place, layer in zip(places, layers, strict=False)
        for ours, theirs in (("kernel", "w"), ("bias", "b"))
        if f"{layer}/{theirs}" in tensors
    }


_PARTS = ("expand", "depthwise", "project")
# The places of a block's layers in torchvision; the first block does not expand.
_FIRST_LAYERS = {"depthwise_conv": "0.0", "depthwise_bn": "0.1", "project_conv": "1", "project_bn": "2"}
_LAYERS = {
    "expand_conv": "0.0",
    "expand_bn": "0.1",
    "depthwise_conv": "1.0",
    "depthwise_bn": "1.1",
    "project_conv": "2",
    "project_bn": "3",
}

NETWORK = Network(
    name="mobilenet_v2",
    title="MobileNet-V2",
    source="Sandler et al., CVPR 2018",
    weights=(TORCHVISION, PublishedWeights("google-coral/test_data", "Apache-2.0")),
    module=MobileNetV2Score,
    settings={
        "convention": Field(
            "torch", "of padding, batch normalisation and input: that of the weights", choices=CONVENTIONS
        )
    },
    stages=(0, 1, 2, 3, 4, 5, 6, 7),
    sort_mask=SortMaskPlacement(stages=(3, 4, 5), min_channels=128),
    torch_names=TorchNames(
        rules=(
            (r"^backbone\.stem_conv\.", "features.0.0."),
            (r"^backbone\.stem_bn\.", "features.0.1."),
            (r"^backbone\.last_conv\.", f"features.{BLOCKS + 1}.0."),
            (r"^backbone\.last_bn\.", f"features.{BLOCKS + 1}.1."),
            *((rf"^backbone\.block1\.{ours}\.", f"features.1.conv.{at}.") for ours, at in _FIRST_LAYERS.items()),
            *((rf"^backbone\.block(\d+)\.{ours}\.", rf"features.\1.conv.{at}.") for ours, at in _LAYERS.items()),
        ),
        prefix="features.",
        ours_alone=("head.", "head_standardization."),
        classifier=("classifier.",),
    ),
    prepare=from_tensorflow,
)
