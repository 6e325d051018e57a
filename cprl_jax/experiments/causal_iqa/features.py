"""What a network's backbone sees in an image: the features that contents are clustered by."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from tqdm import tqdm

from cprl_jax import models
from cprl_jax.models.common import global_mean


def backbone_features(
    module: nn.Module,
    variables: Mapping,
    images: Sequence[UInt8[np.ndarray, "height width 3"]],
    *,
    image_size: int = 224,
    batch_size: int = 16,
    progress: str = "",
) -> Float32[np.ndarray, "images features"]:
    """The mean over all pixels of the last maps of a network's backbone, in evaluation mode.

    Each image is scaled until its shorter side has `image_size` pixels (bicubic with antialiasing, up or down), and the
    square in the middle is taken, so that all batches have one shape and the content keeps its proportions.

    Args:
      module: a network with a submodule 'backbone' that gives maps [batch, height, width, channels], several (of which
        the last is taken), or vectors [batch, features].
      variables: its parameters and batch statistics.
      images: RGB of any size.
      image_size: height and width in pixels that the backbone sees.
      batch_size: images at once.
      progress: name of a progress bar over the batches; '' for none.

    Raises:
      ValueError: a network without a backbone, or one that gives something else.
    """

    @jax.jit
    def extract(variables, pixels):
        last = models.last_map(module, variables, pixels.astype(jnp.float32) / 255.0)
        if last is None:
            raise ValueError(f"{type(module).__name__} has no submodule 'backbone'; take a network that has one")
        if last.ndim not in (2, 4):
            raise ValueError(
                f"the backbone of {type(module).__name__} gives an array of shape {last.shape}; it must give maps "
                "[batch, height, width, channels] or vectors [batch, features]"
            )
        return global_mean(last) if last.ndim == 4 else last.astype(jnp.float32)

    parts = []
    starts = range(0, len(images), batch_size)
    for start in tqdm(starts, desc=progress, unit="batch", dynamic_ncols=True, disable=not progress):
        squares = [middle_square(images[row], image_size) for row in range(start, min(start + batch_size, len(images)))]
        filled = np.resize(np.stack(squares), (batch_size, image_size, image_size, 3))  # one shape: compiled once
        parts.append(np.asarray(extract(variables, filled))[: len(squares)])
    return np.concatenate(parts)


def middle_square(image: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The square in the middle of an image, scaled to `size` pixels a side (bicubic with antialiasing)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image).crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
