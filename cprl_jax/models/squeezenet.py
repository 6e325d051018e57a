"""SqueezeNet 1.1 with a score head: 1.2 million parameters, small enough to train on a laptop."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import InputNormalization, ceil_padding, global_mean, global_std, kaiming_uniform, max_pool
from cprl_jax.models.network import TORCHVISION, MaskableModule, Network, PublishedWeights, ScoreNetwork, Tensors
from cprl_jax.models.torch_names import TorchNames
from cprl_jax.runtime.errors import UserError

# (number, squeeze channels, expand channels of each kind) of the fire modules of stages 1, 2 and 3.
FIRE_MODULES = (
    ((2, 16, 64), (3, 16, 64)),
    ((4, 32, 128), (5, 32, 128)),
    ((6, 48, 192), (7, 48, 192), (8, 64, 256), (9, 64, 256)),
)
STATISTICS = {"mean": global_mean, "std": global_std}


class SqueezeNetTrunk(MaskableModule):
    """The convolutional part of SqueezeNet 1.1 (Iandola et al., arXiv:1602.07360; version 1.1 of their repository).

    Geometry of the original Caffe model and of torchvision: no padding in the first convolution, max-pooling whose last
    window may hang over the border. Weights of either fit, see `InputNormalization` for the difference between them.

    Attributes:
      sort_mask: its stage 0 is the first convolution, 1 has fire modules 2 and 3, 2 has 4 and 5, 3 has 6 to 9. The
        inputs of their 3x3 convolutions have few channels: 16, 32, and 48 or 64.
    """

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool
    ) -> tuple[Float[Array, "batch stage_height stage_width channels"], ...]:
        """The maps of stages 0 to 3 after ReLU and before max-pooling, at about 1/2, 1/4, 1/8 and 1/16 of the size."""
        x = InputNormalization(name="input")(images)
        x = self.conv(x, 64, 3, name="conv1", train=train, stride=2, kernel_init=kaiming_uniform)
        maps = [self.activate(x, nn.relu, name="relu0", stage=0, train=train)]
        for stage, modules in enumerate(FIRE_MODULES, start=1):
            x = max_pool(x, window=3, stride=2, padding=ceil_padding(x.shape[1:3], window=3, stride=2))
            for number, squeeze, expand in modules:
                x = Fire(squeeze, expand, stage=stage, **self.shared, name=f"fire{number}")(x, train)
            x = self.end_stage(x, stage=stage, train=train)
            maps.append(self.activate(x, nn.relu, name=f"relu{stage}", stage=stage, train=train))
        return tuple(maps)


class Fire(MaskableModule):
    """A 1x1 convolution to few channels, and from there a 1x1 and a 3x3 convolution side by side.

    It takes and gives values from before their ReLU, so that the ReLU comes after a max-pooling between two modules,
    see `max_pool`.
    """

    squeeze: int
    expand: int
    stage: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width expanded"]:
        here = dict(stage=self.stage, train=train)
        x = self.activate(x, nn.relu, name="relu_input", **here)
        x = self.conv(x, self.squeeze, 1, name="squeeze1x1", kernel_init=kaiming_uniform, **here)
        x = self.activate(x, nn.relu, name="relu_squeeze", **here)
        expanded = [
            self.conv(x, self.expand, 1, name="expand1x1", kernel_init=kaiming_uniform, **here),
            self.conv(x, self.expand, 3, name="expand3x3", padding=1, kernel_init=kaiming_uniform, **here),
        ]
        return jnp.concatenate(expanded, axis=-1)


class SqueezeNetScore(ScoreNetwork):
    """SqueezeNet 1.1 whose pooled statistics are standardised and mapped to a score by one linear layer.

    Attributes:
      pooled_stages: the stages (0 to 3) whose maps are pooled.
      statistics: what is taken of each channel of those maps over all pixels: 'mean', 'std'.
    """

    pooled_stages: tuple[int, ...] = (2, 3)
    statistics: tuple[str, ...] = ("mean", "std")

    smallest_image = 17  # leaves one pixel for the last stage

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 17x17 pixels, the higher the better; float32.

        Raises:
          ValueError: smaller images, or an attribute with a value that is not allowed.
        """
        if not self.pooled_stages or not set(self.pooled_stages) <= {0, 1, 2, 3}:
            raise ValueError(f"pooled_stages {self.pooled_stages}: give at least one of 0, 1, 2, 3")
        if not self.statistics or not set(self.statistics) <= set(STATISTICS):
            raise ValueError(f"statistics {self.statistics}: give at least one of {', '.join(STATISTICS)}")

        maps = self.trunk(SqueezeNetTrunk, images, train)
        features = jnp.concatenate(
            [STATISTICS[name](maps[stage]) for stage in self.pooled_stages for name in self.statistics], axis=-1
        )
        return self.standardized_score(features, train)


# Of RGB in [0, 1]: the Caffe model was trained on 0..255 minus these means.
_CAFFE_INPUT = {"mean": tuple(value / 255.0 for value in (123.68, 116.779, 103.939)), "std": (1.0 / 255.0,) * 3}


def from_caffe(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """Names and input convention of the Caffe model (HWIO, as its Keras ports store it) turned into ours.

    Its input is BGR: the first kernel, with its input axis turned over, takes RGB. Other names stay as they are.
    """
    if not any(name.endswith("/w") for name in tensors):
        return tensors
    leaves = {"w": "kernel", "b": "bias"}
    ours = {f"batch_stats/backbone/input/{name}": np.asarray(value, np.float32) for name, value in _CAFFE_INPUT.items()}
    for name, value in tensors.items():
        layer, _, leaf = name.rpartition("/")
        if leaf not in leaves:
            raise UserError(f"unknown name {name!r}; those of SqueezeNet end in /w and /b")
        if layer != "conv10":  # the classifier
            turned = value[:, :, ::-1] if name == "conv1/w" and value.ndim == 4 else value
            ours[f"params/backbone/{layer}/{leaves[leaf]}"] = turned
    return ours


# torchvision numbers the layers as they follow each other, ReLUs and poolings included.
_FIRE_INDEX = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}

NETWORK = Network(
    name="squeezenet",
    title="SqueezeNet 1.1",
    source="Iandola et al., arXiv:1602.07360",
    weights=(TORCHVISION, PublishedWeights("DeepCognition/keras-squeezenet", "MIT")),
    module=SqueezeNetScore,
    stages=(0, 1, 2, 3),
    sort_mask=SortMaskPlacement(stages=(3,), min_channels=48),
    torch_names=TorchNames(
        rules=(
            (r"^backbone\.conv1\b", "features.0"),
            *((rf"^backbone\.fire{ours}\b", f"features.{theirs}") for ours, theirs in _FIRE_INDEX.items()),
            (r"\.squeeze1x1\b", ".squeeze"),
        ),
        prefix="features.",
        ours_alone=("backbone.input.", "head.", "head_standardization."),
        classifier=("classifier.",),
    ),
    prepare=from_caffe,
)
