"""CNNIQA: one convolution of grey patches with normalised contrast, and three linear layers.

Kang et al., "Convolutional Neural Networks for No-Reference Image Quality Assessment", CVPR 2014.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.config.field import Field
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import Dropout, global_max, grid_patches, linear, torch_default, torch_default_bias
from cprl_jax.models.network import MaskableModule, Network, PublishedWeights, ScoreNetwork
from cprl_jax.models.torch_names import TorchNames

PATCH = 32  # pixels a side
KERNELS, KERNEL_SIZE = 50, 7
HIDDEN = 800
GREY = (0.299, 0.587, 0.114)


def local_contrast(x: Float[Array, "batch height width 1"], constant: float) -> Float[Array, "batch height width 1"]:
    """(x - mean) / (standard deviation + constant), both over 3x3 pixels, those at the border repeated (Eq. 1).

    Gradients are finite also where x is flat.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    window = jnp.stack([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)])
    mean = jnp.mean(window, axis=0)
    variance = jnp.mean((window - mean[None]) ** 2, axis=0)
    return (x - mean) / (jnp.sqrt(jnp.maximum(variance, 1e-20)) + constant)


class CNNIQATrunk(MaskableModule):
    """A 7x7 convolution to 50 channels, of each of which the largest and the smallest value in the patch is taken.

    Attributes:
      contrast_constant: added to the standard deviation of grey in [0, 1].
      sort_mask: its stage 0 is the convolution, which reads one channel: a mask ranks the values of one patch.
    """

    contrast_constant: float = 1.0

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool
    ) -> Float[Array, "batch patches features"]:
        """100 features of each 32x32 patch of RGB in [0, 1]: 50 maxima, then 50 minima."""
        patches = grid_patches(images @ jnp.asarray(GREY, images.dtype).reshape(3, 1), PATCH)
        x = local_contrast(patches.reshape(-1, PATCH, PATCH, 1), self.contrast_constant)
        options = dict(kernel_init=torch_default, bias_init=torch_default_bias(KERNEL_SIZE**2))
        x = self.conv(x, KERNELS, KERNEL_SIZE, name="conv1", train=train, **options)
        x = self.end_stage(x, stage=0, train=train)
        features = jnp.concatenate([global_max(x), -global_max(-x)], axis=-1)
        return features.reshape(*patches.shape[:2], -1)


class CNNIQA(ScoreNetwork):
    """The mean score of the patches of an image, each scored by two hidden layers of 800 and a linear one.

    Attributes:
      contrast_constant: see `CNNIQATrunk`.
      dropout: rate, between the hidden layers (published: 0.5).
    """

    contrast_constant: float = 1.0

    smallest_image = PATCH

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 32x32 pixels, the higher the better; float32.

        Raises:
          ValueError: smaller images.
        """
        x = self.trunk(CNNIQATrunk, images, train, contrast_constant=self.contrast_constant)
        x = nn.relu(linear(x, HIDDEN, name="head_hidden1"))
        x = Dropout(self.dropout, self.axis_name)(x, train)
        x = nn.relu(linear(x, HIDDEN, name="head_hidden2"))
        return self.score(jnp.mean(linear(x, 1, name="head")[..., 0], axis=1))


NETWORK = Network(
    name="cnniqa",
    title="CNNIQA",
    source="Kang et al., CVPR 2014",
    weights=(PublishedWeights("lidq92/CNNIQA: CNNIQA-LIVE", "none stated"),),
    module=CNNIQA,
    settings={
        "contrast_constant": Field(
            1.0,
            "added to the local standard deviation of grey in [0, 1]: 1 as in the published code and its weights; the "
            "paper's 1 for grey in 0..255 is 1/255",
            above=0,
        )
    },
    stages=(0,),
    sort_mask=SortMaskPlacement(stages=(0,), min_channels=1),
    torch_names=TorchNames(rules=((r"^backbone\.", ""), (r"^head_hidden(\d)\.", r"fc\1."), (r"^head\.", "fc3."))),
)
