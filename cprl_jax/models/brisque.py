"""BRISQUE: natural scene statistics and a support vector regression, differentiable in the image.

Mittal et al., "No-Reference Image Quality Assessment in the Spatial Domain", IEEE TIP 2012.

    svr = brisque.load_svr("svm_model.mat", ranges="scale.mat", rho=30.168717)
    score_fn = brisque.score_fn(svr)     # images [b, h, w, 3] in [0, 1] -> scores [b], the higher the better
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float
from scipy import special

from cprl_jax.config.field import Field
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.fitted import FittedNetwork, Images, all_scenes, labelled_features
from cprl_jax.models.network import Network, PublishedWeights
from cprl_jax.models.svr import GAMMA, Svr, check_enough, fit_rbf, load_svr, predict

CONVENTIONS = ("zhang2022", "mittal2012")
FEATURES = 36
SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))  # (rows, columns): the neighbours whose products are modelled
_LUMA = (0.2989, 0.587, 0.114)
MATLAB_LUMA = (0.298936021293775, 0.587043074451121, 0.114020904255103)
_WINDOW = 7
_SIGMA = 7.0 / 6.0
_SHAPES = np.arange(200, 10_001) / 1000.0  # the shape parameters that are searched
_SMOOTH_SHAPES = np.geomspace(0.2, 10.0, 600)  # coarse enough that neighbours differ by more than float32 rounds


def features(
    images: Float[ArrayLike, "batch height width 3"], *, conventions: str = "zhang2022", smooth: bool = False
) -> Float[Array, "batch 36"]:
    """BRISQUE's 36 features: 18 of the image and 18 of the image at half its size.

    Of each: shape and variance of the generalised Gaussian of the normalised luminance (MSCN coefficients, Eq. 1), then
    for each of the shifts (0, 1), (1, 0), (1, 1), (-1, 1), taken circularly, shape, mean, left and right variance of
    the asymmetric generalised Gaussian of its product with its neighbour (Eq. 7 to 10).

    Weights of one implementation need its own conventions:

    - "zhang2022": the published code of Zhang et al., "Perceptual Attacks of No-Reference Image Quality Models with
      Human-in-the-Loop", NeurIPS 2022: grey levels are not rounded, and the half size (rounded down) is a bicubic
      interpolation (a = -0.75) whose corner pixels are those of the image, without low-pass filter.
    - "mittal2012": the original MATLAB code: grey levels are rounded (with the gradient of no rounding), and the half
      size (rounded up) is `imresize`, bicubic (a = -0.5) with low-pass filter.

    Common to both: luma 0.2989 R + 0.587 G + 0.114 B in 0..255, 7x7 Gaussian window (standard deviation 7/6), zeros
    outside the image, deviation + 1 as divisor, moment matching on the shapes 0.2, 0.201 to 10.

    As in the published attack no gradient passes through a shape, which is looked up; gradients come from the variances
    and from the mean's variances. They are finite everywhere, 0 where a variance is 0. A black image, whose shapes are
    not defined, gets shape 10 and variances 0.

    Args:
      images: RGB floats in [0, 1], at least 2x2 pixels. Half precision is computed as float32. Where an image is flat,
        coefficients are exactly 0 and count as neither left nor right; in the published code they are rounding errors,
        whose sign, and so the share of either side, changes with the grey level.
      conventions: "zhang2022" or "mittal2012".
      smooth: shapes by interpolation in the table instead, which gradients pass through: an attack that knows more than
        the published one. Values differ by less than 0.01 for shapes below 5.

    Raises:
      ValueError: unknown conventions, another shape or dtype, an image too small.
    """
    _check_conventions(conventions)
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be RGB, [batch, height, width, 3], got shape {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}: divide 8-bit images by 255")
    if min(images.shape[1:3]) < 2:
        raise ValueError(f"BRISQUE needs at least 2x2 pixels, got {images.shape[1]}x{images.shape[2]}")
    return _features(jnp.asarray(images), conventions=conventions, smooth=bool(smooth))


@functools.partial(jax.jit, static_argnames=("conventions", "smooth"))
def _features(images: Array, *, conventions: str, smooth: bool) -> Array:
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    red, green, blue = _LUMA if conventions == "zhang2022" else MATLAB_LUMA
    gray = 255.0 * (red * images[..., 0] + green * images[..., 1] + blue * images[..., 2])
    if conventions == "mittal2012":
        gray = rounded(gray)
    return jnp.concatenate([_statistics(gray, smooth), _statistics(half(gray, conventions), smooth)], axis=-1)


def rounded(gray: Array) -> Array:
    """To whole grey levels, with the gradient of no rounding."""
    return gray + lax.stop_gradient(jnp.floor(gray + 0.5) - gray)


def _statistics(gray: Array, smooth: bool) -> Array:
    """The 18 features of one scale."""
    coefficients = mscn(gray)
    found = [*generalized_gaussian(coefficients.reshape(len(gray), -1), smooth=smooth)]
    for shift in SHIFTS:
        product = coefficients * jnp.roll(coefficients, shift, axis=(1, 2))
        found += asymmetric_generalized_gaussian(product.reshape(len(gray), -1), smooth=smooth)
    return jnp.stack(found, axis=-1)


def mscn(gray: Float[Array, "batch height width"]) -> Float[Array, "batch height width"]:
    """(gray - mean) / (deviation + 1), both under a 7x7 Gaussian window, with zeros outside the image (Eq. 1 to 3)."""
    mean, deviation = local_moments(gray, "constant")
    return (gray - mean) / (deviation + 1.0)


def local_moments(
    gray: Float[Array, "batch height width"], border: str
) -> tuple[Float[Array, "batch height width"], Float[Array, "batch height width"]]:
    """Mean and standard deviation under a 7x7 Gaussian window of standard deviation 7/6.

    Args:
      gray: any range.
      border: what is outside the image: 'constant' (zeros) or 'edge' (the nearest pixel).
    """
    window = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2.0 * _SIGMA**2))
    window /= window.sum()
    margin = _WINDOW // 2
    mean = jnp.pad(gray, ((0, 0), (margin, margin), (margin, margin)), mode=border)
    variance = jnp.zeros_like(mean)
    # Rows, then columns, by the law of total variance: E[x^2] - E[x]^2 would cancel where the image is flat.
    for axis in (1, 2):
        size = mean.shape[axis] - _WINDOW + 1
        means, variances = (
            [lax.slice_in_dim(moment, at, at + size, axis=axis) for at in range(_WINDOW)] for moment in (mean, variance)
        )
        # By differences to the central pixel, so that a flat region has exactly its own grey level as mean.
        mean = means[margin] + sum(
            weight * (value - means[margin]) for weight, value in zip(window, means, strict=True)
        )
        variance = sum(
            weight * (within + (value - mean) ** 2)
            for weight, value, within in zip(window, means, variances, strict=True)
        )
    return mean, root(variance)


def generalized_gaussian(
    x: Float[Array, "batch samples"], *, smooth: bool = False
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Shape and variance of the zero-mean generalised Gaussian with the moments E[x^2] and E|x| of the samples.

    Shape 2 is a Gaussian, 1 a Laplacian; 0.2 to 10 in steps of 0.001, see `features` for `smooth`.
    """
    power = jnp.mean(x * x, axis=-1)
    ratio = _ratio(jnp.mean(jnp.abs(x), axis=-1), root(power)) ** 2
    if smooth:
        return _interpolate(_moment_ratio(_SMOOTH_SHAPES), _SMOOTH_SHAPES, ratio), power
    # As published, by the distance of the inverse ratios.
    index = _nearest(1.0 / _moment_ratio(_SHAPES), 1.0 / jnp.maximum(ratio, 1e-12))
    return jnp.asarray(_SHAPES, x.dtype)[index], power


