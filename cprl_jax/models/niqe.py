"""NIQE: how far the natural scene statistics of an image's blocks are from those of undistorted photographs.

Mittal et al., "Making a 'Completely Blind' Image Quality Analyzer", IEEE Signal Processing Letters 2013. No label is
read. BRISQUE's functions make the statistics.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.io
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from cprl_jax.config.field import Field
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models import brisque
from cprl_jax.models.fitted import FittedNetwork, Images
from cprl_jax.models.network import Network, PublishedWeights
from cprl_jax.runtime.errors import UserError

BLOCK = 96  # pixels a side, and half of it at half the size
FEATURES = 36
SHARP = 0.75  # of the sharpest block of a photograph: blocks above it are natural


def block_features(
    images: Float[Array, "batch height width 3"], *, smooth: bool = False
) -> tuple[Float[Array, "batch blocks 36"], Float[Array, "batch blocks"]]:
    """The 36 features of every 96x96 block, row by row, and its sharpness: the mean local deviation.

    18 of a block at each of two sizes, from asymmetric generalised Gaussians: shape and mean scale of the coefficients,
    then shape, mean, left and right scale of their products with each neighbour (`brisque.SHIFTS` in another order).
    Rows and columns behind the last whole block are left out. Grey levels are rounded, with the gradient of no
    rounding; the border's pixels are repeated; the half size is MATLAB's `imresize`.

    Args:
      images: RGB in [0, 1], at least 96x96 pixels.
      smooth: see `brisque.features`.
    """
    images = images.astype(jnp.float32)
    height, width = (side // BLOCK * BLOCK for side in images.shape[1:3])
    red, green, blue = brisque.MATLAB_LUMA
    images = images[:, :height, :width]
    gray = brisque.rounded(255.0 * (red * images[..., 0] + green * images[..., 1] + blue * images[..., 2]))
    found = []
    for side in (BLOCK, BLOCK // 2):
        mean, deviation = brisque.local_moments(gray, "edge")
        if side == BLOCK:
            sharpness = jnp.mean(_blocks(deviation, side), axis=(2, 3))
        found.append(_statistics(_blocks((gray - mean) / (deviation + 1.0), side), smooth))
        gray = brisque.half(gray, "mittal2012") if side == BLOCK else gray
    return jnp.concatenate(found, axis=-1), sharpness


def _blocks(maps: Array, side: int) -> Array:
    """[batch, blocks, side, side]."""
    rows, columns = maps.shape[1] // side, maps.shape[2] // side
    maps = maps.reshape(len(maps), rows, side, columns, side).swapaxes(2, 3)
    return maps.reshape(len(maps), rows * columns, side, side)


def _statistics(blocks: Array, smooth: bool) -> Array:
    flat = blocks.reshape(-1, *blocks.shape[2:])
    found = []
    for shift in (None, (0, 1), (1, 0), (1, 1), (1, -1)):
        samples = flat if shift is None else flat * jnp.roll(flat, shift, axis=(1, 2))
        shape, mean, *variances = brisque.asymmetric_generalized_gaussian(samples.reshape(len(flat), -1), smooth=smooth)
        factor = jnp.exp((gammaln(1.0 / shape) - gammaln(3.0 / shape)) / 2.0)
        left, right = (factor * brisque.root(variance) for variance in variances)
        found += [shape, (left + right) / 2.0] if shift is None else [shape, mean, left, right]
    return jnp.stack(found, axis=-1).reshape(*blocks.shape[:2], -1)


def distance(
    found: Float[Array, "batch blocks features"],
    mean: Float[Array, " features"],
    covariance: Float[Array, "features features"],
) -> Float[Array, " batch"]:
    """sqrt((m - mean)^T ((C + covariance) / 2)^-1 (m - mean)), m and C being those of the blocks of an image (Eq. 10).

    Features are brought to the standard deviations of `covariance` first, which changes nothing but the rounding. The
    covariance of a single block counts as 0.
    """
    deviations = jnp.sqrt(jnp.diagonal(covariance))
    covariance = covariance / deviations[:, None] / deviations[None, :]
    found = (found - mean.reshape(1, 1, -1)) / deviations.reshape(1, 1, -1)
    difference = jnp.mean(found, axis=1)
    centred = found - difference[:, None]
    own = jnp.einsum("bni,bnj->bij", centred, centred, precision="highest") / max(found.shape[1] - 1, 1)
    solved = jnp.linalg.solve((own + covariance[None]) / 2.0, difference[..., None])[..., 0]
    return brisque.root(jnp.maximum(jnp.sum(difference * solved, axis=-1), 0.0))


class NIQE(FittedNetwork):
    """score = score_mean - score_std * NIQE; -NIQE itself with score_mean=0, score_std=1.

    Attributes:
      smooth: see `brisque.features`.
    """

    smooth: bool = False

    smallest_image = BLOCK

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 96x96 pixels, the higher the better; float32.

        Raises:
          ValueError: smaller images.
        """
        if min(images.shape[1:3]) < BLOCK:
            raise ValueError(f"NIQE takes images of at least {BLOCK}x{BLOCK} pixels, got {images.shape[1:3]}")
        mean = self.fitted("mean", (FEATURES,))
        covariance = self.fitted("covariance", (FEATURES, FEATURES), lambda key, shape: jnp.eye(*shape))
        found, _ = block_features(self.change.images(images), smooth=self.smooth)
        return self.score(-distance(found, mean, covariance))


