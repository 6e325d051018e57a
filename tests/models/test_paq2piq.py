"""PaQ-2-PiQ against a torch build of the published layers, by way of saved torch weights."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.models.paq2piq import PaQ2PiQ, region_maxima

SIZE = (50, 104)
IMAGES = np.random.default_rng(0).uniform(size=(2, *SIZE, 3)).astype(np.float32)
IMAGES[1, :, :30] *= 0.2


def roi_pool(x, image_size, scale=1 / 32, cells=2):
    """torchvision.ops.roi_pool of NCHW maps for the region [0, 0, width, height], as its C++ code goes."""
    batch, channels, height, width = x.shape
    pooled = np.zeros((batch, channels, cells, cells), x.dtype)

    def bounds(cell, image_pixels, map_pixels):
        end = image_pixels * scale
        end = math.floor(end) if end - math.floor(end) < 0.5 else math.ceil(end)  # C's round
        length = max(end + 1, 1) / cells
        return min(max(math.floor(cell * length), 0), map_pixels), min(
            max(math.ceil((cell + 1) * length), 0), map_pixels
        )

    for row, column in itertools.product(range(cells), repeat=2):
        top, bottom = bounds(row, image_size[0], height)
        left, right = bounds(column, image_size[1], width)
        if bottom > top and right > left:
            pooled[:, :, row, column] = x[:, :, top:bottom, left:right].max(axis=(2, 3))
    return pooled


@pytest.fixture
def network(torch_network):
    """The layers by the published names, with random weights and statistics, in evaluation mode."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    resnet = torch_network("resnet-resnet18")

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            stages = (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
            self.body = nn.Sequential(resnet.conv1, resnet.bn1, nn.ReLU(), nn.MaxPool2d(3, 2, 1), *stages)
            layers = [
                nn.Identity(),
                nn.Flatten(),
                nn.BatchNorm1d(1024),
                nn.Dropout(0.25),
                nn.Linear(1024, 512),
                nn.ReLU(),
            ]
            self.head = nn.Sequential(*layers, nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, 1))

        def forward(self, images):
            cells = torch.tensor(roi_pool(self.body(images).numpy(), images.shape[2:]))
            return self.head(torch.cat([cells.amax((2, 3)), cells.mean((2, 3))], 1))[:, 0]

    network = Network()
    nn.init.normal_(network.head[4].weight, std=0.2)
    nn.init.normal_(network.head[8].weight)
    for norm in (network.head[2], network.head[6]):
        nn.init.uniform_(norm.running_mean, 0.0, 1.0)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.slow
def test_scores_are_torch_s(network, tmp_path, config_model, random_variables):
    import torch

    with torch.no_grad():
        expected = network(torch.tensor(IMAGES.transpose(0, 3, 1, 2))).numpy()
    assert np.ptp(expected) > 1e-2
    torch.save({"model": network.state_dict(), "opt": {"lr": 1e-3}}, tmp_path / "RoIPoolModel.pth")  # as published
    config = config_model("paq2piq", score_mean=50.0, score_std=20.0)
    module = models.create(config)
    variables = models.load_weights(random_variables(module), tmp_path / "RoIPoolModel.pth", config_model=config)
    scores = jax.jit(models.score_fn(module, variables))(IMAGES)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert counted == sum(parameter.numel() for parameter in network.parameters())


def test_a_trunk_of_torchvision_fits(torch_network, loaded):
    network = torch_network("classifier-resnet18")
    _, variables = loaded(network, "paq2piq", 64)
    trunk = variables["params"]["backbone"]
    np.testing.assert_array_equal(trunk["bn1"]["scale"], network.bn1.weight.detach())
    kernel = network.layer3[0].downsample[0].weight.detach().numpy()
    np.testing.assert_array_equal(trunk["layer3_0"]["downsample_conv"]["kernel"], kernel.transpose(2, 3, 1, 0))


# Both sides of a half of 32 pixels, maps of one pixel, whose second cells are empty, and an exact half.
SIZES = [(224, 230), (250, 239), (16, 15), (33, 47), (48, 80)]


def maps_of(image_size):
    shape = (2, 3, *(-(-side // 32) for side in image_size))
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("image_size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_regions_are_torchvision_s(image_size):
    maps = maps_of(image_size)
    found = np.asarray(region_maxima(maps.transpose(0, 2, 3, 1), image_size)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, roi_pool(maps, image_size))


def test_the_oracle_is_torchvision_s():
    torchvision = pytest.importorskip("torchvision")
    import torch

    for height, width in SIZES:
        maps = maps_of((height, width))
        regions = torch.tensor([[index, 0, 0, width, height] for index in range(2)], dtype=torch.float32)
        expected = torchvision.ops.roi_pool(torch.tensor(maps), regions, (2, 2), 1 / 32).numpy()
        np.testing.assert_array_equal(roi_pool(maps, (height, width)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [40, 1])
def test_image_gradients_are_finite(size, random_variables):
    """At a natural image (a ramp), flat and saturated ones."""
    module = PaQ2PiQ()
    variables = random_variables(module)
    ramp = jnp.linspace(0.1, 0.9, size).reshape(1, size, 1) * jnp.ones((size, size, 3))
    images = jnp.stack([ramp, *(jnp.full((size, size, 3), value) for value in (0.0, 0.5, 1.0))])
    found = jax.jit(jax.grad(lambda images: jnp.sum(models.score_fn(module, variables)(images))))(images)
    assert np.isfinite(found).all() and np.abs(found[0]).max() > 0
