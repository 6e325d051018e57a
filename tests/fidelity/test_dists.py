from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import fidelity

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "weights" / "dists_alpha_beta.npz"


def pairs(size=(19, 16), seed=0):
    """Noise on noise, noise on a black image, and no change."""
    rng = np.random.default_rng(seed)
    references = rng.random((3, *size, 3))
    references[1] = 0
    images = np.clip(references + 0.1 * rng.normal(size=references.shape), 0, 1)
    images[2] = references[2]
    return images.astype(np.float32), references.astype(np.float32)


def random_tensors(seed=0):
    """Backbone with biases, and weights of the channels, in the names of the published files."""
    rng = np.random.default_rng(seed)
    backbone = fidelity.random_backbone(jax.random.key(seed))
    for name in backbone:
        if name.endswith("bias"):
            backbone[name] = 0.1 * rng.normal(size=backbone[name].shape).astype(np.float32)
    weights = {name: rng.random((1, 1475, 1, 1)).astype(np.float32) for name in ("alpha", "beta")}
    return backbone, weights


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


@pytest.fixture(scope="module")
def measure(tensors):
    return fidelity.dists(fidelity.dists_parameters(tensors[0], weights=tensors[1]))


def literal_dists(torch, backbone, weights, images, references):
    """Ding et al. as published, with similarities and not their complements, in torch's float64."""
    F = torch.nn.functional
    p = {name: torch.tensor(value.astype(np.float64)) for name, value in (backbone | weights).items()}
    hanning = np.hanning(5)[1:-1]
    window = torch.tensor(np.outer(hanning, hanning) / np.outer(hanning, hanning).sum())
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None]
    pair = []
    for values in (images, references):
        x = torch.tensor(values.astype(np.float64).transpose(0, 3, 1, 2))
        maps, x = [x], (x - mean) / std
        for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            if len(maps) > 1:
                kernel = window.expand(x.shape[1], 1, 3, 3)
                x = torch.sqrt(F.conv2d(x * x, kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12)
            for index in stage:
                x = torch.relu(F.conv2d(x, p[f"features.{index}.weight"], p[f"features.{index}.bias"], padding=1))
            maps.append(x)
        pair.append(maps)
    terms = {"alpha": [], "beta": []}
    for x, y in zip(*pair, strict=True):
        mx, my = x.mean((2, 3)), y.mean((2, 3))
        covariance = (x * y).mean((2, 3)) - mx * my
        terms["alpha"].append((2 * mx * my + 1e-6) / (mx**2 + my**2 + 1e-6))
        terms["beta"].append(
            (2 * covariance + 1e-6) / (x.var((2, 3), unbiased=False) + y.var((2, 3), unbiased=False) + 1e-6)
        )
    total = p["alpha"].sum() + p["beta"].sum()
    return 1 - sum((torch.cat(terms[k], 1) * p[k].reshape(1, -1)).sum(1) for k in terms).numpy() / total.item()


@pytest.mark.slow
def test_equals_the_literal_formula_in_torch(tensors, measure):
    torch = pytest.importorskip("torch")
    images, references = pairs()
    expected = literal_dists(torch, *tensors, images, references)
    np.testing.assert_allclose(measure(images, references), expected, atol=2e-6)
    assert expected[0] > 0.01 and abs(expected[2]) < 1e-9
    np.testing.assert_allclose(measure(images, references)[2], 0, atol=1e-12)


def test_equals_the_published_package(monkeypatch):
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    package = pytest.importorskip("DISTS_pytorch.DISTS_pt")
    torch.manual_seed(0)
    network = torchvision.models.vgg16(weights=None)
    monkeypatch.setattr(torchvision.models, "vgg16", lambda **_: network)
    reference = package.DISTS(load_weights=False)
    weights = {name: getattr(reference, name).detach().numpy() for name in ("alpha", "beta")}
    backbone = {name: value.numpy() for name, value in network.state_dict().items()}
    images, references = pairs()
    pair = [torch.tensor(values.transpose(0, 3, 1, 2)) for values in (images, references)]
    with torch.no_grad():
        expected = reference(*pair).numpy()
    measure = fidelity.dists(fidelity.dists_parameters(backbone, weights=weights))
    np.testing.assert_allclose(measure(images, references), expected, atol=1e-5)


def test_reads_the_published_weights(tensors):
    if not PUBLISHED.is_file():
        pytest.skip("the published weights are not at hand")
    parameters = fidelity.dists_parameters(tensors[0], weights=PUBLISHED)
    assert parameters["alpha"].shape == parameters["beta"].shape == (1475,)
    shares = [float(jnp.sum(parameters[name])) for name in ("alpha", "beta")]
    np.testing.assert_allclose(shares[0] / sum(shares), 0.876, atol=1e-3)


def test_without_weights_all_channels_weigh_the_same(tensors):
    parameters = fidelity.dists_parameters(tensors[0])
    np.testing.assert_array_equal(parameters["alpha"], np.ones(1475))
    np.testing.assert_array_equal(parameters["beta"], np.ones(1475))


@jax.jit
def summed(measure, images, references):
    return jnp.sum(measure(images, references))


# The distance is an argument of the compiled function: as a constant, its kernels would make compiling slow.
gradient = jax.jit(jax.grad(summed, argnums=1))


@pytest.mark.slow
def test_range_symmetry_and_batch(measure):
    images, references = pairs()
    together = measure(images, references)
    assert np.all((together >= 0) & (together <= 1))
    np.testing.assert_allclose(measure(references, images), together, rtol=1e-5)
    others = images.copy()
    others[1:] = 0.3
    np.testing.assert_allclose(measure(others, references)[0], together[0], rtol=1e-5)
    assert jax.eval_shape(measure, images.astype(np.float16), references).dtype == jnp.float32


@pytest.mark.slow
def test_vmap(measure):
    images, references = (values[::2] for values in pairs((9, 8)))
    mapped = jax.jit(jax.vmap(measure, in_axes=(0, None)))(np.stack([images, references]), references)
    np.testing.assert_allclose(mapped, [measure(images, references), np.zeros(2)], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_gradients_are_finite_and_zero_at_the_reference(measure):
    images, references = pairs()
    at_images = np.asarray(gradient(measure, images, references))
    assert np.all(np.isfinite(at_images)) and np.all(np.abs(at_images[:2]).max(axis=(1, 2, 3)) > 0)
    np.testing.assert_allclose(at_images[2], 0, atol=1e-7)  # the two passes may round differently
    np.testing.assert_allclose(gradient(measure, references, references), np.zeros_like(references), atol=1e-7)


@pytest.mark.slow
def test_gradient_equals_finite_differences(measure):
    with jax.enable_x64(True):
        images, references = (jnp.asarray(values[:1].astype(np.float64)) for values in pairs((9, 8)))
        along = np.random.default_rng(2).normal(size=images.shape)
        ahead, behind = (summed(measure, images + step * along, references) for step in (1e-7, -1e-7))
        numeric = (ahead - behind) / 2e-7
        np.testing.assert_allclose(jnp.sum(gradient(measure, images, references) * along), numeric, rtol=1e-5)
        assert ahead.dtype == jnp.float64


def test_one_pixel_and_mistakes(measure):
    pixel = np.full((1, 1, 1, 3), 0.5, np.float32)
    assert jax.eval_shape(measure, pixel, pixel).shape == (1,)
    with pytest.raises(ValueError, match="'vgg16', 'alpha' and 'beta'.*got 'vgg16', 'heads'"):
        fidelity.dists({"vgg16": {}, "heads": ()})
    with pytest.raises(ValueError, match=r"3 channels \(RGB\), got 1"):
        measure(pixel[..., :1], pixel[..., :1])
