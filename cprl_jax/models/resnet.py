"""ResNet-18, -34 and -50: the trunk of HyperIQA, and a score of its own (global pooling and one linear layer)."""

import flax.linen as nn
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import IMAGENET, Dropout, global_mean, kaiming_normal_fan_out, linear, max_pool
from cprl_jax.models.network import TORCHVISION, MaskableModule, Network, ScoreNetwork
from cprl_jax.models.torch_names import TorchNames

# Blocks of the four stages, and whether the blocks are bottlenecks.
ARCHITECTURES = {"resnet18": ((2, 2, 2, 2), False), "resnet34": ((3, 4, 6, 3), False), "resnet50": ((3, 4, 6, 3), True)}

TORCH_RULES = (
    (r"\blayer(\d)_(\d+)\b", r"layer\1.\2"),
    (r"\bdownsample_conv\b", "downsample.0"),
    (r"\bdownsample_bn\b", "downsample.1"),
)


class ResNet(MaskableModule):
    """The convolutional part of a ResNet (He et al., CVPR 2016, table 1), in the variant of torchvision.

    That is: the stride of a bottleneck is on its 3x3 convolution, padding is explicit and symmetric, and batch
    normalisation has epsilon 1e-5. Submodules are named as torchvision's, with `layer1.0` as `layer1_0` and
    `downsample.0` and `.1` as `downsample_conv` and `downsample_bn`.

    Attributes:
      architecture: 'resnet18', 'resnet34' or 'resnet50'.
      sort_mask: its stages 1 to 4 are torchvision's layer1 to layer4, 0 is the first convolution.
    """

    architecture: str = "resnet50"

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
        x = self.conv(
            x, 64, 7, name="conv1", train=train, stride=2, padding=3, use_bias=False, kernel_init=kaiming_normal_fan_out
        )
        x = self.batch_norm(x, name="bn1", train=train)
        x = max_pool(x, window=3, stride=2, padding=((1, 1), (1, 1)))
        x = self.activate(x, nn.relu, name="relu", stage=0, train=train)
        maps = []
        for stage, blocks in enumerate(blocks_per_stage, start=1):
            for block in range(blocks):
                x = ResidualBlock(
                    64 * 2 ** (stage - 1),
                    bottleneck=bottleneck,
                    stage=stage,
                    stride=2 if block == 0 and stage > 1 else 1,
                    **self.shared,
                    name=f"layer{stage}_{block}",
                )(x, train)
            x = self.end_stage(x, stage=stage, train=train)
            maps.append(x)
        return tuple(maps)


class ResidualBlock(MaskableModule):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 with four times the channels at the end; plus the input."""

    channels: int
    bottleneck: bool
    stage: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch out_height out_width features"]:

        def convolution(x, features, kernel_size, stride, name):
            return self.conv(
                x,
                features,
                kernel_size,
                name=name,
                train=train,
                stage=self.stage,
                stride=stride,
                padding=kernel_size // 2,
                use_bias=False,
                kernel_init=kaiming_normal_fan_out,
            )

        if self.bottleneck:
            layers = [(self.channels, 1, 1), (self.channels, 3, self.stride), (4 * self.channels, 1, 1)]
        else:
            layers = [(self.channels, 3, self.stride), (self.channels, 3, 1)]
        shortcut, features = x, layers[-1][0]
        for number, (width, kernel_size, stride) in enumerate(layers, start=1):
            x = convolution(x, width, kernel_size, stride, f"conv{number}")
            x = self.batch_norm(x, name=f"bn{number}", train=train)
            if number < len(layers):
                x = self.activate(x, nn.relu, name=f"relu{number}", stage=self.stage, train=train)
        if self.stride > 1 or shortcut.shape[-1] != features:
            shortcut = convolution(shortcut, features, 1, self.stride, "downsample_conv")
            shortcut = self.batch_norm(shortcut, name="downsample_bn", train=train)
        return self.activate(x + shortcut, nn.relu, name=f"relu{len(layers)}", stage=self.stage, train=train)


class ResNetScore(ScoreNetwork):
    """A ResNet with global average pooling and one linear layer to the score.

    Attributes:
      backbone: 'resnet18', 'resnet34' or 'resnet50'.
    """

    backbone: str = "resnet50"

    normalization = IMAGENET

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], the higher the better; float32."""
        features = global_mean(self.trunk(ResNet, images, train, architecture=self.backbone)[-1])
        features = Dropout(self.dropout, self.axis_name)(features, train)
        return self.score(linear(features, 1, name="head")[:, 0])


NETWORK = Network(
    name="resnet",
    title="ResNet",
    source="He et al., CVPR 2016",
    weights=(TORCHVISION,),
    module=ResNetScore,
    variants=("resnet50", "resnet18", "resnet34"),
    stages=(0, 1, 2, 3, 4),
    sort_mask=SortMaskPlacement(stages=(2, 3), min_channels=128),
    torch_names=TorchNames(rules=((r"^backbone\.", ""), (r"^head\.", "fc."), *TORCH_RULES), classifier=("fc.",)),
)
