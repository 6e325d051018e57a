"""UNIQUE against a torch build of the published layers, by way of saved torch weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.models.unique import UNIQUE, bilinear_features

IMAGES = np.random.default_rng(0).uniform(size=(2, 64, 50, 3)).astype(np.float32)
IMAGES[1, :, :20] *= 0.2


@pytest.fixture
def network(torch_network):
    """The layers by the published names, with random weights, and with the classifier that is in the file."""
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch_network("resnet-resnet34")
            self.fc = torch.nn.Linear(512 * 512, 2)
            torch.nn.init.normal_(self.fc.weight)

        def forward(self, images):
            x = self.backbone.maps(images)[-1].flatten(2)
            x = torch.bmm(x, x.transpose(1, 2)) / x.shape[2]
            x = torch.nn.functional.normalize((torch.sign(x) * torch.sqrt(x.abs() + 1e-8)).flatten(1))
            mean, deviation = self.fc(x).T
            return mean, torch.nn.functional.softplus(deviation)

    return Network()


@pytest.mark.slow
def test_scores_and_deviations_are_torch_s(network, loaded):
    import torch

    with torch.no_grad():
        expected = [output.numpy() for output in network(torch.tensor(IMAGES.transpose(0, 3, 1, 2)))]
    # By the names of the file, and on another scale.
    module, variables = loaded(torch.nn.DataParallel(network), "unique", 64, score_mean=50.0, score_std=20.0)

    @jax.jit
    def scores_and_deviations(variables, images):
        return models.score_fn(module, variables)(images), module.apply(variables, images, method="mean_and_std")[1]

    for ours, theirs in zip(scores_and_deviations(variables, IMAGES), expected, strict=True):
        assert np.ptp(theirs) > 1e-3
        np.testing.assert_allclose(ours, theirs, rtol=5e-5, atol=0)
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    unused = sum(parameter.numel() for parameter in network.backbone.fc.parameters())
    assert counted == sum(parameter.numel() for parameter in network.parameters()) - unused


def test_a_trunk_of_torchvision_fits(torch_network, loaded, random_variables):
    """Its head is not ours, whose random values stay."""
    network = torch_network("resnet-resnet34")
    network.fc = None
    _, variables = loaded(network, "unique", 64)
    kernel = network.conv1.weight.detach().numpy()
    np.testing.assert_array_equal(variables["params"]["backbone"]["conv1"]["kernel"], kernel.transpose(2, 3, 1, 0))


def test_bilinear_features(getkey):
    x = jax.random.normal(getkey(), (2, 3, 4, 5)).at[1].set(0.0)
    maps = np.asarray(x[0], np.float64).reshape(12, 5)
    products = maps.T @ maps / 12
    roots = np.sign(products) * np.sqrt(np.abs(products) + 1e-8)
    expected = (roots / np.linalg.norm(roots)).ravel()

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient_and_features(x):
        features = bilinear_features(x)
        return jnp.sum(features), features

    gradient, features = gradient_and_features(x)
    np.testing.assert_allclose(features[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(features[1], 0.0)
    assert np.isfinite(gradient).all() and np.abs(gradient[0]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 1])
def test_image_gradients_are_finite(size, random_variables):
    """At a natural image (a ramp), flat and saturated ones."""
    module = UNIQUE()
    variables = random_variables(module)
    ramp = jnp.linspace(0.1, 0.9, size).reshape(1, size, 1) * jnp.ones((size, size, 3))
    images = jnp.stack([ramp, *(jnp.full((size, size, 3), value) for value in (0.0, 0.5, 1.0))])
    found = jax.jit(jax.grad(lambda images: jnp.sum(models.score_fn(module, variables)(images))))(images)
    assert np.isfinite(found).all() and np.abs(found[0]).max() > 0
