"""DB-CNN against a torch build of the published layers; with the published S-CNN where it is."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.models.dbcnn import DBCNN, SCNNTrunk, bilinear_pool, resize
from cprl_jax.runtime.errors import UserError

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "weights" / "scnn_dbcnn.npz"
published = pytest.mark.skipif(not PUBLISHED.exists(), reason="the published weights are not here")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def scnn():
    """Makes S-CNN as published: `features`, `projection` and `classifier`, with random weights and statistics."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def make():
        def block(inputs, outputs, length, stride=1):
            conv, norm = nn.Conv2d(inputs, outputs, length, stride, length // 2), nn.BatchNorm2d(outputs)
            nn.init.kaiming_normal_(conv.weight)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            return [conv, norm, nn.ReLU()]

        network, channels = nn.Module(), 3
        layers = []
        for outputs, stride in ((48, 1), (48, 2), (64, 1), (64, 2), (64, 1), (64, 2), (128, 1), (128, 1), (128, 2)):
            layers += block(channels, outputs, 3, stride)
            channels = outputs
        network.features = nn.Sequential(*layers)
        network.projection = nn.Sequential(*block(128, 256, 1), *block(256, 256, 1))
        network.classifier = nn.Linear(256, 39)
        return network.eval()

    return make


@pytest.fixture
def network(torch_vgg16, scnn):
    """The layers by their published names, with random weights: an input NCHW, not yet normalised, to scores."""
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.features1, self.features2 = torch_vgg16(last_pool=False), scnn().features
            self.fc = nn.Linear(512 * 128, 1)
            nn.init.normal_(self.fc.weight, std=0.1)

        def forward(self, x):
            x = (x - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(STD).reshape(1, 3, 1, 1)
            content, distortion = self.features1(x), self.features2(x)
            size = content.shape[2:]
            if distortion.shape[2:] != size:
                distortion = functional.interpolate(distortion, size, mode="bilinear", align_corners=True)
            products = content.flatten(2) @ distortion.flatten(2).transpose(1, 2) / (size[0] * size[1])
            return self.fc(functional.normalize(torch.sqrt(products.flatten(1) + 1e-8)))[:, 0]

    torch.manual_seed(3)
    return Network().eval()


def of_torch(network, images):
    import torch

    with torch.no_grad():
        return network(torch.tensor(np.asarray(images).transpose(0, 3, 1, 2))).numpy()


@pytest.fixture
def empty(config_model):
    """(module, config, variables of zeros) of DB-CNN."""
    config = config_model("dbcnn", score_mean=50.0, score_std=20.0)
    module = models.create(config)
    shapes = jax.eval_shape(lambda: models.initialize(module, jax.random.key(0), 32))
    return module, config, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


@pytest.mark.slow
def test_scores_are_torch_s(network, empty, tmp_path):
    import torch

    module, config, variables = empty
    torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "best.pkl")
    variables = models.load_weights(variables, tmp_path / "best.pkl", config_model=config)
    # 33 x 40 are 2 x 2 pixels behind VGG-16 and 3 x 3 behind S-CNN.
    images = np.random.default_rng(0).uniform(size=(2, 33, 40, 3)).astype(np.float32)
    expected = of_torch(network, images)
    assert np.std(expected) > 1e-3 * np.abs(expected).max()
    scores = jax.jit(models.score_fn(module, variables))(images)
    np.testing.assert_allclose(scores, expected, atol=1e-4 * np.abs(expected).max())
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert counted == sum(parameter.numel() for parameter in network.parameters())

    torch.save({"params": network.state_dict()}, tmp_path / "pyiqa.pth")
    again = models.load_weights(empty[2], tmp_path / "pyiqa.pth", config_model=config)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_the_streams_are_loaded_one_after_the_other(torch_vgg16, scnn, empty, tmp_path):
    import torch

    _, config, variables = empty
    vgg16 = {f"features.{name}": tensor for name, tensor in torch_vgg16().state_dict().items()}
    classifier = {f"classifier.{n}.{leaf}": torch.ones(4) for n in (0, 3, 6) for leaf in ("weight", "bias")}
    torch.save({**vgg16, **classifier}, tmp_path / "vgg16.pth")
    distortions = scnn().state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in distortions.items()}, tmp_path / "scnn.pkl")
    for file in ("vgg16.pth", "scnn.pkl"):
        variables = models.load_weights(variables, tmp_path / file, config_model=config)
    trunk, statistics = variables["params"]["backbone"], variables["batch_stats"]["backbone"]["scnn"]
    np.testing.assert_array_equal(trunk["vgg"]["conv5_3"]["bias"], vgg16["features.28.bias"])
    np.testing.assert_array_equal(
        trunk["scnn"]["conv9"]["kernel"], distortions["features.24.weight"].permute(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(statistics["bn9"]["var"], distortions["features.25.running_var"])
    del distortions["features.24.bias"]
    torch.save(distortions, tmp_path / "scnn.pkl")
    with pytest.raises(UserError, match="scnn/conv9/bias of dbcnn missing"):
        models.load_weights(variables, tmp_path / "scnn.pkl", config_model=config)


@published
def test_published_s_cnn_in_torch(scnn, empty):
    import torch

    network = scnn()
    with np.load(PUBLISHED) as file:
        network.load_state_dict({name: torch.tensor(file[name]) for name in file.files}, strict=False)
    module, config, variables = empty
    variables = models.load_weights(variables, PUBLISHED, config_model=config)
    images = np.random.default_rng(0).uniform(size=(1, 32, 48, 3)).astype(np.float32)
    expected = of_torch(network.features, ((images - MEAN) / STD).astype(np.float32))
    trunk = SCNNTrunk()
    ours = jax.jit(lambda v, x: trunk.apply(v, module.normalization.normalize(x), False))(
        {collection: tree["backbone"]["scnn"] for collection, tree in variables.items()}, images
    )
    assert np.std(expected) > 0
    np.testing.assert_allclose(ours, expected.transpose(0, 2, 3, 1), atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(2, 2), (1, 4), (3, 2)])
def test_resize_is_torch_s(getkey, size):
    torch = pytest.importorskip("torch")
    x = jax.random.normal(getkey(), (2, 3, 2, 5))
    inputs = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))
    expected = torch.nn.functional.interpolate(inputs, size, mode="bilinear", align_corners=True)
    np.testing.assert_allclose(resize(x, size), expected.numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_bilinear_pooling_of_nothing_is_finite():
    """A flat image, or one on which no channel of a stream is active."""
    first, second = jnp.zeros((1, 2, 2, 3)), jnp.ones((1, 2, 2, 4))
    features, gradient = jax.jit(jax.value_and_grad(lambda x: bilinear_pool(x, second)[0, 0]))(first)
    np.testing.assert_allclose(features, 12**-0.5, rtol=1e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_image_gradients(random_variables, check_image_gradients):
    check_image_gradients(DBCNN(), random_variables(DBCNN()), 16)


@pytest.mark.slow
def test_initial_scores(getkey):
    module = DBCNN(score_mean=50.0, score_std=20.0)
    variables = models.initialize(module, getkey(), 32)
    images = jax.random.uniform(getkey(), (2, 32, 32, 3))
    np.testing.assert_allclose(jax.jit(models.score_fn(module, variables))(images), 50.0, atol=5.0)


def test_masks_cover_its_middle(config_model):
    config = config_model("dbcnn", sort_mask={"rate": 0.1, "min_channels": 0, "stages": ()})
    expected = [f"vgg/conv{stage}_{number}" for stage in (3, 4) for number in (1, 2, 3)]
    assert models.masked_convolutions(models.create(config), 32) == [f"backbone/{name}" for name in expected]
    config.sort_mask.stages, config.sort_mask.min_channels = (8,), 1
    expected = ["backbone/scnn/conv5", "backbone/scnn/conv6"]
    assert models.masked_convolutions(models.create(config), 32) == expected


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="at least 16x16 pixels, got 16x15"):
        jax.eval_shape(DBCNN().init, jax.random.key(0), jnp.zeros((1, 16, 15, 3)))
