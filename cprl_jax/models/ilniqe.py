"""IL-NIQE: NIQE with more statistics, of colours, gradients and log-Gabor filters, and a distance of each block.

Zhang, Zhang and Bovik, "A Feature-Enriched Completely Blind Image Quality Evaluator", IEEE TIP 2015. No label is read.
BRISQUE's functions fit the generalised Gaussians.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.io
from jax import lax
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from cprl_jax.config.field import Field
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models import brisque
from cprl_jax.models.fitted import FittedNetwork, Images
from cprl_jax.models.network import Network, PublishedWeights
from cprl_jax.runtime.errors import UserError

SIDE = 524  # pixels a side that every image is resized to
BLOCK = 84  # pixels a side, and half of it at half the size
FEATURES = 468
SHARP = 0.78  # of the sharpest block of a photograph: blocks above it are natural
KEPT = 0.92  # of the principal components that there can be: 430 of 468
FEWEST = 72  # blocks of undistorted photographs, those of two images
OPPONENT = ((0.3, 0.04, -0.35), (0.34, -0.6, 0.17), (0.06, 0.63, 0.27))  # of R, G, B; the last one is a luminance
LOG_OPPONENT = tuple(
    tuple(weight / math.hypot(*row) for weight in row) for row in ((1.0, 1.0, 1.0), (1.0, 1.0, -2.0), (1.0, -1.0, 0.0))
)
_DARKEST = 1e-5  # added to a channel before its logarithm
_WEAKEST = 1e-4  # the least magnitude of a gradient: where float32's errors begin, for values in 0..255
_REACH = 5  # pixels that the derivatives of a Gaussian see in each direction
_SHAPES = (0.05, 10.0)  # of a Weibull distribution; 10 is that of a flat block
_NEWTON_STEPS = 5
_EXACT = lax.Precision.HIGHEST


def resized(images: Float[Array, "batch height width 3"]) -> Float[Array, "batch 524 524 3"]:
    """What MATLAB's `imresize` makes of 8-bit images, whole grey levels 0 to 255, with the gradient of no rounding.

    Bicubic (a = -0.5), with a low-pass filter along an axis that shrinks, mirrored at the border. The axis that shrinks
    more comes first, and is rounded before the other.

    Args:
      images: RGB in [0, 1].
    """
    images = 255.0 * images.astype(jnp.float32)
    for axis in sorted((1, 2), key=lambda axis: -images.shape[axis]):
        matrix = jnp.asarray(_bicubic(images.shape[axis]), jnp.float32)
        found = jnp.tensordot(matrix, images, (1, axis), precision=_EXACT)
        images = brisque.rounded(jnp.clip(jnp.moveaxis(found, 0, axis), 0.0, 255.0))
    return images


@functools.cache
def _bicubic(size: int) -> np.ndarray:
    """[SIDE, size]: the weights of `size` pixels in each of SIDE."""
    wider = max(size / SIDE, 1.0)
    places = (np.arange(SIDE) + 0.5) * size / SIDE - 0.5
    taps = np.ceil(places - 2.0 * wider).astype(int)[:, None] + np.arange(math.ceil(4.0 * wider) + 1)
    x = np.abs(places[:, None] - taps) / wider
    weights = np.where(x <= 1.0, 1.5 * x**3 - 2.5 * x**2 + 1.0, -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0)
    weights = np.where(x < 2.0, weights, 0.0)
    taps = taps % (2 * size)
    matrix = np.zeros((SIDE, size))
    rows = np.arange(SIDE)[:, None]
    np.add.at(matrix, (rows, np.minimum(taps, 2 * size - 1 - taps)), weights / weights.sum(axis=1, keepdims=True))
    return matrix


def block_features(
    images: Float[Array, "batch height width 3"], *, smooth: bool = False
) -> tuple[Float[Array, "batch blocks 468"], Float[Array, "batch blocks"]]:
    """The 468 features of every 84x84 block, row by row, and its sharpness: the mean local deviation of luminance.

    234 of a block at each of two sizes. The opponent channels are `OPPONENT` R, G, B. In the order of the features:

    - 18: the normalised luminance and its products with neighbours, as in `niqe.block_features`;
    - 6: scale and shape of the Weibull distributions of the gradient's magnitude, of each opponent channel;
    - 6: mean and variance of each `LOG_OPPONENT` channel of the logarithms of R, G, B minus their means in the image;
    - 12: shape and mean scale of the asymmetric generalised Gaussians of the two derivatives of each opponent channel;
    - 48: the same of the 12 log-Gabor responses of the luminance, real and imaginary part (`log_gabor`);
    - 96: the same of the two derivatives of each of those;
    - 48: scale and shape of the Weibull distributions of their gradient's magnitude.

    Rows and columns behind the last whole block are left out. Images are taken one after the other, since the maps of
    one are many; they are computed again for the gradient.

    Args:
      images: RGB in 0..255, at least 84x84 pixels.
      smooth: see `brisque.features`.
    """
    height, width = (side // BLOCK * BLOCK for side in images.shape[1:3])
    planes = jnp.moveaxis(images[:, :height, :width].astype(jnp.float32), -1, 1)
    return lax.map(jax.checkpoint(functools.partial(_features_of_one, smooth=smooth)), planes)


def _features_of_one(planes: Array, smooth: bool) -> tuple[Array, Array]:
    """Of R, G, B, [3, height, width]: [blocks, 468], [blocks]."""
    found = []
    for scale in (1, 2):
        side = BLOCK // scale
        opponent = _mixed(OPPONENT, planes)
        mean, deviation = _local_moments(opponent[2])
        if scale == 1:
            sharpness = jnp.mean(_blocks(deviation[None], side), axis=(1, 2))
        responses = log_gabor(opponent[2], wavelength=2.4 / scale**0.87)
        derivatives, magnitudes = _gradients(jnp.concatenate([opponent, responses]), 1.66 / scale**0.28)
        normalized = _with_neighbours(_blocks((opponent[2:] - mean[None]) / (deviation[None] + 1.0), side), side)
        filtered = _blocks(jnp.concatenate([derivatives[:6], responses, derivatives[6:]]), side)
        shape, mean, left, right = _generalized_gaussian(jnp.concatenate([normalized, filtered], axis=1), smooth)
        gaussian = _in_turns(shape, (left + right) / 2.0)
        products = _in_turns(*(values[:, 1:5] for values in (shape, mean, left, right)))
        of_magnitudes = _in_turns(*weibull(_blocks(magnitudes, side)))
        colors = _blocks(_mixed(LOG_OPPONENT, _centred_logarithms(planes)), side)
        of_colors = _in_turns(jnp.mean(colors, axis=-1), jnp.var(colors, axis=-1, ddof=1))
        found += [gaussian[:, :2], products, of_magnitudes[:, :6], of_colors, gaussian[:, 10:], of_magnitudes[:, 6:]]
        planes = _halved(planes) if scale == 1 else planes
    return jnp.concatenate(found, axis=-1), sharpness


def _mixed(weights: Sequence[Sequence[float]], planes: Array) -> Array:
    """Channels that are sums of others: [3, height, width] of those, the same at every pixel to the last bit."""
    return jnp.sum(jnp.asarray(weights, planes.dtype)[:, :, None, None] * planes[None], axis=1)


def _centred_logarithms(planes: Array) -> Array:
    logarithms = jnp.log(planes + _DARKEST)
    return logarithms - jnp.mean(logarithms, axis=(1, 2), keepdims=True)


def _in_turns(*values: Array) -> Array:
    """Each [blocks, maps], as [blocks, values of the first map, values of the second, ...]."""
    return jnp.stack(values, axis=-1).reshape(len(values[0]), -1)


def _blocks(maps: Array, side: int) -> Array:
    """[maps, height, width] as [blocks, maps, pixels]."""
    count, rows, columns = len(maps), maps.shape[1] // side, maps.shape[2] // side
    maps = maps.reshape(count, rows, side, columns, side).transpose(1, 3, 0, 2, 4)
    return maps.reshape(rows * columns, count, side * side)


def _with_neighbours(blocks: Array, side: int) -> Array:
    """Of one map, [blocks, 1, pixels]: itself, and its products with neighbours, taken circularly in the block."""
    shaped = blocks.reshape(-1, side, side)
    products = [shaped * jnp.roll(shaped, shift, axis=(1, 2)) for shift in ((0, 1), (1, 0), (1, 1), (1, -1))]
    return jnp.stack([shaped, *products], axis=1).reshape(len(blocks), 5, -1)


def _generalized_gaussian(samples: Array, smooth: bool) -> list[Array]:
    """Shape, mean, left and right scale of [blocks, maps, pixels]."""
    flat = samples.reshape(-1, samples.shape[-1])
    shape, mean, *variances = brisque.asymmetric_generalized_gaussian(flat, smooth=smooth)
    factor = jnp.exp((gammaln(1.0 / shape) - gammaln(3.0 / shape)) / 2.0)
    found = shape, mean, *(factor * brisque.root(variance) for variance in variances)
    return [values.reshape(samples.shape[:2]) for values in found]


def weibull(x: Float[Array, "*batch samples"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Scale and shape, 0.05 to 10, of the Weibull distribution that makes positive samples most likely.

    The shape k solves sum(x^k log x) / sum(x^k) - 1 / k = mean(log x), by Newton's method. No gradient passes through
    its steps but the last, which has that of the solution.
    """
    logarithms = jnp.log(x)
    highest = lax.stop_gradient(jnp.max(logarithms, axis=-1, keepdims=True))
    logarithms = logarithms - highest
    mean = jnp.mean(logarithms, axis=-1)

    def step(logarithms, mean, shape):
        powers = jnp.exp(shape[..., None] * logarithms)
        total, first, second = (jnp.sum(powers * logarithms**power, axis=-1) for power in (0, 1, 2))
        change = first / total - 1.0 / shape - mean
        change /= lax.stop_gradient(second / total - (first / total) ** 2 + 1.0 / shape**2)
        return jnp.clip(shape - change, jnp.maximum(shape / 3.0, _SHAPES[0]), jnp.minimum(3.0 * shape, _SHAPES[1]))

    fixed = lax.stop_gradient((logarithms, mean))
    deviation = jnp.std(fixed[0], axis=-1)
    shape = jnp.clip(math.pi / math.sqrt(6.0) / jnp.maximum(deviation, 1e-3), *_SHAPES)
    shape = lax.fori_loop(0, _NEWTON_STEPS, lambda _, shape: step(*fixed, shape), shape)
    shape = step(logarithms, mean, shape)
    moment = jnp.log(jnp.mean(jnp.exp(shape[..., None] * logarithms), axis=-1))
    return jnp.exp(highest[..., 0] + moment / shape), shape


