"""Ma19 against a torch build of the published layers; with the published weights and photographs where they are."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cprl_jax import models
from cprl_jax.models.ma19 import Ma19, pyramid_max
from cprl_jax.runtime.errors import UserError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
PUBLISHED = DATA / "weights" / "ma19_gdn.npz"
KODAK = DATA / "kodak"
published = pytest.mark.skipif(not PUBLISHED.exists(), reason="the published weights are not here")


@pytest.fixture
def network():
    """The layers as published, with random weights: input NCHW, output [batch, 2]."""
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional

    class Divisive(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(channels, channels) / channels)
            self.beta = nn.Parameter(0.1 + torch.rand(channels))

        def forward(self, x):
            energy = torch.einsum("bkhw,kc->bchw", x**2, self.gamma) + self.beta.reshape(1, -1, 1, 1)
            return x / torch.sqrt(energy)

    class Pyramid(nn.Module):
        def forward(self, x):
            vectors = []
            for level in (1, 2, 3):
                cell = [-(-side // level) for side in x.shape[2:]]
                pad = [(c * level - side + 1) // 2 for c, side in zip(cell, x.shape[2:], strict=True)]
                vectors.append(functional.max_pool2d(x, cell, cell, pad).flatten(1))
            return torch.cat(vectors, 1)

    torch.manual_seed(0)
    layers, channels = [], 3
    for stage in range(4):
        layers += [nn.Conv2d(channels, 48, 3, padding=1), Divisive(48)] + [nn.MaxPool2d(2)] * (stage < 3)
        channels = 48
    network = nn.Sequential(*layers, Pyramid(), nn.Linear(672, 128), nn.ReLU(), nn.Linear(128, 2))
    return network.eval()


@pytest.fixture
def load(tmp_path, config_model, random_variables):
    """(module, variables) with the weights of a file, or of a dict that is first saved as one."""

    def from_file_or_dict(weights, **changes):
        config = config_model("ma19", **changes)
        path = weights
        if isinstance(weights, dict):
            path = tmp_path / "weights.npz"
            np.savez(path, **weights)
        module = models.create(config)
        return module, models.load_weights(random_variables(module), path, config_model=config)

    return from_file_or_dict


def arrays(network):
    return {name: value.numpy() for name, value in network.state_dict().items()}


def of_torch(network, images):
    import torch

    with torch.no_grad():
        output = network(torch.tensor(np.asarray(images).transpose(0, 3, 1, 2)))
    return output[:, 0].numpy(), np.exp(output[:, 1].numpy())


def mean_and_variance(module, variables, images):
    return jax.jit(lambda v, x: module.apply(v, x, method="mean_and_variance"))(variables, images)


# 24 pixels are the smallest; 57 x 40 are 7 x 5 in the last stage, which levels 2 and 3 both have to pad.
@pytest.mark.parametrize(
    "size", [(24, 24), pytest.param((57, 40), marks=pytest.mark.slow), pytest.param((32, 71), marks=pytest.mark.slow)]
)
def test_scores_and_variances_are_torch_s(network, load, getkey, size):
    images = jax.random.uniform(getkey(), (2, *size, 3))
    module, variables = load(arrays(network))
    scores, variances = mean_and_variance(module, variables, images)
    for ours, theirs in zip((scores, variances), of_torch(network, images), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(models.score_fn(module, variables))(images), scores, rtol=1e-4, atol=1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == sum(p.numel() for p in network.parameters())


def test_gradient_is_torch_s(network, load, getkey):
    import torch

    images = jax.random.uniform(getkey(), (2, 33, 26, 3))
    inputs = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2)).requires_grad_()
    network(inputs)[:, 0].sum().backward()
    expected = inputs.grad.numpy().transpose(0, 2, 3, 1)
    score_fn = models.score_fn(*load(arrays(network)))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(score_fn(x))))(images)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_published_checkpoint_by_its_own_names_and_on_another_scale(network, load, getkey, tmp_path):
    import torch

    images = jax.random.uniform(getkey(), (2, 24, 30, 3))
    state = {f"cnn.{name}": value for name, value in network.state_dict().items()}
    checkpoint = {"epoch": 7, "state_dict": state, "optimizer": {"lr": 1e-5}, "sensitivity": torch.ones(1, 9)}
    torch.save(checkpoint, tmp_path / "ma19.pt")
    found = mean_and_variance(*load(tmp_path / "ma19.pt", score_mean=50.0, score_std=20.0), images)
    for ours, theirs in zip(found, of_torch(network, images), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_files_that_do_not_fit(network, load):
    state = arrays(network)
    with pytest.raises(UserError, match=r"1.gamma has shape \(48, 47\), ma19 needs \(48, 48\)"):
        load({**state, "1.gamma": np.ones((48, 47), np.float32)})
    with pytest.raises(UserError, match="4.beta of ma19 missing"):
        load({name: value for name, value in state.items() if name != "4.beta"})
    with pytest.raises(UserError, match="16.bias not known to ma19"):
        load({**state, "16.bias": np.ones(2, np.float32)})


def test_own_files_round_trip(load, tmp_path, random_variables):
    saved = random_variables(Ma19(), seed=3)
    models.save_weights(tmp_path / "ours.npz", saved)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "ours.npz")[1], saved)


def test_pyramid(getkey):
    x = jax.random.normal(getkey(), (1, 3, 6, 2))
    features = np.asarray(pyramid_max(x))[0]
    assert features.shape == (28,)
    np.testing.assert_array_equal(features[:2], np.asarray(x).max(axis=(0, 1, 2)))
    cells = features[10:].reshape(2, 3, 3)  # channel, row, column of level 3: one row and two columns of pixels each
    np.testing.assert_array_equal(cells[1, 2, 0], np.asarray(x)[0, 2, :2, 1].max())
    with pytest.raises(ValueError, match="levels .* need 3 pixels a side, got 2x6"):
        pyramid_max(x[:, :2])


def test_the_gradient_of_the_pyramid_is_one_pixel_of_each_cell(getkey):
    """Also of cells of one pixel, and not by comparing with a maximum that compiled code may round differently."""
    x = jnp.round(2 * jax.random.normal(getkey(), (2, 3, 4, 5)))  # with ties

    def total(x):
        return jnp.sum(pyramid_max(x))

    gradient = np.asarray(jax.jit(jax.grad(total))(x))
    np.testing.assert_array_equal(gradient.sum(axis=(1, 2)), 1 + 4 + 9)
    np.testing.assert_array_equal(gradient, np.round(gradient))
    assert "reduce_max" not in str(jax.make_jaxpr(jax.grad(total))(x))


@pytest.mark.slow
def test_initial_variables_and_training(getkey):
    module = Ma19(score_mean=5.0, score_std=2.0, dropout=0.5)
    variables = models.initialize(module, getkey(), 24)
    assert set(variables) == {"params"}
    first = variables["params"]["backbone"]["conv1"]["kernel"]
    assert np.abs(first).max() <= np.sqrt(6 / (9 * 3 + 9 * 48)) and np.abs(first).max() > 0.1
    images = jax.random.uniform(getkey(), (3, 24, 24, 3)).at[0].set(0.0).at[1].set(0.5)

    def total(params, images):
        return jnp.sum(module.apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(0)}))

    gradients = jax.jit(jax.grad(total, (0, 1)))(variables["params"], images)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients[1][2]).max() > 0


def test_masks_cover_its_convolutions(config_model):
    config = config_model("ma19", sort_mask={"rate": 0.1, "min_channels": 48, "stages": (2, 3)})
    assert models.masked_convolutions(models.create(config), 24) == ["backbone/conv2", "backbone/conv3"]


@pytest.mark.slow
def test_bfloat16_computes_near_float32(network, load, getkey):
    images = jax.random.uniform(getkey(), (2, 32, 32, 3))
    network = load(arrays(network))
    exact, half = (jax.jit(models.score_fn(*network, dtype=dtype))(images) for dtype in ("float32", "bfloat16"))
    assert half.dtype == jnp.float32 and not np.array_equal(exact, half)
    np.testing.assert_allclose(half, exact, atol=0.02)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="at least 24x24 pixels, got 24x23"):
        jax.eval_shape(Ma19().init, jax.random.key(0), jnp.zeros((1, 24, 23, 3)))


@published
def test_published_weights_in_torch(network, load, getkey):
    import torch

    with np.load(PUBLISHED) as file:
        network.load_state_dict({name: torch.tensor(file[name]) for name in file.files})
    images = jax.random.uniform(getkey(), (1, 41, 58, 3)) * jnp.linspace(0, 1, 58).reshape(1, 1, 58, 1)
    images = jnp.concatenate([images, 0.5 + 0.1 * images, jnp.full_like(images, 0.5)])
    found = mean_and_variance(*load(PUBLISHED), images)
    for ours, theirs in zip(found, of_torch(network, images), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@published
@pytest.mark.skipif(not KODAK.exists(), reason="the Kodak photographs are not here")
@pytest.mark.parametrize("number", [5, 13])
def test_published_weights_order_a_ladder_of_jpeg_qualities(load, number):
    photograph = (
        Image.open(KODAK / f"kodim{number:02d}.png").convert("RGB").resize((192, 128), Image.Resampling.LANCZOS)
    )
    clean = np.asarray(photograph, np.float32) / 255
    ladder = []
    for quality in range(5, 100, 10):
        with io.BytesIO() as file:
            photograph.save(file, "JPEG", quality=quality)
            ladder.append(np.asarray(Image.open(file), np.float32) / 255)
    scores = jax.jit(models.score_fn(*load(PUBLISHED)))(np.stack(ladder))
    psnr = [-10 * np.log10(np.mean((image - clean) ** 2)) for image in ladder]
    assert stats.spearmanr(scores, psnr).statistic >= 0.95
    assert 1.5 < np.min(scores) < 2.5 and 3.5 < np.max(scores) < 4.2
