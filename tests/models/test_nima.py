"""NIMA against torch builds of both published forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.losses import earth_movers_distance, opinion_distribution
from cprl_jax.models.nima import NIMA, adaptive_average_pool

IMAGES = np.random.default_rng(0).uniform(size=(2, 45, 70, 3)).astype(np.float32)


@pytest.fixture
def network(torch_vgg16):
    """Makes the layers by the names of the first torch version; `grid` cells before the last one."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Network(nn.Module):
        def __init__(self, grid):
            super().__init__()
            self.features = torch_vgg16()
            self.pool = nn.AdaptiveAvgPool2d(grid)
            self.classifier = nn.Sequential(nn.Dropout(0.75), nn.Linear(512 * grid**2, 10), nn.Softmax(dim=1))

        def forward(self, x):
            return self.classifier(self.pool(self.features(x)).flatten(1))

    return lambda grid: Network(grid).eval()


def torch_distribution(network, images):
    import torch

    with torch.no_grad():
        return network(torch.tensor(np.asarray(images, np.float32).transpose(0, 3, 1, 2))).numpy()


def test_the_first_torch_version(network, loaded):
    network = network(7)
    scale = dict(score_mean=5.5, score_std=1.8)  # the published weights' scale, 1 to 10
    module, variables = loaded(network, "nima", 32, nima={"imagenet_input": False}, **scale)
    (probabilities, grades), scores = jax.jit(
        lambda v, x: (module.apply(v, x, method="distribution"), models.score_fn(module, v)(x))
    )(variables, IMAGES)
    expected = torch_distribution(network, IMAGES)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(grades, np.arange(1, 11), rtol=1e-5)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(scores, expected @ np.arange(1, 11), rtol=1e-4)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == sum(p.numel() for p in network.parameters())


def test_pyiqa_s_version(network, tmp_path, config_model, random_variables):
    import torch

    network = network(1)
    names = {"features.": "base_model.features_", "classifier.1.": "classifier.2."}
    state = {}
    for name, tensor in network.state_dict().items():
        beginning = next(beginning for beginning in names if name.startswith(beginning))
        state[name.replace(beginning, names[beginning])] = tensor
    torch.save({"params": state}, tmp_path / "pyiqa.pth")
    config = config_model("nima", nima={"grid": 1})
    module = models.create(config)
    shapes = jax.eval_shape(lambda: models.initialize(module, jax.random.key(0), 32))
    variables = models.load_weights(
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes), tmp_path / "pyiqa.pth", config_model=config
    )
    params = variables["params"]
    np.testing.assert_array_equal(params["backbone"]["conv5_3"]["bias"], state["base_model.features_28.bias"])
    np.testing.assert_array_equal(params["head"]["kernel"], state["classifier.2.weight"].T)
    assert module.normalization.mean == (0.485, 0.456, 0.406) and module.grid == 1


def test_torchvision_s_classifier_is_left_out(torch_vgg16, tmp_path, config_model, random_variables):
    import torch

    state = {f"features.{name}": tensor for name, tensor in torch_vgg16().state_dict().items()}
    state |= {f"classifier.{n}.{leaf}": torch.ones(4) for n in (0, 3, 6) for leaf in ("weight", "bias")}
    torch.save(state, tmp_path / "vgg16.pth")
    config = config_model("nima", nima={"output": "scalar", "grid": 1})
    before = random_variables(models.create(config))
    after = models.load_weights(before, tmp_path / "vgg16.pth", config_model=config)
    trunk = after["params"]["backbone"]
    np.testing.assert_array_equal(trunk["conv5_3"]["bias"], state["features.28.bias"])
    np.testing.assert_array_equal(after["params"]["head_hidden"]["kernel"], before["params"]["head_hidden"]["kernel"])


@pytest.mark.parametrize("size", [(7, 7), (1, 2), (9, 16)])
def test_pooling_is_torch_s(getkey, size):
    torch = pytest.importorskip("torch")
    x = jax.random.normal(getkey(), (2, *size, 3))
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)), 7)
    np.testing.assert_allclose(adaptive_average_pool(x, 7), expected.numpy().transpose(0, 2, 3, 1), atol=1e-6)


@pytest.mark.slow  # DB-CNN has the same trunk
def test_image_gradients(random_variables, check_image_gradients):
    module = NIMA(grid=1, dropout=0.75)
    check_image_gradients(module, random_variables(module), 32)


@pytest.mark.slow
def test_a_step_on_the_distance_of_distributions_lowers_it(getkey, random_variables):
    module = NIMA(score_mean=50.0, score_std=20.0)
    variables = random_variables(module)
    # The last layer alone, on features of the trunk: what is new behind a trunk that other tests train.
    images, mos = jax.random.uniform(getkey(), (2, 32, 32, 3)), jnp.asarray([20.0, 75.0])

    @jax.jit
    def step(params):
        def loss(head):
            whole = {"params": {**params, "head": head}}
            probabilities, grades = module.apply(whole, images, method="distribution")
            return jnp.mean(earth_movers_distance(probabilities, opinion_distribution(mos, grades)))

        value, gradient = jax.value_and_grad(loss)(params["head"])
        return value, {**params, "head": jax.tree.map(lambda p, g: p - 1e-3 * g, params["head"], gradient)}

    first, params = step(variables["params"])
    second, _ = step(params)
    assert 0 < second < first < 1


@pytest.mark.parametrize("output", ["distribution", "scalar"])
def test_outputs_reach_all_of_the_labels_scale(monkeypatch, output):
    logits = {"distribution": [[-50.0] * 9 + [50.0], [50.0] + [-50.0] * 9, [0.0] * 10], "scalar": [[50], [-50], [0]]}
    monkeypatch.setattr(NIMA, "last_layer", lambda self, images, train: jnp.asarray(logits[output], jnp.float32))
    module = NIMA(score_mean=50.0, score_std=20.0, output=output)
    np.testing.assert_allclose(module.apply({}, IMAGES), [100.0, 0.0, 50.0], atol=1e-3)


def test_masks_cover_its_middle(config_model):
    config = config_model("nima", sort_mask={"rate": 0.1, "min_channels": 0, "stages": ()})
    expected = ["conv3_1", "conv3_2", "conv3_3", "conv4_1", "conv4_2", "conv4_3"]
    assert models.masked_convolutions(models.create(config), 32) == [f"backbone/{name}" for name in expected]


def test_refusals():
    images = jnp.zeros((1, 32, 32, 3))
    with pytest.raises(ValueError, match="at least 32x32 pixels, got 32x31"):
        jax.eval_shape(NIMA().init, jax.random.key(0), images[:, :, :31])
    with pytest.raises(ValueError, match="there is a distribution with output='distribution', got output='scalar'"):
        jax.eval_shape(lambda: NIMA(output="scalar").init_with_output(jax.random.key(0), images, method="distribution"))
