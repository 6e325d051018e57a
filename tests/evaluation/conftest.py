"""A network small enough to compile in no time, and images for it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

SIZE = 16


class Tiny(nn.Module):
    """One convolution, and a score around 50."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.tanh(nn.Conv(8, (3, 3), dtype=self.dtype)(4 * images.astype(self.dtype) - 2))
        return 50 + 60 * nn.Dense(1, dtype=self.dtype)(x.mean(axis=(1, 2)))[:, 0].astype(jnp.float32)


@pytest.fixture(scope="session")
def network():
    """Makes module and variables from a seed."""

    def make(seed=0, dtype=jnp.float32):
        return Tiny(dtype), Tiny().init(jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 3)))

    return make


@pytest.fixture(scope="session")
def crops():
    """Six images, three crops each."""
    generator = np.random.default_rng(0)
    flat = generator.integers(0, 256, (6, 1, 1, 1, 3))
    return np.clip(flat + generator.integers(-60, 60, (6, 3, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def mos():
    return np.array([20, 80, 45, 60, 95, 10], np.float32)


@pytest.fixture(scope="session")
def crop_keys(crops):
    """Makes the random keys of all crops: they depend on the seed, the image and the crop."""

    def make(seed):
        images, count = crops.shape[:2]
        of_image = [jax.random.fold_in(jax.random.key(seed), i) for i in range(images)]
        return jnp.stack([jax.random.fold_in(key, j) for key in of_image for j in range(count)])

    return make