def log_gabor(luminance: Float[Array, "height width"], *, wavelength: float) -> Float[Array, "24 height width"]:
    """Responses of log-Gabor filters of 3 wavelengths and 4 orientations, real and imaginary part in turns.

    exp(-log(r w)^2 / (2 log(0.55)^2)) exp(-a^2 / (2 (pi / 4.4)^2)) of the frequency r (in cycles per pixel) that is at
    the angle a from the orientation; 0 for the mean. Wavelengths w grow by 1.31, from `wavelength` in pixels.
    """
    rows, columns = (jnp.fft.fftfreq(size).astype(jnp.float32) for size in luminance.shape)
    rows, columns = (x[None] for x in jnp.meshgrid(rows, columns, indexing="ij"))
    wavelengths = wavelength * 1.31 ** jnp.arange(3.0).reshape(-1, 1, 1)
    squares = rows**2 + columns**2
    octaves = jnp.log(jnp.maximum(squares, 1e-12)) / 2.0 + jnp.log(wavelengths)
    radial = jnp.where(squares > 0.0, jnp.exp(-(octaves**2) / (2.0 * math.log(0.55) ** 2)), 0.0)
    angles = math.pi / 4.0 * jnp.arange(4.0).reshape(-1, 1, 1)
    along = jnp.cos(angles) * columns - jnp.sin(angles) * rows
    across = jnp.cos(angles) * rows + jnp.sin(angles) * columns
    angular = jnp.exp(-(jnp.arctan2(across, along) ** 2) / (2.0 * (math.pi / 4.4) ** 2))
    filters = (radial[:, None] * angular[None]).reshape(-1, *luminance.shape)
    responses = jnp.fft.ifft2(filters.astype(jnp.complex64) * jnp.fft.fft2(luminance)[None])
    return jnp.stack([responses.real, responses.imag], axis=1).reshape(-1, *luminance.shape)


