"""Multi-scale structural similarity."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from cprl_jax.fidelity._fidelity import Fidelity
from cprl_jax.fidelity._images import average_squares, check_gray, check_pair, not_finite_is_nan, to_gray
from cprl_jax.fidelity.ssim import SMALLEST_SIDE, check_border, ssim_maps

# The paper's calibration (its section 3.2), finest scale first.
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_ODD_SIDES = ("repeat", "drop")
_CHANNELS = ("separate", "pooled")

MS_SSIM_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "piq": MappingProxyType({}),
        "torchmetrics": MappingProxyType(
            {"border": "reflect", "contrast_border": "valid", "odd_sides": "drop", "channels": "pooled"}
        ),
    }
)
"""Options of `ms_ssim` that give the values of published implementations, as in `SSIM_PRESETS`."""


def ms_ssim(
    images: Float[ArrayLike, "batch height width channels"],
    references: Float[ArrayLike, "batch height width channels"],
    *,
    border: str = "valid",
    contrast_border: str | None = None,
    odd_sides: str = "repeat",
    channels: str = "separate",
    gray: str | None = None,
    exponents: Sequence[float] = EXPONENTS,
) -> Float[Array, " batch"]:
    """Multi-scale structural similarity of each image to its reference: 1 for equal images, in [0, 1], symmetric.

    Wang et al., "Multi-scale Structural Similarity for Image Quality Assessment", Asilomar 2003, Eq. 7: contrast and
    structure at five scales, each half the size of the one before, and luminance at the coarsest, each averaged over
    its map and raised to its exponent. Window and constants are those of `ssim`, which this is for `exponents=(1,)`.
    A negative average counts as 0, where the power would not be a number; so does its gradient.

    The default gives the values of `piq.multi_scale_ssim`, and `**MS_SSIM_PRESETS["torchmetrics"]` those of
    torchmetrics' MultiScaleStructuralSimilarityIndexMeasure(data_range=1).

    Args:
      images: floats in [0, 1]. Half precision is computed as float32.
      references: the same shape.
      border: where the window leaves the image, as in `ssim`.
      contrast_border: the same for the scales above the coarsest, from which only contrast and structure are taken;
        None is `border`.
      odd_sides: halving averages squares of 2x2 pixels. If a side is odd, "repeat" first repeats the top row and the
        left column (both, of which a side that was even loses its last one again), and "drop" drops the last.
      channels: "separate" averages the index over the channels, "pooled" averages every term over them before the
        exponent.
      gray: as in `ssim`.
      exponents: one for each scale, finest first; their number is the number of scales.

    Raises:
      ValueError: different shapes, another rank, dtype or range, an unknown option, or an image too small for that many
        scales: by default each side needs 161 pixels, with torchmetrics' options 96 (itself, it asks for 176).
    """
    contrast_border = border if contrast_border is None else contrast_border
    check_border("border", border)
    check_border("contrast_border", contrast_border)
    if odd_sides not in _ODD_SIDES:
        raise ValueError(f"odd_sides must be 'repeat' or 'drop', got {odd_sides!r}.")
    if channels not in _CHANNELS:
        raise ValueError(f"channels must be 'separate' or 'pooled', got {channels!r}.")
    exponents = tuple(float(exponent) for exponent in np.ravel(exponents))
    if not exponents or not all(0 <= exponent < np.inf for exponent in exponents):
        raise ValueError(f"exponents must be one or more finite numbers >= 0, finest scale first, got {exponents}.")
    images, references = check_pair(images, references)
    check_gray(gray, images.shape[-1])
    needed = _smallest_image(len(exponents), border, contrast_border, odd_sides)
    if min(images.shape[1:3]) < needed:
        raise ValueError(
            f"MS-SSIM at {len(exponents)} scales with border={border!r}, contrast_border={contrast_border!r} and "
            f"odd_sides={odd_sides!r} needs at least {needed} pixels on each side, got {images.shape[1]}x"
            f"{images.shape[2]}; fewer exponents or border='replicate' take smaller images."
        )
    return _ms_ssim(
        images,
        references,
        border=border,
        contrast_border=contrast_border,
        odd_sides=odd_sides,
        channels=channels,
        gray=gray,
        exponents=exponents,
    )


def _smallest_image(scales: int, border: str, contrast_border: str, odd_sides: str) -> int:
    """The smallest side of which every scale still holds the window."""
    needed = SMALLEST_SIDE[border]
    for _ in range(scales - 1):
        needed = 2 * needed if odd_sides == "drop" else max(1, 2 * needed - 1)
        needed = max(needed, SMALLEST_SIDE[contrast_border])
    return needed


@partial(jax.jit, static_argnames=("border", "contrast_border", "odd_sides", "channels", "gray", "exponents"))
def _ms_ssim(images, references, *, border, contrast_border, odd_sides, channels, gray, exponents):
    pair = [to_gray(batch, gray) for batch in (images, references)]
    axes = (1, 2, 3) if channels == "pooled" else (1, 2)
    result = 1.0
    for scale, exponent in enumerate(exponents):
        if scale:
            pair = [_halve(batch, odd_sides) for batch in pair]
        coarsest = scale == len(exponents) - 1
        luminance, contrast = ssim_maps(*pair, border if coarsest else contrast_border)
        term = jnp.mean(luminance * contrast if coarsest else contrast, axis=axes)
        result = result * _power(term, exponent)
    result = result if channels == "pooled" else jnp.mean(result, axis=1)
    return not_finite_is_nan(result, images, references)


def _power(base, exponent):
    """base ** exponent, and 0 for a base <= 0, where powers below 1 have no finite derivative."""
    positive = base > 0
    return jnp.where(positive, jnp.where(positive, base, 1) ** exponent, 0)


def _halve(images, odd_sides):
    if odd_sides == "repeat" and (images.shape[1] % 2 or images.shape[2] % 2):
        images = jnp.pad(images, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="edge")
    return average_squares(images, 2)


FIDELITIES = {"ms_ssim": Fidelity(ms_ssim, "similarity")}
