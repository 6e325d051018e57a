"""HyperIQA: a network whose last layers are generated from the image's content (Su et al., CVPR 2020).

"Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network". It is the backbone of CPRL.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import (
    IMAGENET,
    Dropout,
    average_pool,
    conv,
    flatten_channels_first,
    global_mean,
    kaiming_normal,
    linear,
    torch_default,
    torch_default_bias,
)
from cprl_jax.models.network import TORCHVISION, MaskableModule, Network, PublishedWeights, ScoreNetwork, linear_head
from cprl_jax.models.resnet import TORCH_RULES, ResNet
from cprl_jax.models.torch_names import TorchNames
from cprl_jax.runtime.errors import UserError

# Channels of the local distortion maps of stages 1 to 3, and the length of the four vectors that are joined.
DISTORTION_CHANNELS = (16, 32, 64)
DISTORTION_FEATURES = (16, 16, 16, 176)
# Widths of the target network, from its input (the sum of the above) to the score.
TARGET_WIDTHS = (224, 112, 56, 28, 14, 1)
HYPER_CHANNELS = 112


class HyperIQA(ScoreNetwork):
    """HyperIQA on a ResNet, as its authors published it (on ResNet-50).

    The hyper network reads the last stage's map and generates, for every image, the weights and biases of the target
    network: five fully connected layers with logistic sigmoids, whose input is the local distortion vector. With
    ResNet-18 and -34 only the input widths of the layers that read the stages' maps differ.

    Attributes:
      backbone: 'resnet18', 'resnet34' or 'resnet50'.
      dropout: rate, on the input of the last generated layer (0 in the published model).
    """

    backbone: str = "resnet50"

    normalization = IMAGENET
    smallest_image, largest_image = 221, 224

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1] of 224x224 pixels, the higher the better; float32.

        Raises:
          UserError: another size. 221 to 224 pixels give feature maps of the same size and are let through.
        """
        if not all(self.smallest_image <= size <= self.largest_image for size in images.shape[1:3]):
            raise UserError(
                f"hyperiqa takes images of 224x224 pixels (or 221 to 224), got {images.shape[1]}x{images.shape[2]}: "
                "set config.train.crop_size and config.evaluation.crop_size to 224, or take another config.model.name"
            )
        x, semantics = self.trunk(DistortionAwareResNet, images, train, architecture=self.backbone)

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
        return self.score(x[:, 0])


class DistortionAwareResNet(MaskableModule):
    """A ResNet and the local distortion vector of its four stages; all that the authors train at the lower rate.

    Attributes: as `ResNet`'s.
    """

    architecture: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool
    ) -> tuple[Float[Array, "batch 224"], Float[Array, "batch 7 7 channels"]]:
        """The local distortion vector (float32) and the map of the last stage."""
        maps = ResNet(self.architecture, **self.shared, name="resnet")(x, train)
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
            local = average_pool(local.astype(jnp.float32), 7, stride=7)
            vectors.append(
                linear(flatten_channels_first(local), features, name=f"lda{stage}_fc", kernel_init=kaiming_normal)
            )
        return jnp.concatenate(vectors, axis=-1), maps[-1]


NETWORK = Network(
    name="hyperiqa",
    title="HyperIQA",
    source="Su et al., CVPR 2020",
    weights=(PublishedWeights("SSL92/hyperIQA: koniq_pretrained.pkl", "MIT"), TORCHVISION),
    module=HyperIQA,
    variants=("resnet50", "resnet18", "resnet34"),
    stages=(0, 1, 2, 3, 4),
    sort_mask=SortMaskPlacement(stages=(2, 3), min_channels=128),
    torch_names=TorchNames(
        rules=(
            (r"^backbone\.(resnet\.)?", "res."),
            (r"\b(lda\d_pool)\b", r"\1.0"),
            (r"^conv1_(\d)\b", r"conv1.\1"),
            *TORCH_RULES,
        ),
        prefix="res.",
        classifier=("fc.",),
    ),
    rescale=linear_head("fc5b_fc", "fc5w_fc"),
    optional_parts={"backbone/lda": "local distortion layers"},
)
