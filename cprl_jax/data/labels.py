"""Quality labels by a full-reference rule, 0..100, higher is better. NO HUMAN WAS ASKED.

The rule compares a distorted image with its undistorted one in three respects, all of them 0 for identical images:

    structure   1 - mean of the SSIM map of the luma (Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment:
                from error visibility to structural similarity", IEEE TIP 2004, eq. 13; Gaussian window of 1.5 pixels).
                The mean is weighted by activity, sqrt(max(variance of image, of reference) + 100), as the places where
                something is to be seen count more (the idea of Wang and Li, "Information content weighting for
                perceptual image quality assessment", IEEE TIP 2011). Without the weights, blurring a picture that is
                half sky would cost half as much, and no network could know from the blurred picture alone.
    edges       the gradient magnitude similarity deviation (Xue, Zhang, Mou and Bovik, "Gradient magnitude similarity
                deviation", IEEE TIP 2014, eqs. 1-6): Prewitt gradients of 2 x 2 means, c = 170, standard
                deviation over the image. Taken at all four positions of the half-resolution grid, not at one:
                pixelation that happens to be aligned with the grid would go unseen.
    colour      1 - mean SSIM of Cb and Cr at half resolution.

    distance = structure + 1.5 * edges + 0.5 * colour
    quality  = 100 / (1 + (distance / 0.36)^2)

The weights are ours: they make level k of every distortion of the embedded dataset cost about the same. The last line
is a logistic function of log(distance), with fixed constants, that is flat near 100: changes that nobody sees
cost next to nothing (plus or minus 2/255 in every value: less than a point), as a label has to grant if models are to
be robust against them. SSIM's stabilising constant K2 is 0.06 instead of 0.03 for the same reason.
"""

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy import ndimage

from cprl_jax.data.distortions import luma

EDGE_WEIGHT = 1.5
COLOR_WEIGHT = 0.5
MIDDLE_DISTANCE = 0.36
STEEPNESS = 2.0
MIN_SIDE = 16

_LUMINANCE_CONSTANT = (0.01 * 255) ** 2
_CONTRAST_CONSTANT = (0.06 * 255) ** 2
_GRADIENT_CONSTANT = 170.0

Planes = Float[np.ndarray, "batch height width"]


def quality(
    images: UInt8[np.ndarray, "batch height width 3"], reference: UInt8[np.ndarray, "height width 3"]
) -> Float32[np.ndarray, " batch"]:
    """Labels of versions of one picture: 100 for the picture itself, towards 0 for what is left unrecognisable.

    Raises:
      ValueError: as `distance`.
    """
    labels = 100.0 / (1.0 + (distance(images, reference) / MIDDLE_DISTANCE) ** STEEPNESS)
    return labels.astype(np.float32)


def distance(
    images: UInt8[np.ndarray, "batch height width 3"], reference: UInt8[np.ndarray, "height width 3"]
) -> Float[np.ndarray, " batch"]:
    """structure + 1.5 edges + 0.5 colour (see the head of this file): 0 for the reference itself, at most about 2.5.

    Raises:
      ValueError: the arrays are not uint8, do not fit each other, or are smaller than 16 pixels in height or width.
    """
    if images.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype} and the reference {reference.dtype}: allowed is uint8 (0..255)")
    if images.ndim != 4 or images.shape[3] != 3 or reference.shape != images.shape[1:]:
        raise ValueError(
            f"images {images.shape} and reference {reference.shape}: allowed are [batch, height, width, 3] "
            "and the same [height, width, 3]"
        )
    if min(reference.shape[:2]) < MIN_SIDE:
        raise ValueError(f"a height and width of {reference.shape[:2]} are not allowed: {MIN_SIDE} pixels at least")
    image, original = images.astype(np.float64), reference[None].astype(np.float64)
    image_luma, original_luma = luma(image), luma(original)
    half_image, half_original = _half(image_luma), _half(original_luma)
    # B - Y and R - Y, scaled to the range of Cb and Cr.
    colour = np.mean(
        [
            1.0
            - ssim_map(
                scale * (_half(image[..., channel]) - half_image),
                scale * (_half(original[..., channel]) - half_original),
            )[0].mean(axis=(1, 2))
            for channel, scale in ((0, 0.713), (2, 0.564))
        ],
        axis=0,
    )
    return (
        _structure(image_luma, original_luma)
        + EDGE_WEIGHT * gradient_deviation(image_luma, original_luma)
        + COLOR_WEIGHT * colour
    )


def _structure(images: Planes, reference: Planes) -> Float[np.ndarray, " batch"]:
    similarity, activity = ssim_map(images, reference)
    weights = np.sqrt(activity + 100.0)
    return 1.0 - (similarity * weights).sum(axis=(1, 2)) / weights.sum(axis=(1, 2))


def ssim_map(images: Planes, reference: Planes) -> tuple[Planes, Planes]:
    """SSIM at every pixel, and the larger of the two local variances; values in 0..255, `reference` of batch 1."""
    image_mean, reference_mean = _window(images), _window(reference)
    image_variance = np.maximum(_window(images * images) - image_mean**2, 0.0)
    reference_variance = np.maximum(_window(reference * reference) - reference_mean**2, 0.0)
    covariance = _window(images * reference) - image_mean * reference_mean
    luminance = (2 * image_mean * reference_mean + _LUMINANCE_CONSTANT) / (
        image_mean**2 + reference_mean**2 + _LUMINANCE_CONSTANT
    )
    structure = (2 * covariance + _CONTRAST_CONSTANT) / (image_variance + reference_variance + _CONTRAST_CONSTANT)
    return luminance * structure, np.maximum(image_variance, reference_variance)


def gradient_deviation(images: Planes, reference: Planes) -> Float[np.ndarray, " batch"]:
    """GMSD over all positions of the half-resolution grid; values in 0..255, `reference` of batch 1."""
    gradient, reference_gradient = _gradient_magnitude(images), _gradient_magnitude(reference)
    similarity = (2 * gradient * reference_gradient + _GRADIENT_CONSTANT) / (
        gradient**2 + reference_gradient**2 + _GRADIENT_CONSTANT
    )
    return similarity.std(axis=(1, 2))


def _window(planes: Planes) -> Planes:
    return ndimage.gaussian_filter(planes, (0, 1.5, 1.5), mode="reflect", truncate=3.5)


def _half(planes: Planes) -> Planes:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    batch, height, width = planes.shape
    even = planes[:, : height // 2 * 2, : width // 2 * 2]
    return 0.25 * (even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2])


def _gradient_magnitude(planes: Planes) -> Planes:
    """Prewitt gradient of the means of 2 x 2 pixels, whose neighbours are two pixels away; loses a row and a column."""
    means = 0.25 * (planes[:, :-1, :-1] + planes[:, 1:, :-1] + planes[:, :-1, 1:] + planes[:, 1:, 1:])
    difference, mean = [-1.0, 0.0, 0.0, 0.0, 1.0], [1 / 3, 0.0, 1 / 3, 0.0, 1 / 3]
    # Not ndimage.prewitt: it would smooth along the batch axis as well.
    down = _filter(_filter(means, difference, 1), mean, 2)
    across = _filter(_filter(means, difference, 2), mean, 1)
    return np.sqrt(down * down + across * across)


def _filter(planes: Planes, weights: list[float], axis: int) -> Planes:
    return ndimage.correlate1d(planes, weights, axis=axis, mode="nearest")