def asymmetric_generalized_gaussian(
    x: Float[Array, "batch samples"], *, smooth: bool = False
) -> tuple[Float[Array, " batch"], Float[Array, " batch"], Float[Array, " batch"], Float[Array, " batch"]]:
    """Shape, mean, left and right variance of the asymmetric generalised Gaussian that fits the samples (Eq. 7 to 10).

    The variances are the mean squares of the negative and of the positive samples, 0 if there are none.
    """
    left, right = _mean_square(x, x < 0), _mean_square(x, x > 0)
    left_root, right_root = root(left), root(right)
    ratio = _ratio(jnp.mean(jnp.abs(x), axis=-1), root(jnp.mean(x * x, axis=-1))) ** 2
    # The published factor (g^3 + 1)(g + 1) / (g^2 + 1)^2 with g = left_root / right_root, of which either may be 0.
    share = _ratio(left_root, left_root + right_root)
    ratio = ratio * (share**3 + (1.0 - share) ** 3) / (share**2 + (1.0 - share) ** 2) ** 2
    if smooth:
        shape = _interpolate(_moment_ratio(_SMOOTH_SHAPES), _SMOOTH_SHAPES, ratio)
        slope = _interpolate(_SMOOTH_SHAPES, _mean_factor(_SMOOTH_SHAPES), shape)
    else:
        index = _nearest(_moment_ratio(_SHAPES), ratio)
        shape, slope = (jnp.asarray(table, x.dtype)[index] for table in (_SHAPES, _mean_factor(_SHAPES)))
    return shape, (right_root - left_root) * slope, left, right


