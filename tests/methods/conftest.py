"""One real training step of a method."""

import jax
import numpy as np
import pytest

from cprl_jax.config import defaults as config_lib
from cprl_jax.training import setup
from cprl_jax.training.optimizers import make_optimizer
from cprl_jax.training.state import create_state
from cprl_jax.training.step import make_step


@pytest.fixture
def one_step():
    """Takes a step of a method on the compact network and gives the states before and after it, and its metrics."""

    def take(method, **settings):
        config = config_lib.default()
        config.model.name, config.model.backbone, config.train.crop_size = "compact", "", 16
        config[method].update(settings)
        variables = setup.start_variables(config, method, seed=0)
        optimizer = make_optimizer(config.train, steps=10)
        before = create_state(variables, optimizer.init(variables["params"]))
        generator = np.random.default_rng(0)
        batch = {
            "image": generator.integers(0, 256, (4, 16, 16, 3), np.uint8),
            "mos": generator.uniform(0, 100, 4).astype(np.float32),
        }
        step = make_step(setup.create_model(config, method), optimizer, config, method=method)
        after, metrics = jax.jit(step)(before, batch)
        kinds = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)] for state in (before, after)]
        assert kinds[0] == kinds[1] and jax.tree.structure(before) == jax.tree.structure(after)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((after, metrics)))
        assert metrics["gradient_norm"] > 0 and after.step == 1
        return before, after, metrics

    return take