def _gradients(maps: Array, deviation: float) -> tuple[Array, Array]:
    """Derivatives under a Gaussian, along rows and columns in turns, [2 maps, height, width]; and magnitudes, [maps].

    Zeros are outside. Differences come first, so that the gradient of a flat region is exactly 0.
    """
    window = [math.exp(-(at**2) / (2.0 * deviation**2)) for at in range(_REACH + 1)]

    def shifted(x, axis):
        x = jnp.pad(x, [(_REACH, _REACH) if at == axis else (0, 0) for at in range(3)])
        size = maps.shape[axis]
        return [lax.slice_in_dim(x, start, start + size, axis=axis) for start in range(2 * _REACH + 1)]

    found = []
    for along, across in ((2, 1), (1, 2)):
        values = shifted(maps, along)
        slope = sum(at * window[at] * (values[_REACH + at] - values[_REACH - at]) for at in range(1, _REACH + 1))
        values = shifted(slope, across)
        found.append(sum(window[abs(at - _REACH)] * value for at, value in enumerate(values)))
    magnitude = jnp.sqrt(found[0] ** 2 + found[1] ** 2 + _WEAKEST**2)
    return jnp.stack(found, axis=1).reshape(-1, *maps.shape[1:]), magnitude


def _local_moments(luminance: Array) -> tuple[Array, Array]:
    """Mean and standard deviation under a 5x5 Gaussian window of standard deviation 5/6; the border is repeated."""
    window = np.exp(-((np.arange(5) - 2) ** 2) / (2.0 * (5.0 / 6.0) ** 2))
    weights = jnp.asarray(np.outer(window, window).reshape(-1) / window.sum() ** 2, luminance.dtype)
    padded = jnp.pad(luminance, 2, mode="edge")
    around = lax.conv_general_dilated_patches(padded[None, None], (5, 5), (1, 1), "VALID", precision=_EXACT)[0]
    # By differences to the central pixel, so that a flat region has exactly its own grey level as mean.
    differences = around - luminance[None]
    mean, square = (jnp.tensordot(weights, values, 1, precision=_EXACT) for values in (differences, differences**2))
    return luminance + mean, brisque.root(jnp.maximum(square - mean**2, 0.0))


