"""CORNIA against its published steps, written out in float64 NumPy for one patch after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

from cprl_jax import models
from cprl_jax.models import fitted, patches
from cprl_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def images():
    return np.stack([data.astronaut()[40:64, 130:160], data.coffee()[150:174, 300:330]]).astype(np.float64) / 255


def literal_patches(image):
    gray = 255 * (0.2989 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2])
    found = []
    for row in range(image.shape[0] - 6):
        for column in range(image.shape[1] - 6):
            patch = gray[row : row + 7, column : column + 7].reshape(-1)
            patch = patch - patch.mean()
            found.append(patch / np.sqrt(patch.var(ddof=1) + 10))
    return np.stack(found)


def test_patches_are_those_of_the_published_steps(images):
    found = jax.jit(lambda x: patches.patches(x, 10_000))(jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(found, [literal_patches(image) for image in images], atol=1e-4)


def test_places_are_distinct_spread_over_the_image_and_refused_where_there_are_none(images):
    few = patches.patches(jnp.asarray(images, jnp.float32), 40)
    all_patches = literal_patches(images[0])
    nearest = np.abs(all_patches[None] - np.asarray(few[0])[:, None]).max(axis=-1)
    assert nearest.min(axis=1).max() < 1e-3
    rows, columns = np.divmod(nearest.argmin(axis=1), 24)
    assert len({*zip(rows, columns, strict=True)}) > 36
    assert np.all(np.histogram2d(rows, columns, bins=2, range=[[0, 18], [0, 24]])[0] >= 7)
    with pytest.raises(ValueError, match="7x7 pixels need an image at least as large, got 6x30"):
        patches.patches(jnp.zeros((1, 6, 30, 3)), 10)


def test_whitened_patches_have_no_covariance():
    """But for what the regulariser takes: the identity, where the eigenvalues are far above it."""
    generator = np.random.default_rng(0)
    samples = generator.normal(2, 1, (5000, 49)) @ (generator.normal(0, 1, (49, 49)) + 20 * np.eye(49))
    whitening = patches.fit_whitening(samples)
    whitened = (samples - whitening.mean) @ whitening.matrix
    np.testing.assert_allclose(np.cov(whitened, rowvar=False), np.eye(49), atol=2e-3)
    np.testing.assert_allclose(whitening.matrix, whitening.matrix.T, atol=1e-6)


def test_scores_are_those_of_the_published_steps(images, config_model):
    generator = np.random.default_rng(0)
    config = config_model("cornia", backbone="", score_mean=3.0, score_std=2.0, cornia={"words": 6, "patches": 10_000})
    module = models.create(config)
    params = {
        "mean": generator.normal(0, 0.1, 49),
        "whitening": generator.normal(0, 0.3, (49, 49)),
        "codebook": generator.normal(0, 0.3, (6, 49)),
        "weights": generator.normal(0, 1, 12),
        "offset": np.array(0.7),
    }
    expected = []
    for image in images:
        products = (literal_patches(image) - params["mean"]) @ params["whitening"] @ params["codebook"].T
        features = [max(0.0, *products[:, word]) for word in range(6)] + [
            max(0.0, *-products[:, word]) for word in range(6)
        ]
        expected.append(3 + 2 * (np.dot(features, params["weights"]) + 0.7))
    variables = {"params": {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}}
    scores = jax.jit(models.score_fn(module, variables))(jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)


def test_more_words_than_patches_are_refused(config_model):
    config = config_model("cornia", backbone="", cornia={"words": 500, "patches": 10})
    part = fitted.Images(np.zeros((8, 12, 12, 3), np.uint8), np.linspace(20.0, 80.0, 8), np.arange(8))
    parts = part, part._replace(scenes=np.arange(8, 16))
    with pytest.raises(UserError, match="config.model.cornia.words is 500, but the training images give 288 patches"):
        models.NETWORKS["cornia"].fit(models.create(config), *parts, seed=0)
