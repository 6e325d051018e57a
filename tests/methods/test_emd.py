"""NIMA's training on a linear network with a distribution, by hand, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.config import defaults as config_lib
from cprl_jax.runtime.errors import UserError
from cprl_jax.training.optimizers import make_optimizer
from cprl_jax.training.state import create_state
from cprl_jax.training.step import make_step

GRADES = np.linspace(0, 100, 10, dtype=np.float32)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8),
    "mos": np.asarray([0.0, 30.0, 50.0, 96.0], np.float32),
}


class Graded(nn.Module):
    """A distribution that is linear in the mean colour, before its softmax."""

    gives_distribution: bool = True

    def __call__(self, images, train=False):
        if not self.gives_distribution:
            return self.logits(images)[:, 0]
        probabilities, grades = self.distribution(images)
        return probabilities @ grades

    def distribution(self, images):
        return nn.softmax(self.logits(images)), jnp.asarray(GRADES)

    @nn.compact
    def logits(self, images):
        return nn.Dense(10, name="head")(jnp.mean(images, axis=(1, 2)))


def steps(module, count=1, **settings):
    """The metrics of some steps, and the distributions before the first one."""
    config = config_lib.default()
    config.emd.update(settings)
    config.train.head_learning_rate = 0.1
    optimizer = make_optimizer(config.train, steps=10)
    images = jnp.asarray(BATCH["image"] / 255, jnp.float32)
    variables = module.init(jax.random.key(0), images)
    state = create_state(variables, optimizer.init(variables["params"]))
    step, metrics = jax.jit(make_step(module, optimizer, config, method="emd")), []
    for _ in range(count):
        state, measured = step(state, BATCH)
        metrics.append(measured)
    return metrics, np.float64(module.apply(variables, images, method="distribution")[0])


@pytest.mark.parametrize("r", [1.0, 2.0])
def test_the_loss_is_the_mean_distance_and_falls(r):
    metrics, probabilities = steps(Graded(), count=5, r=r)
    place = BATCH["mos"] * 9 / 100  # in grades
    labels = np.stack([np.interp(np.arange(10), [p - 1, p, p + 1], [0, 1, 0]) for p in np.float64(place)])
    distances = np.mean(np.abs(np.cumsum(probabilities - labels, axis=1)) ** r, axis=1) ** (1 / r)
    np.testing.assert_allclose(metrics[0]["loss"], distances.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics[0]["score_std"], np.std(probabilities @ GRADES), rtol=1e-3)
    assert metrics[-1]["loss"] < metrics[0]["loss"] and metrics[0]["gradient_norm"] > 0


def test_a_network_without_distributions_is_refused():
    with pytest.raises(UserError, match="emd, which needs a network that gives a distribution of opinions: set config"):
        steps(Graded(gives_distribution=False))