def _halved(planes: Array) -> Array:
    """Every second pixel under a 6x6 Gaussian window of standard deviation 0.9; the border is repeated."""
    window = np.exp(-((np.arange(6) - 2.5) ** 2) / (2.0 * 0.9**2))
    window /= window.sum()
    for axis in (1, 2):
        size = planes.shape[axis]
        padded = jnp.pad(planes, [(2, 3) if at == axis else (0, 0) for at in range(3)], mode="edge")
        taps = [lax.slice_in_dim(padded, start, start + size, stride=2, axis=axis) for start in range(6)]
        planes = sum(float(weight) * value for weight, value in zip(window, taps, strict=True))
    return planes


def distance(
    found: Float[Array, "batch blocks features"],
    mean: Float[Array, " features"],
    whitening: Float[Array, "features components"],
) -> Float[Array, " batch"]:
    """The mean over the blocks x of sqrt((x - m)^T ((S + C) / 2)^-1 (x - m)), C being the blocks' own covariance.

    Features are whitened first, so that S, the covariance of natural blocks, is the identity. A root of S + C comes
    from a QR decomposition without the sum itself, in which float32 would lose S where a block without structure makes
    C large.
    """
    found = jnp.einsum("bnf,fc->bnc", found - mean.reshape(1, 1, -1), whitening, precision=_EXACT)
    centred = (found - jnp.mean(found, axis=1, keepdims=True)) / math.sqrt(max(found.shape[1] - 1, 1))
    identity = jnp.broadcast_to(jnp.eye(found.shape[2], dtype=found.dtype), (len(found), *[found.shape[2]] * 2))
    triangle = jnp.linalg.qr(jnp.concatenate([centred, identity], axis=1))[1]
    solved = lax.linalg.triangular_solve(triangle, found, left_side=False, lower=False)
    return jnp.mean(brisque.root(2.0 * jnp.sum(solved**2, axis=-1)), axis=-1)


