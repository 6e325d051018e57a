"""Training with noise: what the network sees."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cprl_jax import methods
from cprl_jax.config import defaults as config_lib
from cprl_jax.methods import METHODS
from cprl_jax.methods.method import Batch


class _Seen:
    """Stands for the network: keeps the images that it is shown."""

    def scores(self, images):
        self.images = np.asarray(images)
        return jnp.mean(images, axis=(1, 2, 3))

    def gather(self, values):
        return values

    def label_loss(self, scores):
        return jnp.sum(scores)


def shown(images, sigma, keys):
    forward, count = _Seen(), len(images)
    batch = Batch(images, jnp.zeros(count), keys, step=jnp.int32(0), mid=50.0)
    METHODS["noise"].loss(batch, forward, ml_collections.ConfigDict({"sigma": sigma}))
    return forward.images


def test_the_network_sees_noise_of_sigma_inside_the_range():
    keys = jax.random.split(jax.random.key(0), 3)
    images = np.stack([np.full((40, 40, 3), level, np.float32) for level in (0.0, 0.5, 1.0)])
    seen = shown(images, 0.1, keys)
    noise = seen[1] - 0.5
    assert np.std(noise) == pytest.approx(0.1, rel=0.05) and abs(noise.mean()) < 0.01
    assert seen.min() == 0 and seen.max() == 1
    assert np.mean(seen[0] == 0) == pytest.approx(0.5, abs=0.03), "half of the noise at black is clipped"
    # An image's noise follows from its own key.
    np.testing.assert_array_equal(shown(images[1:2], 0.1, keys[1:2]), seen[1:2])


@pytest.mark.slow
def test_a_step_trains_and_the_title_says_how(one_step):
    one_step("noise", sigma=0.25)
    assert methods.title("noise", config_lib.default().noise) == "training with noise (sigma 0.12)"
