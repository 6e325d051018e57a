"""The structural similarity index, with its conventions by name."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.fidelity._fidelity import Fidelity
from cprl_jax.fidelity._images import average_squares, check_gray, check_pair, not_finite_is_nan, to_gray

WINDOW = 11  # pixels
_SIGMA = 1.5
_LUMINANCE_CONSTANT = 0.01**2  # C1 and C2 of the paper for a range of 1
_CONTRAST_CONSTANT = 0.03**2
_PADDING = {"valid": None, "reflect": "reflect", "replicate": "edge"}  # ours to NumPy's names

_BLOCK = 32  # outputs of one product of the filter


def _band() -> np.ndarray:
    """[BLOCK, BLOCK + WINDOW - 1]: row i is the Gaussian window at its place i."""
    window = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    band = np.zeros((_BLOCK, _BLOCK + WINDOW - 1))
    for place in range(_BLOCK):
        band[place, place : place + WINDOW] = window / window.sum()
    return band


_BAND = _band()

# The smallest side that each border rule can work with.
SMALLEST_SIDE = MappingProxyType({"valid": WINDOW, "reflect": WINDOW // 2 + 1, "replicate": 1})

SSIM_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "scikit-image": MappingProxyType({}),
        "piq": MappingProxyType({"downsample": True}),
        "torchmetrics": MappingProxyType({"border": "reflect"}),
        "perceptual attack": MappingProxyType({"border": "replicate"}),
    }
)
"""Options of `ssim` that give the values of published implementations: `ssim(x, y, **SSIM_PRESETS["piq"])`."""


def ssim(
    images: Float[ArrayLike, "batch height width channels"],
    references: Float[ArrayLike, "batch height width channels"],
    *,
    border: str = "valid",
    downsample: bool = False,
    gray: str | None = None,
) -> Float[Array, " batch"]:
    """Structural similarity of each image to its reference: 1 for equal images, in [-1, 1], symmetric.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004, Eq. 13 with
    the paper's Gaussian window (11x11, standard deviation 1.5, biased variances) and constants (0.01 and 0.03, squared)
    for values in [0, 1], averaged over the map (Eq. 17) and over the channels.

    Published implementations differ in three choices, which are the options here (and `SSIM_PRESETS` by name):

    - the default: `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
      data_range=1, channel_axis=-1)`;
    - `downsample=True`: piq with its defaults;
    - `border="reflect"`: torchmetrics with its defaults and data_range=1;
    - `border="replicate"`: the variant of piq in the published code of Zhang et al., "Perceptual Attacks of
      No-Reference Image Quality Models with Human-in-the-Loop", NeurIPS 2022 (whose text says grey).

    Args:
      images: floats in [0, 1]. Half precision is computed as float32.
      references: the same shape.
      border: where the window leaves the image: "valid" leaves those positions out, "reflect" mirrors about the edge
        pixel (which is not repeated), "replicate" repeats the edge pixel.
      downsample: first average over squares of max(1, round(min(height, width) / 256)) pixels (halves round to even),
        dropping the rows and columns left over at the bottom and right.
      gray: None compares channel by channel. "float" compares the luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601);
        "uint8" rounds it to 256 levels, halves up, as for images converted before they were compared. Rounding has
        gradient zero everywhere: "uint8" is for reporting, not for optimising.

    Raises:
      ValueError: different shapes, another rank, dtype or range, an unknown option, or an image too small for the
        window: each side needs 11 pixels (with "reflect" 6), after downsampling.
    """
    check_border("border", border)
    images, references = check_pair(images, references)
    check_gray(gray, images.shape[-1])
    side = max(1, round(min(images.shape[1:3]) / 256)) if downsample else 1
    height, width = images.shape[1] // side, images.shape[2] // side
    if min(height, width) < SMALLEST_SIDE[border]:
        raise ValueError(
            f"SSIM's {WINDOW}x{WINDOW} window with border={border!r} needs at least {SMALLEST_SIDE[border]} pixels on "
            f"each side, got {height}x{width}{' after downsampling' if downsample else ''}; border='replicate' takes "
            "any size."
        )
    return _mean_ssim(images, references, border=border, side=side, gray=gray)


def check_border(name: str, border: str) -> None:
    """Raises ValueError for an unknown border rule."""
    if border not in _PADDING:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, _PADDING))}, got {border!r}.")


@partial(jax.jit, static_argnames=("border", "side", "gray"))
def _mean_ssim(images, references, *, border, side, gray):
    pair = [to_gray(batch, gray) for batch in (images, references)]
    if side > 1:
        pair = [average_squares(batch, side) for batch in pair]
    luminance, contrast = ssim_maps(*pair, border)
    return not_finite_is_nan(jnp.mean(luminance * contrast, axis=(1, 2, 3)), images, references)


def ssim_maps(first: jax.Array, second: jax.Array, border: str) -> tuple[jax.Array, jax.Array]:
    """The luminance term, and the contrast and structure terms in one, whose product is SSIM, at every position."""
    # Variances do not depend on a constant, but as E[x^2] - E[x]^2 they lose digits to it, so take the mean away first.
    shift1, shift2 = (lax.stop_gradient(jnp.mean(batch, axis=(1, 2), keepdims=True)) for batch in (first, second))
    first, second = first - shift1, second - shift2
    maps = jnp.concatenate([first, second, first * first + second * second, first * second], axis=-1)
    mean1, mean2, squares, product = jnp.split(_blur(maps, border), 4, axis=-1)
    variances = squares - (mean1 * mean1 + mean2 * mean2)
    covariance = product - mean1 * mean2
    mean1, mean2 = mean1 + shift1, mean2 + shift2
    luminance = (2 * mean1 * mean2 + _LUMINANCE_CONSTANT) / (mean1 * mean1 + mean2 * mean2 + _LUMINANCE_CONSTANT)
    return luminance, (2 * covariance + _CONTRAST_CONSTANT) / (variances + _CONTRAST_CONSTANT)


def _blur(maps, border):
    """The Gaussian window along rows, then along columns, of [batch, height, width, channels].

    Each axis is cut into blocks that overlap by the window's reach, and every block is multiplied by one small band
    matrix. On a CPU this is several times faster, gradient included, than shifted sums or one-dimensional convolutions.
    """
    maps = jnp.moveaxis(maps, -1, 1)  # so that both products are over contiguous values
    if _PADDING[border]:
        reach = (WINDOW // 2, WINDOW // 2)
        maps = jnp.pad(maps, ((0, 0), (0, 0), reach, reach), mode=_PADDING[border])
    band = jnp.asarray(_BAND, maps.dtype)
    height, width = (side - WINDOW + 1 for side in maps.shape[2:])
    blocks = _overlapping_blocks(maps, axis=2)
    # Given for each block, because XLA otherwise reorders the axes of the blocks in memory.
    maps = jnp.matmul(jnp.broadcast_to(band, (*blocks.shape[:3], *band.shape)), blocks, precision=lax.Precision.HIGHEST)
    maps = maps.reshape(*maps.shape[:2], maps.shape[2] * _BLOCK, maps.shape[-1])[:, :, :height]
    maps = jnp.matmul(_overlapping_blocks(maps, axis=3), band.T, precision=lax.Precision.HIGHEST)
    maps = maps.reshape(*maps.shape[:3], maps.shape[3] * _BLOCK)[..., :width]
    return jnp.moveaxis(maps, 1, -1)


def _overlapping_blocks(values, *, axis):
    """An axis cut into [blocks, BLOCK + WINDOW - 1], each with the first values of the next; zeros follow the last."""
    size = values.shape[axis]
    blocks = -(-(size - WINDOW + 1) // _BLOCK)
    padding = [(0, (blocks + 1) * _BLOCK - size if place == axis else 0) for place in range(values.ndim)]
    shape = (*values.shape[:axis], blocks + 1, _BLOCK, *values.shape[axis + 1 :])
    values = jnp.pad(values, padding).reshape(shape)
    this = lax.slice_in_dim(values, 0, blocks, axis=axis)
    following = lax.slice_in_dim(values, 1, blocks + 1, axis=axis)
    return jnp.concatenate([this, lax.slice_in_dim(following, 0, WINDOW - 1, axis=axis + 1)], axis=axis + 1)


FIDELITIES = {"ssim": Fidelity(ssim, "similarity")}