def fit(
    module: NIQE, train: Images, validation: Images, *, pristine: Callable[[], Sequence[np.ndarray]], seed: int
) -> tuple[Mapping, dict[str, float]]:
    """Mean and covariance of the features of the photographs' sharp blocks; neither labels nor `train` are read.

    Raises:
      UserError: blocks that are too few for a covariance.
    """
    rows = []
    compute = jax.jit(lambda pixels: block_features(pixels.astype(jnp.float32) / 255.0))
    for photograph in pristine():
        if min(photograph.shape[:2]) >= BLOCK:
            found, sharpness = (np.asarray(values)[0] for values in compute(photograph[None]))
            rows.append(found[sharpness > SHARP * sharpness.max()])
    rows = np.concatenate(rows).astype(np.float64) if rows else np.zeros((0, FEATURES))
    if len(rows) < 2 * FEATURES:
        raise UserError(
            f"NIQE needs {2 * FEATURES} sharp blocks of {BLOCK}x{BLOCK} pixels, and the undistorted photographs have "
            f"{len(rows)}; give more or larger ones by config.train.pristine"
        )
    fitted = {"mean": rows.mean(axis=0), "covariance": np.cov(rows, rowvar=False)}
    return {"params": {name: values.astype(np.float32) for name, values in fitted.items()}}, {"blocks": len(rows)}


def read(path: Path, module: NIQE) -> Mapping[str, Any]:
    """The published .mat file: `mu_prisparam` [1, 36] and `cov_prisparam` [36, 36].

    Raises:
      UserError: it is no such file.
    """
    try:
        file = scipy.io.loadmat(path)
        mean, covariance = np.asarray(file["mu_prisparam"], float), np.asarray(file["cov_prisparam"], float)
        return {"mean": mean.reshape(FEATURES), "covariance": covariance.reshape(FEATURES, FEATURES)}
    except Exception as error:  # SciPy's are of many kinds
        raise UserError(
            f"{path}: no .mat file with NIQE's mu_prisparam and cov_prisparam ({type(error).__name__}: {error})"
        ) from None


NETWORK = Network(
    name="niqe",
    title="NIQE",
    source="Mittal et al., IEEE Signal Processing Letters 2013",
    weights=(PublishedWeights("utlive/niqe: modelparameters.mat", "none stated"),),
    module=NIQE,
    settings={"smooth": Field(False, "gradients also pass through the shapes of the distributions")},
    stages=(),
    sort_mask=SortMaskPlacement(stages=()),
    fit=fit,
    read=read,
)