class ILNIQE(FittedNetwork):
    """score = score_mean - score_std * IL-NIQE; -IL-NIQE itself with score_mean=0, score_std=1.

    Attributes:
      smooth: see `brisque.features`.
    """

    smooth: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], of any size, the higher the better; float32."""
        mean = self.fitted("mean", (FEATURES,))
        whitening = self.fitted("whitening", (FEATURES, int(KEPT * FEATURES)))
        found, _ = block_features(resized(self.change.images(images)), smooth=self.smooth)
        return self.score(-distance(found, mean, whitening))


def fit(
    module: ILNIQE, train: Images, validation: Images, *, pristine: Callable[[], Sequence[np.ndarray]], seed: int
) -> tuple[Mapping, dict[str, float]]:
    """Principal components of the features of the photographs' sharp blocks; neither labels nor `train` are read.

    Raises:
      UserError: too few blocks.
    """
    rows = []
    resize, compute = jax.jit(resized), jax.jit(block_features)
    for photograph in pristine():
        images = resize(photograph[None].astype(np.float32) / 255.0)
        found, sharpness = (np.asarray(values)[0] for values in compute(images))
        rows.append(found[sharpness > SHARP * sharpness.max()])
    rows = np.concatenate(rows).astype(np.float64) if rows else np.zeros((0, FEATURES))
    if len(rows) < FEWEST:
        raise UserError(
            f"IL-NIQE needs {FEWEST} sharp blocks, and the undistorted photographs have {len(rows)}; give more of them "
            "by config.train.pristine"
        )
    mean = rows.mean(axis=0)
    _, sizes, components = np.linalg.svd(rows - mean, full_matrices=False)
    kept = min(int(KEPT * len(sizes)), int(np.sum(sizes > 1e-9 * sizes[0])))
    fitted = {"mean": mean, "whitening": components[:kept].T / (sizes[:kept] / math.sqrt(len(rows) - 1))}
    numbers = {"blocks": len(rows), "components": kept}
    return {"params": {name: values.astype(np.float32) for name, values in fitted.items()}}, numbers


def read(path: Path, module: ILNIQE) -> Mapping[str, Any]:
    """The published .mat file: `templateModel`, of four arrays.

    Mean [1, 430] and covariance [430, 430] of the components, mean [468, 1] of the features, components [468, 430].

    Raises:
      UserError: it is no such file.
    """
    try:
        cells = scipy.io.loadmat(path)["templateModel"].reshape(4)
        center, covariance, mean, components = (np.asarray(values, float) for values in cells)
        components = components.reshape(FEATURES, -1)
        root = np.linalg.cholesky(covariance.reshape([components.shape[1]] * 2))
        whitening = np.linalg.solve(root, components.T).T
        return {"mean": mean.reshape(FEATURES) + components @ center.reshape(-1), "whitening": whitening}
    except Exception as error:  # SciPy's are of many kinds
        raise UserError(
            f"{path}: no .mat file with IL-NIQE's templateModel ({type(error).__name__}: {error})"
        ) from None


NETWORK = Network(
    name="ilniqe",
    title="IL-NIQE",
    source="Zhang, Zhang and Bovik, IEEE TIP 2015",
    weights=(PublishedWeights("milestonesvn/ILNIQE: templateModel.mat", "none stated"),),
    module=ILNIQE,
    settings={"smooth": Field(False, "gradients also pass through the shapes of the generalised Gaussians")},
    stages=(),
    sort_mask=SortMaskPlacement(stages=()),
    fit=fit,
    read=read,
)
