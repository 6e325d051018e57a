"""Rules that label a distorted image by comparing it with its reference. NO HUMAN IS ASKED: the labels are weak.

Each is a published measure, or ours, mapped to 0..100 by a function that never rises as the measure gets worse. They
say nothing about what people see beyond what that measure does.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from cprl_jax.data import labels
from cprl_jax.data.distortions import luma

Pixels = UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A label rule.

    Attributes:
      score: `(image, reference) -> 0..100`, both uint8 RGB of the same size with sides of at least `labels.MIN_SIDE`;
        higher is better, and 100 for equal images.
      text: what it computes, in a line.
    """

    score: Callable[[Pixels, Pixels], float]
    text: str


def _ours(image: Pixels, reference: Pixels) -> float:
    return float(labels.quality(image[None], reference)[0])


def _ssim(image: Pixels, reference: Pixels) -> float:
    from skimage.metrics import structural_similarity

    similarity = structural_similarity(
        _luma(image), _luma(reference), data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return 100.0 * max(float(similarity), 0.0)


def _gmsd(image: Pixels, reference: Pixels) -> float:
    deviation = labels.gradient_deviation(_luma(image)[None], _luma(reference)[None])[0]
    return 100.0 / (1.0 + (float(deviation) / 0.15) ** 2)


def _psnr(image: Pixels, reference: Pixels) -> float:
    error = np.square(image.astype(np.float64) - reference.astype(np.float64)).mean()
    return 100.0 / (1.0 + float(error) / (255.0**2 / 1000.0))  # an error of 255^2 / 1000 is 30 dB


def _luma(pixels: Pixels) -> np.ndarray:
    return luma(pixels.astype(np.float64))


def _mean(image: Pixels, reference: Pixels) -> float:
    return float(np.mean([rule.score(image, reference) for name, rule in RULES.items() if name != "mean"]))


RULES = {
    "ours": Rule(_ours, "structure, edges and colour, by the formula in cprl_jax/data/labels.py"),
    "ssim": Rule(_ssim, "100 max(SSIM, 0), SSIM of the luma with a Gaussian window of 1.5 pixels"),
    "gmsd": Rule(_gmsd, "100 / (1 + (GMSD / 0.15)^2), GMSD of the luma as in cprl_jax/data/labels.py"),
    "psnr": Rule(_psnr, "100 / (1 + MSE / 65.025), MSE of R, G and B: 50 at a PSNR of 30 dB, 91 at 40 dB"),
    "mean": Rule(_mean, "the mean of the four others"),
}
