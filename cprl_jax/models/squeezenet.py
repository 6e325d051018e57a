"""SqueezeNet 1.1 with a score head: 1.2 million parameters, small enough to train on a laptop."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import (
    Dropout,
    InputNormalization,
    Standardization,
    ceil_padding,
    conv,
    global_mean,
    global_std,
    kaiming_uniform,
    linear,
    max_pool,
)

# (number, squeeze channels, expand channels of each kind) of the fire modules of stages 1, 2 and 3.
FIRE_MODULES = (
    ((2, 16, 64), (3, 16, 64)),
    ((4, 32, 128), (5, 32, 128)),
    ((6, 48, 192), (7, 48, 192), (8, 64, 256), (9, 64, 256)),
)
SMALLEST_IMAGE = 17  # pixels a side that leave one pixel for the last stage
STATISTICS = {"mean": global_mean, "std": global_std}


class SqueezeNetTrunk(nn.Module):
    """The convolutional part of SqueezeNet 1.1 (Iandola et al., arXiv:1602.07360; version 1.1 of their repository).

    Geometry of the original Caffe model and of torchvision: no padding in the first convolution, max-pooling whose last
    window may hang over the border. Weights of either fit, see `InputNormalization` for the difference between them.

    Attributes:
      sort_mask: which convolutions are masked. Stage 0 is the first convolution, 1 has fire modules 2 and 3, 2 has 4
        and 5, 3 has 6 to 9. The inputs of their 3x3 convolutions have few channels: 16, 32, and 48 or 64.
      dtype: of the computation; parameters are float32.
      axis_name: the mapped axis over which the batch is spread, if any.
    """

    sort_mask: SortMaskPlacement = SortMaskPlacement()
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool
    ) -> tuple[Float[Array, "batch stage_height stage_width channels"], ...]:
        """The maps of stages 0 to 3 after ReLU and before max-pooling, at about 1/2, 1/4, 1/8 and 1/16 of the size."""
        shared = dict(sort_mask=self.sort_mask, dtype=self.dtype, axis_name=self.axis_name)
        x = InputNormalization(name="input")(images)
        x = conv(x, 64, 3, name="conv1", train=train, stride=2, kernel_init=kaiming_uniform, **shared)
        maps = [nn.relu(x)]
        for stage, modules in enumerate(FIRE_MODULES, start=1):
            x = max_pool(x, window=3, stride=2, padding=ceil_padding(x.shape[1:3], window=3, stride=2))
            for number, squeeze, expand in modules:
                x = Fire(squeeze, expand, stage=stage, name=f"fire{number}", **shared)(x, train)
            maps.append(nn.relu(x))
        return tuple(maps)


class Fire(nn.Module):
    """A 1x1 convolution to few channels, and from there a 1x1 and a 3x3 convolution side by side.

    It takes and gives values from before their ReLU, so that the ReLU comes after a max-pooling between two modules,
    see `max_pool`.
    """

    squeeze: int
    expand: int
    stage: int
    sort_mask: SortMaskPlacement
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width expanded"]:
        shared = dict(
            train=train,
            stage=self.stage,
            sort_mask=self.sort_mask,
            dtype=self.dtype,
            axis_name=self.axis_name,
            kernel_init=kaiming_uniform,
        )
        squeezed = nn.relu(conv(nn.relu(x), self.squeeze, 1, name="squeeze1x1", **shared))
        expanded = [
            conv(squeezed, self.expand, 1, name="expand1x1", **shared),
            conv(squeezed, self.expand, 3, name="expand3x3", padding=1, **shared),
        ]
        return jnp.concatenate(expanded, axis=-1)


class SqueezeNetScore(nn.Module):
    """SqueezeNet 1.1 whose pooled statistics are standardised and mapped to a score by one linear layer.

    Attributes:
      sort_mask: which convolutions of the backbone are masked, see `SqueezeNetTrunk` for its stages.
      score_mean, score_std: score = score_mean + score_std * output of the linear layer.
      dtype: of the backbone's computation; the head computes in float32.
      axis_name: the mapped axis over which the batch is spread, if any.
      dropout: rate, on the statistics.
      pooled_stages: the stages (0 to 3) whose maps are pooled.
      statistics: what is taken of each channel of those maps over all pixels: 'mean', 'std'.
    """

    sort_mask: SortMaskPlacement = SortMaskPlacement()
    score_mean: float = 0.0
    score_std: float = 1.0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0
    pooled_stages: tuple[int, ...] = (2, 3)
    statistics: tuple[str, ...] = ("mean", "std")

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 17x17 pixels, the higher the better; float32.

        Raises:
          ValueError: smaller images, or an attribute with a value that is not allowed.
        """
        if min(images.shape[1:3]) < SMALLEST_IMAGE:
            raise ValueError(
                f"squeezenet takes images of at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels, got "
                f"{images.shape[1]}x{images.shape[2]}"
            )
        if not self.pooled_stages or not set(self.pooled_stages) <= {0, 1, 2, 3}:
            raise ValueError(f"pooled_stages {self.pooled_stages}: give at least one of 0, 1, 2, 3")
        if not self.statistics or not set(self.statistics) <= set(STATISTICS):
            raise ValueError(f"statistics {self.statistics}: give at least one of {', '.join(STATISTICS)}")

        trunk = SqueezeNetTrunk(self.sort_mask, dtype=self.dtype, axis_name=self.axis_name, name="backbone")
        maps = trunk(images, train)
        features = jnp.concatenate(
            [STATISTICS[name](maps[stage]) for stage in self.pooled_stages for name in self.statistics], axis=-1
        )
        features = Standardization(self.axis_name, name="head_standardization")(features, train)
        features = Dropout(self.dropout, self.axis_name)(features, train)
        output = linear(features, 1, name="head", kernel_init=nn.initializers.normal(0.1))
        return self.score_mean + self.score_std * output[:, 0]
