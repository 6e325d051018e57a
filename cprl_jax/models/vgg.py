"""The convolutional part of VGG-16, the trunk of NIMA and a stream of DB-CNN."""

import flax.linen as nn
from jaxtyping import Array, Float

from cprl_jax.models.common import kaiming_normal_fan_out, max_pool
from cprl_jax.models.network import MaskableModule

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # convolutions and channels of each


class VGG16(MaskableModule):
    """Thirteen 3x3 convolutions in five stages (Simonyan & Zisserman, arXiv:1409.1556, configuration D).

    Attributes:
      last_pool: whether the last stage ends in max-pooling, as the others do: 1/32 of the size instead of 1/16.
      sort_mask: its stages 1 to 5 read, after their first convolution, 64, 128, 256, 512 and 512 channels.
    """

    last_pool: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool
    ) -> Float[Array, "batch map_height map_width 512"]:
        """The last map after ReLU, for normalised RGB of at least 32x32 pixels (16x16 without the last pooling)."""
        for stage, (convolutions, channels) in enumerate(STAGES, start=1):
            here = dict(stage=stage, train=train)
            for number in range(1, convolutions + 1):
                options = dict(padding=1, kernel_init=kaiming_normal_fan_out)
                x = self.conv(x, channels, 3, name=f"conv{stage}_{number}", **options, **here)
                if number == convolutions and (stage < len(STAGES) or self.last_pool):
                    x = max_pool(x, window=2, stride=2)
                x = self.activate(x, nn.relu, name=f"relu{stage}_{number}", **here)
            x = self.end_stage(x, **here)
        return x


def torch_rules(features: str = "features") -> tuple[tuple[str, str], ...]:
    """`TorchNames.rules` of its convolutions: torchvision numbers all layers in `features`, ReLUs and poolings too."""
    rules, index = [], 0
    for stage, (convolutions, _) in enumerate(STAGES, start=1):
        for number in range(1, convolutions + 1):
            rules.append((rf"\bconv{stage}_{number}\b", f"{features}.{index}"))
            index += 2
        index += 1
    return tuple(rules)
