"""CNNIQA against a torch build of the published layers, and SciPy's local statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from cprl_jax import models
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.cnniqa import CNNIQA, local_contrast


@pytest.fixture
def network():
    """The layers by their published names, with random weights: contrast-normalised patches to scores."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(1, 50, 7)
            self.fc1, self.fc2, self.fc3 = nn.Linear(100, 800), nn.Linear(800, 800), nn.Linear(800, 1)

        def forward(self, patches):
            x = self.conv1(patches).flatten(2)
            x = torch.cat([x.amax(2), x.amin(2)], 1)
            return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))[:, 0]

    torch.manual_seed(0)
    return Network().eval()


def expected_contrast(patch, constant):
    """The published formula with its second moment minus the squared mean, in float64."""
    box = np.full((3, 3), 1 / 9)
    mean, square = (signal.convolve2d(x, box, mode="same", boundary="symm") for x in (patch, patch**2))
    return (patch - mean) / (np.sqrt(np.maximum(square - mean**2, 0)) + constant)


def expected_score(network, image, constant):
    import torch

    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    corners = [(y, x) for y in range(0, grey.shape[0] - 31, 32) for x in range(0, grey.shape[1] - 31, 32)]
    patches = np.stack([expected_contrast(grey[y : y + 32, x : x + 32], constant) for y, x in corners])
    with torch.no_grad():
        return network(torch.tensor(patches[:, None], dtype=torch.float32)).mean().item()


@pytest.mark.parametrize("constant", [1.0, 1 / 255])
def test_scores_are_torch_s(network, loaded, constant):
    changes = {"cnniqa": {"contrast_constant": constant}, "sort_mask": {"stages": ()}}
    module, variables = loaded(network, "cnniqa", 32, score_mean=50.0, **changes)
    images = np.random.default_rng(0).uniform(size=(3, 70, 96, 3)).astype(np.float32)
    expected = [expected_score(network, image, constant) for image in images]
    assert np.std(expected) > 1e-5
    scores = jax.jit(models.score_fn(module, variables))(images)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == sum(p.numel() for p in network.parameters())


def test_local_contrast(getkey):
    x = jax.random.uniform(getkey(), (2, 6, 7, 1)).at[0, :3, :3].set(0.3)
    for ours, image in zip(jax.jit(local_contrast)(x, 1 / 255), np.asarray(x, np.float64), strict=True):
        np.testing.assert_allclose(ours[..., 0], expected_contrast(image[..., 0], 1 / 255), atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(local_contrast(x, 1 / 255) ** 2)))(x.at[0].set(0.3).at[1].set(1.0))
    assert np.isfinite(gradient).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 65])
def test_image_gradients(random_variables, check_image_gradients, size):
    module = CNNIQA(contrast_constant=1 / 255)
    check_image_gradients(module, random_variables(module), size)


@pytest.mark.slow
def test_initial_scores_and_training(check_start):
    check_start(CNNIQA(score_mean=50.0, score_std=20.0, dropout=0.5), within=20.0)


@pytest.mark.slow
def test_draws_do_not_depend_on_how_many_devices_share_the_batch(getkey, random_variables):
    """Masks belong to patches, dropout to images."""
    images, variables = jax.random.uniform(getkey(), (2, 64, 32, 3)), random_variables(CNNIQA())
    placement = SortMaskPlacement(rate=0.3, stages=(0,), min_channels=1)
    streams = {"mask": getkey(), "dropout": getkey()}

    def scores(images, axis_name):
        module = CNNIQA(dropout=0.5, sort_mask=placement, axis_name=axis_name)
        return module.apply(variables, images, train=True, rngs=streams)

    shared = jax.pmap(lambda x: scores(x, "batch"), axis_name="batch", devices=jax.devices()[:2])(images[:, None])
    np.testing.assert_allclose(shared[:, 0], jax.jit(lambda x: scores(x, None))(images), rtol=1e-4, atol=1e-5)


def test_its_convolution_may_be_masked(config_model):
    config = config_model("cnniqa", sort_mask={"rate": 0.1, "min_channels": 0, "stages": ()})
    assert models.masked_convolutions(models.create(config), 32) == ["backbone/conv1"]


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="at least 32x32 pixels, got 32x31"):
        jax.eval_shape(CNNIQA().init, jax.random.key(0), jnp.zeros((1, 32, 31, 3)))
