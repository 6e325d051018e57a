"""Methods that transform the images of the plain network: its scores of transformed images, and gradients to attack."""

import jax
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.config import defaults as config_lib
from cprl_jax.layers import jpeg, transformations
from cprl_jax.methods import METHODS, title
from cprl_jax.models import transformed
from cprl_jax.training import setup

CASES = {
    "jpeg": (jpeg.jpeg, {"quality": 75}, "JPEG compression (quality 75, after plain)"),
    "bit_depth": (transformations.bit_depth, {"bits": 4}, "reduced bit depth (4 bits, after plain)"),
    "resize": (transformations.resize, {"scale": 0.5}, "resizing down and up (by 0.5, after plain)"),
    "blur": (transformations.blur, {"sigma": 1.0}, "Gaussian blur (1 pixels, after plain)"),
}


@pytest.fixture(scope="module")
def plain():
    """A configuration of the compact network, and random variables of it."""
    config = config_lib.default()
    config.model.name, config.train.crop_size = "compact", 16
    return config, setup.start_variables(config, "plain", seed=0)


@jax.jit
def scores(score_fn, images):
    return score_fn(images)


@jax.jit
def scores_and_gradients(score_fn, images):
    values, pull_back = jax.vjp(score_fn, images)
    return values, pull_back(values / values)[0]


@pytest.mark.sampled
@pytest.mark.parametrize("name", CASES)
def test_the_plain_network_scores_transformed_images(name, plain):
    config, variables = plain
    transformation, settings, row = CASES[name]
    assert not METHODS[name].trains and title(name, config[name]) == row
    assert all(config[name][setting] == value for setting, value in settings.items())  # the functions' defaults, too
    images = np.random.default_rng(0).random((2, 20, 24, 3), np.float32)
    score_fn = models.score_fn(setup.create_model(config, "plain"), variables)
    found, gradients = scores_and_gradients(models.score_fn(setup.create_model(config, name), variables), images)
    np.testing.assert_allclose(found, scores(score_fn, transformation(images, **settings)), rtol=1e-4)
    assert np.abs(found - scores(score_fn, images)).min() > 1e-3
    assert np.isfinite(gradients).all() and (gradients != 0).mean() > 0.99
    assert getattr(transformed, name).__kwdefaults__ == settings
