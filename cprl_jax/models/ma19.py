"""Ma19: four convolutions with divisive normalisation, trained on pairs of images instead of opinions.

Ma et al., "Blind Image Quality Assessment by Learning from Multiple Annotators", ICIP 2019; the deep target of Zhang et
al., "Perceptual Attacks of No-Reference Image Quality Models with Human-in-the-Loop", NeurIPS 2022.
"""

import math
import re
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cprl_jax.layers.gdn import GDN
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import Dropout, flatten_channels_first, global_max, linear, max_pool, torch_default_bias
from cprl_jax.models.network import MaskableModule, Network, PublishedWeights, ScoreNetwork, Tensors, linear_head
from cprl_jax.models.torch_names import TorchNames

CHANNELS = 48
STAGES = 4
PYRAMID_LEVELS = (1, 2, 3)
HIDDEN = 128


def pyramid_max(
    x: Float[Array, "batch height width channels"], levels: Sequence[int] = PYRAMID_LEVELS
) -> Float[Array, "batch features"]:
    """The maximum of each channel in each cell of a 1x1, 2x2 and 3x3 grid (He et al., ECCV 2014), joined.

    The published rule for level n of a side of h pixels: cells of k = ceil(h / n) pixels, the first of which begins
    (k n - h + 1) // 2 pixels outside. Within a level the order is channel, row, column, as published weights count on.

    Args:
      x: any range.
      levels: cells on each side.

    Raises:
      ValueError: a side of x has fewer pixels than a level has cells.
    """
    if min(x.shape[1:3]) < max(levels):
        raise ValueError(f"levels {tuple(levels)} need {max(levels)} pixels a side, got {x.shape[1]}x{x.shape[2]}")
    return jnp.concatenate([flatten_channels_first(_cell_maxima(x, level)) for level in levels], axis=-1)


def _cell_maxima(x: Array, level: int) -> Array:
    batch, channels = x.shape[0], x.shape[-1]
    cells = [math.ceil(pixels / level) for pixels in x.shape[1:3]]
    padding = []
    for pixels, cell in zip(x.shape[1:3], cells, strict=True):
        before = (cell * level - pixels + 1) // 2
        padding.append((before, cell * level - pixels - before))
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-np.inf)
    x = x.reshape(batch, level, cells[0], level, cells[1], channels).swapaxes(2, 3)
    return global_max(x.reshape(-1, *cells, channels)).reshape(batch, level, level, channels)


class Ma19Trunk(MaskableModule):
    """Four 3x3 convolutions to 48 channels, each with GDN, and 2x2 max-pooling between them.

    Attributes:
      sort_mask: the convolutions of its stages 1 to 4 read 3, 48, 48 and 48 channels.
      dtype: of the convolutions; GDN computes in float32, and so are parameters.
    """

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool
    ) -> tuple[Float[Array, "batch stage_height stage_width channels"], ...]:
        """The maps of the four stages after GDN, at 1, 1/2, 1/4 and 1/8 of the size (rounded down)."""
        x = images
        maps = []
        for stage in range(1, STAGES + 1):
            if stage > 1:
                x = max_pool(x, window=2, stride=2)
            x = self.conv(
                x,
                CHANNELS,
                3,
                name=f"conv{stage}",
                train=train,
                stage=stage,
                padding=1,
                kernel_init=nn.initializers.xavier_uniform(),
                bias_init=torch_default_bias(9 * x.shape[-1]),
            )
            x = GDN(dtype=self.dtype, name=f"gdn{stage}")(x)
            x = self.end_stage(x, stage=stage, train=train)
            maps.append(x)
        return tuple(maps)


class Ma19(ScoreNetwork):
    """Ma19 as published: its trunk, a spatial pyramid of maxima, and two linear layers to a mean and a variance.

    Images go in without normalisation. The published weights give scores of about 1.5 to 4.2 (score_mean 0,
    score_std 1); `cprl_jax.models.logistic.MA19` maps them to 0..10.
    """

    # Three max-poolings leave as many pixels as the finest level of the pyramid has cells.
    smallest_image = 2 ** (STAGES - 1) * max(PYRAMID_LEVELS)

    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 24x24 pixels, the higher the better; float32.

        Raises:
          ValueError: smaller images.
        """
        return self.mean_and_variance(images, train)[0]

    @nn.compact
    def mean_and_variance(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """The score and its variance (in squared units of the score): `apply(..., method="mean_and_variance")`.

        Raises:
          ValueError: images of less than 24x24 pixels.
        """
        features = pyramid_max(self.trunk(Ma19Trunk, images, train)[-1].astype(jnp.float32))
        hidden = nn.relu(linear(features, HIDDEN, name="head_hidden"))
        hidden = Dropout(self.dropout, self.axis_name)(hidden, train)
        output = linear(hidden, 2, name="head")
        return self.score(output[:, 0]), self.score_std**2 * jnp.exp(output[:, 1])


def rescale(tensors: Tensors, mean: float, std: float) -> None:
    """`linear_head` for the mean; the second output of the last layer is the logarithm of the variance."""
    logarithms = {name: tensors[name][..., 1] for name in ("params/head/kernel", "params/head/bias") if name in tensors}
    linear_head("head")(tensors, mean, std)
    for name, value in logarithms.items():
        tensors[name][..., 1] = value - (2.0 * math.log(std) if name.endswith("bias") else 0.0)


# The published file numbers the layers as they follow each other: a convolution, a GDN and a pooling for each stage.
_INDEX = {
    "backbone.conv1": 0,
    "backbone.gdn1": 1,
    "backbone.conv2": 3,
    "backbone.gdn2": 4,
    "backbone.conv3": 6,
    "backbone.gdn3": 7,
    "backbone.conv4": 9,
    "backbone.gdn4": 10,
    "head_hidden": 12,
    "head": 14,
}

NETWORK = Network(
    name="ma19",
    title="Ma19",
    source="Ma et al., ICIP 2019",
    weights=(PublishedWeights("zwx8981/BIQA_CL", "MIT"),),
    module=Ma19,
    stages=(1, 2, 3, 4),
    sort_mask=SortMaskPlacement(stages=(2, 3), min_channels=48),
    torch_names=TorchNames(
        rules=tuple((rf"^{re.escape(ours)}\.", f"cnn.{theirs}.") for ours, theirs in _INDEX.items()), prefix="cnn."
    ),
    rescale=rescale,
)
