"""DB-CNN: VGG-16, which knows content, beside S-CNN, which knows distortions; the products of their maps are scored.

Zhang et al., "Blind Image Quality Assessment Using a Deep Bilinear Convolutional Neural Network", TCSVT 2020.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import IMAGENET, Dropout, kaiming_normal, linear
from cprl_jax.models.network import PYIQA, TORCHVISION, MaskableModule, Network, PublishedWeights, ScoreNetwork, Tensors
from cprl_jax.models.torch_names import TorchNames
from cprl_jax.models.vgg import VGG16, torch_rules

# Stage, channels and stride of S-CNN's convolutions. Its stages follow VGG-16's five.
SCNN = ((6, 48, 1), (6, 48, 2), (7, 64, 1), (7, 64, 2), (8, 64, 1), (8, 64, 2), (9, 128, 1), (9, 128, 1), (9, 128, 2))


class SCNNTrunk(MaskableModule):
    """Nine 3x3 convolutions with batch normalisation: S-CNN, which was trained to tell distortions apart."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool
    ) -> Float[Array, "batch map_height map_width 128"]:
        """The last map, at 1/16 of the size of normalised RGB, rounded up."""
        for number, (stage, channels, stride) in enumerate(SCNN, start=1):
            here = dict(stage=stage, train=train)
            options = dict(stride=stride, padding=1, kernel_init=kaiming_normal)
            x = self.conv(x, channels, 3, name=f"conv{number}", **options, **here)
            x = self.batch_norm(x, name=f"bn{number}", train=train)
            x = self.activate(x, nn.relu, name=f"relu{number}", **here)
            if number == len(SCNN) or SCNN[number][0] > stage:
                x = self.end_stage(x, **here)
        return x


class DBCNNTrunk(MaskableModule):
    """Both streams.

    Attributes:
      sort_mask: its stages 1 to 5 are VGG-16's; 6 to 9 are S-CNN's at 1, 1/2, 1/4 and 1/8 of the size.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool
    ) -> tuple[Float[Array, "batch map_height map_width 512"], Float[Array, "batch map_height map_width 128"]]:
        """The maps of VGG-16 and of S-CNN, at 1/16 of the size (rounded down)."""
        content = VGG16(last_pool=False, **self.shared, name="vgg")(x, train)
        distortion = SCNNTrunk(**self.shared, name="scnn")(x, train)
        return content, resize(distortion, content.shape[1:3])


def resize(
    x: Float[Array, "batch height width channels"], size: tuple[int, int]
) -> Float[Array, "batch new_height new_width channels"]:
    """Bilinear interpolation whose corners are those of x, torch's `align_corners=True`."""
    if x.shape[1:3] == size:
        return x

    def weights(pixels, new_pixels):
        places = np.linspace(0, pixels - 1, new_pixels)
        return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(pixels))).astype(np.float32)

    rows, columns = (jnp.asarray(weights(*pair), x.dtype) for pair in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns)


def bilinear_pool(
    first: Float[Array, "batch height width first_channels"], second: Float[Array, "batch height width second_channels"]
) -> Float[Array, "batch products"]:
    """The mean product of each channel of one map with each of the other, its root, and all divided by their norm.

    Both are at least 0. The products of the first channel come first. 1e-8 under the root keeps its gradient finite.
    """
    first, second = (x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1]) for x in (first, second))
    products = jnp.einsum("bpc,bpd->bcd", first, second) / first.shape[1]
    roots = jnp.sqrt(products + 1e-8).reshape(first.shape[0], -1)
    return roots / jnp.linalg.norm(roots, axis=1, keepdims=True)


class DBCNN(ScoreNetwork):
    """Bilinear pooling of VGG-16's and S-CNN's maps, and one linear layer to the score."""

    normalization = IMAGENET
    smallest_image = 16  # VGG-16 without its last pooling leaves one pixel

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 16x16 pixels, the higher the better; float32.

        Raises:
          ValueError: smaller images.
        """
        features = bilinear_pool(*self.trunk(DBCNNTrunk, images, train))
        features = Dropout(self.dropout, self.axis_name)(features, train)
        return self.score(linear(features, 1, name="head", kernel_init=kaiming_normal)[:, 0])


def stream(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """A file of VGG-16 alone (torchvision's) or of S-CNN alone, with the names that the stream has in DB-CNN.

    What classifies is left out. Other files stay as they are.
    """
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if "features.0.weight" not in tensors:
        return tensors
    place = "features2" if "features.1.running_mean" in tensors else "features1"
    return {
        name.replace("features", place, 1): value
        for name, value in tensors.items()
        if not name.startswith(("projection.", "classifier."))
    }


NETWORK = Network(
    name="dbcnn",
    title="DB-CNN",
    source="Zhang et al., TCSVT 2020",
    weights=(PublishedWeights("zwx8981/DBCNN-PyTorch", "MIT"), PYIQA, TORCHVISION),
    module=DBCNN,
    stages=(1, 2, 3, 4, 5, 6, 7, 8, 9),
    sort_mask=SortMaskPlacement(stages=(3, 4), min_channels=128),
    torch_names=TorchNames(
        rules=(
            *torch_rules("features1"),
            *((rf"\bscnn\.conv{number}\b", f"features2.{3 * number - 3}") for number in range(1, len(SCNN) + 1)),
            *((rf"\bscnn\.bn{number}\b", f"features2.{3 * number - 2}") for number in range(1, len(SCNN) + 1)),
            (r"^backbone\.(vgg\.)?", ""),
            (r"^head\.", "fc."),
        )
    ),
    prepare=stream,
    optional_parts={"backbone/vgg/": "the VGG-16 stream", "backbone/scnn/": "the S-CNN stream"},
)
