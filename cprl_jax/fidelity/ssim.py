"""The structural similarity index, with its conventions by name."""

from collections.abc import Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.fidelity._images import average_squares, check_gray, check_pair, to_gray

WINDOW = 11  # pixels
_SIGMA = 1.5
_LUMINANCE_CONSTANT = 0.01**2  # C1 and C2 of the paper for a range of 1
_CONTRAST_CONSTANT = 0.03**2
_PADDING = {"valid": None, "reflect": "reflect", "replicate": "edge"}  # ours to NumPy's names

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
      ValueError: different shapes, another rank or dtype, an unknown option, or an image too small for the window: each
        side needs 11 pixels (with "reflect" 6), after downsampling.
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
    return jnp.mean(luminance * contrast, axis=(1, 2, 3))


def ssim_maps(first: jax.Array, second: jax.Array, border: str) -> tuple[jax.Array, jax.Array]:
    """The luminance term, and the contrast and structure terms in one, whose product is SSIM, at every position."""
    # Variances do not depend on a constant, but as E[x^2] - E[x]^2 they lose digits to it, so take the mean away first.
    shift = lax.stop_gradient(jnp.mean((first + second) / 2, axis=(1, 2), keepdims=True))
    first, second = first - shift, second - shift
    maps = jnp.concatenate([first, second, first * first + second * second, first * second], axis=-1)
    mean1, mean2, squares, product = jnp.split(_blur(maps, border), 4, axis=-1)
    variances = squares - (mean1 * mean1 + mean2 * mean2)
    covariance = product - mean1 * mean2
    mean1, mean2 = mean1 + shift, mean2 + shift
    luminance = (2 * mean1 * mean2 + _LUMINANCE_CONSTANT) / (mean1 * mean1 + mean2 * mean2 + _LUMINANCE_CONSTANT)
    return luminance, (2 * covariance + _CONTRAST_CONSTANT) / (variances + _CONTRAST_CONSTANT)


def _blur(maps, border):
    """Gaussian window as one matrix product per axis: on a CPU faster than convolution or shifted sums."""
    rows, columns = (jnp.asarray(_blur_matrix(size, border), maps.dtype) for size in maps.shape[1:3])
    maps = jnp.einsum("oh,bhwc->bowc", rows, maps, precision=lax.Precision.HIGHEST)
    return jnp.einsum("ow,bhwc->bhoc", columns, maps, precision=lax.Precision.HIGHEST)


@lru_cache
def _blur_matrix(size: int, border: str) -> np.ndarray:
    """Each row holds the weights of one output position over the `size` inputs; the border rule is part of it."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    window /= window.sum()
    inputs = np.eye(size)
    if _PADDING[border]:
        inputs = np.pad(inputs, ((WINDOW // 2, WINDOW // 2), (0, 0)), mode=_PADDING[border])
    return sum(window[k] * inputs[k : len(inputs) - WINDOW + 1 + k] for k in range(WINDOW))
