"""Full-reference measures: how close an image is to its reference, for each image of a batch.

Images are RGB in [0, 1], [batch, height, width, 3]. Each measure is differentiable, with finite gradients also at the
reference itself, and pure, so that it works under `jit`, `vmap` and `grad`.

This package imports nothing else of `cprl_jax`.
"""

from cprl_jax.fidelity.ssim import ssim

__all__ = ["ssim"]