def _moment_ratio(shapes: np.ndarray) -> np.ndarray:
    """(E|x|)^2 / E[x^2] of a generalised Gaussian; it increases with the shape."""
    return _mean_factor(shapes) ** 2


def _mean_factor(shapes: np.ndarray) -> np.ndarray:
    """E|x| / sqrt(E[x^2]) of a generalised Gaussian."""
    logarithm = special.gammaln(2.0 / shapes) - (special.gammaln(1.0 / shapes) + special.gammaln(3.0 / shapes)) / 2.0
    return np.exp(logarithm)


def _nearest(table: np.ndarray, values: Array) -> Array:
    """The index of the entry nearest to each value, the first of equals."""
    table = jnp.asarray(table, values.dtype).reshape(1, -1)
    return jnp.argmin(jnp.abs(table - lax.stop_gradient(values).reshape(-1, 1)), axis=-1)


def _interpolate(inputs: np.ndarray, outputs: np.ndarray, values: Array) -> Array:
    return jnp.interp(values, jnp.asarray(inputs, values.dtype), jnp.asarray(outputs, values.dtype))


def _mean_square(x: Array, chosen: Array) -> Array:
    count = jnp.sum(chosen, axis=-1)
    return jnp.sum(jnp.where(chosen, x * x, 0.0), axis=-1) / jnp.maximum(count, 1).astype(x.dtype)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, 1 where the denominator is 0; finite gradients."""
    positive = denominator > 0
    return jnp.where(positive, numerator, 1.0) / jnp.where(positive, denominator, 1.0)


def root(x: Array) -> Array:
    """The square root; its gradient at 0 is 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def half(gray: Float[Array, "batch height width"], conventions: str) -> Float[Array, "batch half_height half_width"]:
    """Grey images at half their size, see `features`."""
    matrix = _corner_aligned_half if conventions == "zhang2022" else _filtered_half
    rows, columns = (jnp.asarray(matrix(size), gray.dtype) for size in gray.shape[1:3])
    gray = jnp.einsum("oh,bhw->bow", rows, gray, precision=lax.Precision.HIGHEST)
    return jnp.einsum("ow,bhw->bho", columns, gray, precision=lax.Precision.HIGHEST)


@functools.cache
def _corner_aligned_half(size: int) -> np.ndarray:
    """Bicubic interpolation at size // 2 places from the first pixel to the last: [outputs, inputs]."""
    count = size // 2
    places = np.linspace(0.0, size - 1.0, count) if count > 1 else np.zeros(1)
    taps = np.floor(places).astype(int)[:, None] + np.arange(-1, 3)
    weights = _cubic(places[:, None] - taps, -0.75)
    return _gather_matrix(np.clip(taps, 0, size - 1), weights, size)


