"""PaQ-2-PiQ: ResNet-18, and pooling of a region, which is the whole image here; published perturbations stem from it.

Ying et al., "From Patches to Pictures (PaQ-2-PiQ): Mapping the Perceptual Space of Picture Quality", CVPR 2020, their
RoIPool model. Shumitskaya et al., "Universal Perturbation Attack on Differentiable No-Reference Image and Video Quality
Metrics", BMVC 2022, trained their perturbations on it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.common import Dropout, batch_norm, global_max, global_mean, linear
from cprl_jax.models.network import TORCHVISION, Network, PublishedWeights, ScoreNetwork, Tensors
from cprl_jax.models.resnet import TORCH_RULES, ResNet
from cprl_jax.models.torch_names import TorchNames

CELLS = 2  # along each side of the region
HIDDEN = 512


def region_maxima(
    x: Float[Array, "batch height width channels"], image_size: tuple[int, int]
) -> Float[Array, "batch cells cells channels"]:
    """The maxima of a map over the cells of a region, with the whole image as the region: torchvision's `roi_pool`.

    Its rule, along each side: the region ends with pixel round(image / 32) of the map and has n of them, the first one
    included. Cell k has the pixels from floor(k n / cells) to below ceil((k + 1) n / cells), as far as the map goes:
    it is 1/32 of the image, rounded up, so that n may be one more. A cell without pixels is 0.

    Args:
      x: the map.
      image_size: height and width of the image in pixels.
    """
    rows, columns = (
        [slice(cell * pixels // CELLS, math.ceil((cell + 1) * pixels / CELLS)) for cell in range(CELLS)]
        for pixels in (math.floor(size / 32 + 0.5) + 1 for size in image_size)
    )
    maxima = [[_maximum(x[:, row, column]) for column in columns] for row in rows]
    return jnp.stack([jnp.stack(row, axis=1) for row in maxima], axis=1)


def _maximum(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
    """The maximum over all pixels; 0 where there are none."""
    return global_max(x) if min(x.shape[1:3]) else jnp.zeros((x.shape[0], x.shape[3]), x.dtype)


class PaQ2PiQ(ScoreNetwork):
    """The published RoIPool model, with the score of the whole image ("global score"), about 0..100.

    Images go in without normalisation. Its dropout rates are 0.25 and 0.5 (`dropout=0.5`: the first one is the half).
    """

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], the higher the better; float32."""
        maps = self.trunk(ResNet, images, train, architecture="resnet18")
        cells = region_maxima(maps[-1].astype(jnp.float32), images.shape[1:3])
        x = jnp.concatenate([global_max(cells), global_mean(cells)], axis=-1)
        norm = dict(train=train, dtype=jnp.float32, axis_name=self.axis_name)
        x = batch_norm(x, name="head_norm1", **norm)
        x = Dropout(self.dropout / 2, self.axis_name)(x, train)
        x = nn.relu(linear(x, HIDDEN, name="head_hidden"))
        x = batch_norm(x, name="head_norm2", **norm)
        x = Dropout(self.dropout, self.axis_name)(x, train)
        return self.score(linear(x, 1, name="head")[:, 0])


# The published trunk is a sequence: convolution, normalisation, ReLU, pooling, and the four stages.
_PLACES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


def from_torchvision(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """A ResNet-18 by torchvision's names turned into the published trunk's; other names stay as they are."""
    if "conv1.weight" not in tensors:
        return tensors
    return {
        re.sub(r"^\w+", lambda part: f"body.{_PLACES.get(part[0], part[0])}", name): value
        for name, value in tensors.items()
        if not name.startswith("fc.")
    }


NETWORK = Network(
    name="paq2piq",
    title="PaQ-2-PiQ",
    source="Ying et al., CVPR 2020",
    weights=(PublishedWeights("baidut/paq2piq: RoIPoolModel.pth", "MIT"), TORCHVISION),
    module=PaQ2PiQ,
    stages=(0, 1, 2, 3, 4),
    sort_mask=SortMaskPlacement(stages=(2, 3), min_channels=128),
    torch_names=TorchNames(
        rules=(
            (r"^head\.", "head.8."),
            (r"^head_norm1\.", "head.2."),
            (r"^head_hidden\.", "head.4."),
            (r"^head_norm2\.", "head.6."),
            *TORCH_RULES,
            *((rf"^backbone\.{ours}\.", f"body.{theirs}.") for ours, theirs in _PLACES.items()),
        )
    ),
    prepare=from_torchvision,
)
