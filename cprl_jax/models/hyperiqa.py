"""HyperIQA: a network whose last layers are generated from the image's content (Su et al., CVPR 2020).

"Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network". It is the backbone of CPRL.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import (
    Dropout,
    conv,
    global_mean,
    imagenet_normalize,
    kaiming_normal,
    linear,
    torch_default,
    torch_default_bias,
)
from cprl_jax.models.resnet import ResNet
from cprl_jax.runtime.errors import UserError

# Channels of the local distortion maps of stages 1 to 3, and the length of the four vectors that are joined.
DISTORTION_CHANNELS = (16, 32, 64)
DISTORTION_FEATURES = (16, 16, 16, 176)
# Widths of the target network, from its input (the sum of the above) to the score.
TARGET_WIDTHS = (224, 112, 56, 28, 14, 1)
HYPER_CHANNELS = 112


class HyperIQA(nn.Module):
    """HyperIQA on a ResNet, as its authors published it (on ResNet-50).

    The hyper network reads the last stage's map and generates, for every image, the weights and biases of the target
    network: five fully connected layers with logistic sigmoids, whose input is the local distortion vector. With
    ResNet-18 and -34 only the input widths of the layers that read the stages' maps differ.

    Attributes:
      backbone: 'resnet18', 'resnet34' or 'resnet50'.
      sort_mask: which convolutions of the backbone are masked.
      score_mean, score_std: score = score_mean + score_std * output of the target network.
      dtype: of the backbone's computation; the rest computes in float32.
      axis_name: the mapped axis over which the batch is spread, if any.
      dropout: rate, on the input of the last generated layer (0 in the published model).
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
        """Scores of RGB images in [0, 1] of 224x224 pixels, the higher the better; float32.

        Raises:
          UserError: another size. 221 to 224 pixels give feature maps of the same size and are let through.
        """
        if not all(221 <= size <= 224 for size in images.shape[1:3]):
            raise UserError(
                f"hyperiqa takes images of 224x224 pixels (or 221 to 224), got {images.shape[1]}x{images.shape[2]}: "
                "set config.train.crop_size and config.evaluation.crop_size to 224, or take another config.model.name"
            )
        backbone = DistortionAwareResNet(
            self.backbone, sort_mask=self.sort_mask, dtype=self.dtype, axis_name=self.axis_name, name="backbone"
        )
        x, semantics = backbone(imagenet_normalize(images), train)

        hyper = semantics.astype(jnp.float32)
        for name, channels in (("conv1_0", 1024), ("conv1_2", 512), ("conv1_4", HYPER_CHANNELS)):
            hyper = nn.relu(
                conv(
                    hyper,
                    channels,
                    1,
                    name=name,
                    train=train,
                    kernel_init=torch_default,
                    bias_init=torch_default_bias(hyper.shape[-1]),
                )
            )
        pooled = global_mean(hyper)
        pixels = hyper.shape[1] * hyper.shape[2]
        for layer, (inputs, outputs) in enumerate(zip(TARGET_WIDTHS[:-1], TARGET_WIDTHS[1:], strict=True), start=1):
            last = outputs == 1
            if last:
                weights = linear(pooled, inputs, name=f"fc{layer}w_fc", kernel_init=kaiming_normal)
                x = Dropout(self.dropout, self.axis_name)(x, train)
            else:
                weights = conv(
                    hyper,
                    inputs * outputs // pixels,
                    3,
                    name=f"fc{layer}w_conv",
                    train=train,
                    padding=1,
                    kernel_init=kaiming_normal,
                    bias_init=torch_default_bias(9 * HYPER_CHANNELS),
                )
                weights = flatten_channels_first(weights)
            biases = linear(pooled, outputs, name=f"fc{layer}b_fc", kernel_init=kaiming_normal)
            x = jnp.einsum("boi,bi->bo", weights.reshape(-1, outputs, inputs), x) + biases
            x = x if last else nn.sigmoid(x)
        return self.score_mean + self.score_std * x[:, 0]


class DistortionAwareResNet(nn.Module):
    """A ResNet and the local distortion vector of its four stages; all that the authors train at the lower rate.

    Attributes: as `ResNet`'s.
    """

    architecture: str
    sort_mask: SortMaskPlacement
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool
    ) -> tuple[Float[Array, "batch 224"], Float[Array, "batch 7 7 channels"]]:
        """The local distortion vector (float32) and the map of the last stage."""
        maps = ResNet(
            self.architecture, sort_mask=self.sort_mask, dtype=self.dtype, axis_name=self.axis_name, name="resnet"
        )(x, train)
        vectors = []
        for stage, features in enumerate(DISTORTION_FEATURES, start=1):
            local = maps[stage - 1]
            if stage <= len(DISTORTION_CHANNELS):
                local = conv(
                    local,
                    DISTORTION_CHANNELS[stage - 1],
                    1,
                    name=f"lda{stage}_pool",
                    train=train,
                    use_bias=False,
                    dtype=self.dtype,
                    kernel_init=kaiming_normal,
                )
            local = nn.avg_pool(local.astype(jnp.float32), (7, 7), strides=(7, 7))
            vectors.append(
                linear(flatten_channels_first(local), features, name=f"lda{stage}_fc", kernel_init=kaiming_normal)
            )
        return jnp.concatenate(vectors, axis=-1), maps[-1]


def flatten_channels_first(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch features"]:
    """Flattens in the order of torch's NCHW, which published weights count on."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