@functools.cache
def _filtered_half(size: int) -> np.ndarray:
    """Bicubic interpolation with a kernel of twice the width, mirrored at the border: [outputs, inputs]."""
    places = 2.0 * np.arange((size + 1) // 2) + 0.5
    taps = np.floor(places).astype(int)[:, None] + np.arange(-4, 6)
    weights = _cubic((places[:, None] - taps) / 2.0, -0.5)
    taps = taps % (2 * size)
    return _gather_matrix(np.where(taps < size, taps, 2 * size - 1 - taps), weights, size)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys, 1981)."""
    x = np.abs(x)
    inner = (a + 2.0) * x**3 - (a + 3.0) * x**2 + 1.0
    outer = a * (x**3 - 5.0 * x**2 + 8.0 * x - 4.0)
    return np.where(x <= 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _gather_matrix(taps: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    matrix = np.zeros((len(taps), size))
    np.add.at(matrix, (np.arange(len(taps))[:, None], taps), weights / weights.sum(axis=1, keepdims=True))
    return matrix


def score_fn(
    svr: Svr, *, conventions: str = "zhang2022", smooth: bool = False, negate: bool = False
) -> Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]:
    """BRISQUE as a score function: RGB images in [0, 1] to scores, the higher the better.

    It is a `jax.tree_util.Partial` over the regression: another one of the same size needs no new compilation.

    Args:
      svr: from `load_svr`.
      conventions, smooth: see `features`.
      negate: for a regression that predicts degradation, such as the original one, which was trained on difference
        scores (DMOS; the higher the worse). The one of Zhang et al. was trained on flipped DMOS: clean photographs get
        about 75 to 115, strongly blurred ones 7 to 17, and nothing is to be negated.

    Raises:
      ValueError: unknown conventions.
    """
    _check_conventions(conventions)
    return Partial(_scorer(conventions, bool(smooth), bool(negate)), svr)


@functools.cache
def _scorer(conventions: str, smooth: bool, negate: bool) -> Callable[[Svr, Array], Array]:
    def score(svr: Svr, images: Array) -> Array:
        prediction = predict(svr, features(images, conventions=conventions, smooth=smooth))
        return -prediction if negate else prediction

    return score


def _check_conventions(conventions: str) -> None:
    if conventions not in CONVENTIONS:
        raise ValueError(f"conventions must be one of {', '.join(CONVENTIONS)}, got {conventions!r}")


class BRISQUE(FittedNetwork):
    """The features and a support vector regression, as a network that `cprl_jax.main` fits to a data set.

    Attributes:
      conventions, smooth: see `features`.
    """

    conventions: str = "zhang2022"
    smooth: bool = False

    smallest_image = 2

    def features(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch 36"]:
        """See `features`."""
        return features(images, conventions=self.conventions, smooth=self.smooth)

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 2x2 pixels, the higher the better; float32."""
        regression = Svr(
            self.fitted("vectors", (1, FEATURES)),
            self.fitted("coefficients", (1,)),
            self.fitted("rho", ()),
            self.fitted("gamma", (), nn.initializers.constant(GAMMA)),
            self.fitted("lowest", (FEATURES,)),
            self.fitted("highest", (FEATURES,), nn.initializers.ones),
        )
        return self.score(predict(regression, self.features(self.change.images(images))))


def fit(module: BRISQUE, train: Images, validation: Images, *, seed: int, **_: Any) -> tuple[Mapping, dict[str, float]]:
    """The regression of `svr.fit_rbf` to the MOS; nothing in it is random. Raises UserError as that does."""
    parts = train, validation
    check_enough(all_scenes(parts))  # before minutes of work
    regression, numbers = fit_rbf(labelled_features(module, module.features, parts, what="features of BRISQUE"))
    return {"params": regression._asdict()}, numbers


def read(path: Path, module: BRISQUE) -> Mapping[str, Any]:
    """A regression of libsvm with its ranges in one .mat or .npz file (`load_svr`), for scores as it predicts them."""
    regression = load_svr(path)
    shift = module.score_mean / module.score_std
    return regression._replace(
        coefficients=regression.coefficients / module.score_std, rho=regression.rho / module.score_std + shift
    )._asdict()


NETWORK = Network(
    name="brisque",
    title="BRISQUE",
    source="Mittal et al., IEEE TIP 2012",
    weights=(PublishedWeights("zwx8981/PerceptualAttack_BIQA: svm_model.mat", "none stated"),),
    module=BRISQUE,
    settings={
        "conventions": Field("zhang2022", "of grey levels and of the half size", choices=CONVENTIONS),
        "smooth": Field(False, "gradients also pass through the shapes, which the published attack looks up"),
    },
    stages=(),
    sort_mask=SortMaskPlacement(stages=()),
    fit=fit,
    read=read,
)
