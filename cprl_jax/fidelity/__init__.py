"""Full-reference measures: how close an image is to its reference, for each image of a batch.

Images are RGB in [0, 1], [batch, height, width, 3]. Each measure is differentiable, with finite gradients also at the
reference itself, and pure, so that it works under `jit`, `vmap` and `grad`. `distance` gives any of them as a distance,
by the name under which a file of this package declares it; docs/extending.md shows how to add one.

Called with values, a measure refuses those outside [0, 1] by more than 0.001 (float error of a resize, say), such as
0..255 or [-1, 1], and integers, with a ValueError that names the remedy. While they are traced (inside `jit`, `vmap`
or `grad`), values are unknown and nothing is checked: images of another range then give numbers that mean nothing.
Where an image or its reference holds NaN or an infinite value, its measure is NaN, and that of no other image of the
batch.

    fidelity.ssim(images, references)                                # a similarity, [batch]
    fidelity.distance("ssim")(images, references)                    # 1 - SSIM
    parameters = fidelity.dists_parameters("vgg16.pth", weights="dists_alpha_beta.npz")
    fidelity.dists(parameters)(images, references)                   # a distance already

This package imports nothing else of `cprl_jax`.
"""

from cprl_jax.fidelity.backbones import random_backbone
from cprl_jax.fidelity.chebyshev import chebyshev
from cprl_jax.fidelity.distances import distance
from cprl_jax.fidelity.dists import dists, dists_parameters
from cprl_jax.fidelity.gmsd import gmsd
from cprl_jax.fidelity.lpips import lpips, lpips_parameters
from cprl_jax.fidelity.ms_ssim import MS_SSIM_PRESETS, ms_ssim
from cprl_jax.fidelity.mse import mse, psnr
from cprl_jax.fidelity.ssim import SSIM_PRESETS, ssim

__all__ = [
    "MS_SSIM_PRESETS",
    "SSIM_PRESETS",
    "chebyshev",
    "distance",
    "dists",
    "dists_parameters",
    "gmsd",
    "lpips",
    "lpips_parameters",
    "ms_ssim",
    "mse",
    "psnr",
    "random_backbone",
    "ssim",
]
