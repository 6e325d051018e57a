"""WaDIQaM-NR: ten convolutions of each patch, whose scores are averaged with weights that are learned as well.

Bosse et al., "Deep Neural Networks for No-Reference and Full-Reference Image Quality Assessment", TIP 2018.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import Dropout, grid_patches, kaiming_normal, linear, max_pool, torch_default
from cprl_jax.models.network import PYIQA, MaskableModule, Network, ScoreNetwork, Tensors
from cprl_jax.models.torch_names import TorchNames

PATCH = 32  # pixels a side, of which five max-poolings leave one
CHANNELS = (32, 64, 128, 256, 512)  # of the two convolutions of each stage
HIDDEN = 512
SMALLEST_WEIGHT = 1e-6


class WaDIQaMTrunk(MaskableModule):
    """Five stages of two 3x3 convolutions and 2x2 max-pooling, on every 32x32 patch by itself.

    Attributes:
      sort_mask: its stages 1 to 5 read, after their first convolution, 32, 64, 128, 256 and 512 channels. A mask ranks
        the values of one patch.
    """

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool
    ) -> Float[Array, "batch patches features"]:
        """512 features of each 32x32 patch of RGB in [0, 1]."""
        patches = grid_patches(images, PATCH)
        x = patches.reshape(-1, *patches.shape[2:])
        for stage, channels in enumerate(CHANNELS, start=1):
            here = dict(stage=stage, train=train)
            for number in (2 * stage - 1, 2 * stage):
                x = self.conv(x, channels, 3, name=f"conv{number}", padding=1, kernel_init=kaiming_normal, **here)
                if number == 2 * stage:
                    x = max_pool(x, window=2, stride=2)
                x = self.activate(x, nn.relu, name=f"relu{number}", **here)
            x = self.end_stage(x, **here)
        return x.reshape(*patches.shape[:2], -1)


class WaDIQaM(ScoreNetwork):
    """The weighted mean of the scores of an image's patches; two linear layers give each score, two others its weight.

    Attributes:
      dropout: rate, in both heads (published: 0.5).
    """

    smallest_image = PATCH

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 32x32 pixels, the higher the better; float32.

        Raises:
          ValueError: smaller images.
        """
        features = self.trunk(WaDIQaMTrunk, images, train)

        def hidden(name):
            return Dropout(self.dropout, self.axis_name)(nn.relu(linear(features, HIDDEN, name=name)), train)

        scores = linear(hidden("head_hidden"), 1, name="head")[..., 0]
        # All weights begin near 1: where the ReLU gives 0 for all patches, nothing learns.
        weigh = nn.Dense(1, kernel_init=torch_default, bias_init=nn.initializers.ones_init(), name="weight")
        weights = nn.relu(weigh(hidden("weight_hidden")))[..., 0] + SMALLEST_WEIGHT
        return self.score(jnp.sum(scores * weights, axis=1) / jnp.sum(weights, axis=1))


def from_pyiqa(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """pyiqa's names of the same layers turned into those of the first torch version; others stay as they are."""
    if "fc_q.0.weight" not in tensors:
        return tensors
    convolutions = {f"features.{index}": f"conv{n}" for n, index in enumerate((0, 2, 5, 7, 10, 12, 15, 17, 20, 22), 1)}
    layers = {"fc_q.0": "fc1q_nr", "fc_q.3": "fc2q_nr", "fc_w.0": "fc1w_nr", "fc_w.3": "fc2w_nr", **convolutions}
    renamed = {}
    for name, value in tensors.items():
        layer, _, leaf = name.rpartition(".")
        renamed[f"{layers.get(layer, layer)}.{leaf}"] = value
    return renamed


NETWORK = Network(
    name="wadiqam",
    title="WaDIQaM-NR",
    source="Bosse et al., TIP 2018",
    weights=(PYIQA,),
    module=WaDIQaM,
    stages=(1, 2, 3, 4, 5),
    sort_mask=SortMaskPlacement(stages=(3, 4), min_channels=128),
    torch_names=TorchNames(
        rules=(
            (r"^backbone\.", ""),
            (r"^head_hidden\.", "fc1q_nr."),
            (r"^head\.", "fc2q_nr."),
            (r"^weight_hidden\.", "fc1w_nr."),
            (r"^weight\.", "fc2w_nr."),
        )
    ),
    prepare=from_pyiqa,
)
