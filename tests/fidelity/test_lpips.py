from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import fidelity
from cprl_jax.fidelity.backbones import NETWORKS

SMALLEST = {"vgg16": 16, "alexnet": 31, "squeezenet": 17}
PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "weights"


def pairs(size=(33, 36), seed=0):
    """Noise on noise, noise on a black image, and no change."""
    rng = np.random.default_rng(seed)
    references = rng.random((3, *size, 3))
    references[1] = 0
    images = np.clip(references + 0.1 * rng.normal(size=references.shape), 0, 1)
    images[2] = references[2]
    return images.astype(np.float32), references.astype(np.float32)


def random_tensors(network, seed=0):
    """Backbone with biases, and heads, in the names of the published files."""
    rng = np.random.default_rng(seed)
    backbone = fidelity.random_backbone(jax.random.key(seed), network=network)
    for name in backbone:
        if name.endswith("bias"):
            backbone[name] = 0.1 * rng.normal(size=backbone[name].shape).astype(np.float32)
    widths = NETWORKS[network].widths
    heads = {f"lin{i}.model.1.weight": rng.random((1, w, 1, 1)).astype(np.float32) for i, w in enumerate(widths)}
    return backbone, heads


def literal_features(torch, network, tensors, x):
    """The published slices, written down with torch's functions layer by layer."""
    F = torch.nn.functional
    p = {name: torch.tensor(value, dtype=x.dtype) for name, value in tensors.items()}

    def conv(x, index, **options):
        return F.conv2d(x, p[f"features.{index}.weight"], p[f"features.{index}.bias"], **options)

    def fire(x, index):
        x = torch.relu(conv(x, f"{index}.squeeze"))
        return torch.relu(torch.cat([conv(x, f"{index}.expand1x1"), conv(x, f"{index}.expand3x3", padding=1)], 1))

    taps = []
    if network == "vgg16":
        for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            x = F.max_pool2d(x, 2) if taps else x
            for index in stage:
                x = torch.relu(conv(x, index, padding=1))
            taps.append(x)
    elif network == "alexnet":
        taps.append(torch.relu(conv(x, 0, stride=4, padding=2)))
        taps.append(torch.relu(conv(F.max_pool2d(taps[-1], 3, 2), 3, padding=2)))
        taps.append(torch.relu(conv(F.max_pool2d(taps[-1], 3, 2), 6, padding=1)))
        taps.append(torch.relu(conv(taps[-1], 8, padding=1)))
        taps.append(torch.relu(conv(taps[-1], 10, padding=1)))
    else:
        taps.append(torch.relu(conv(x, 0, stride=2)))
        for first, second in ((3, 4), (6, 7)):
            taps.append(fire(fire(F.max_pool2d(taps[-1], 3, 2, ceil_mode=True), first), second))
        taps.append(fire(F.max_pool2d(taps[-1], 3, 2, ceil_mode=True), 9))
        for index in (10, 11, 12):
            taps.append(fire(taps[-1], index))
    return taps


def literal_lpips(torch, network, backbone, heads, images, references):
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    total = 0
    pair = []
    for values in (images, references):
        x = torch.tensor(values.astype(np.float64).transpose(0, 3, 1, 2))
        taps = literal_features(torch, network, backbone, (2 * x - 1 - shift) / scale)
        pair.append([tap / (tap.square().sum(1, keepdim=True).sqrt() + 1e-10) for tap in taps])
    for first, second, head in zip(*pair, heads.values(), strict=True):
        total += torch.nn.functional.conv2d((first - second) ** 2, torch.tensor(head.astype(np.float64))).mean(
            (1, 2, 3)
        )
    return total.numpy()


@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=[pytest.mark.slow] * (name == "vgg16")) for name in NETWORKS]
)
def test_equals_the_literal_formula_in_torch(network):
    torch = pytest.importorskip("torch")
    images, references = pairs()
    backbone, heads = random_tensors(network)
    measure = fidelity.lpips(fidelity.lpips_parameters(backbone, heads=heads, network=network))
    expected = literal_lpips(torch, network, backbone, heads, images, references)
    np.testing.assert_allclose(measure(images, references), expected, rtol=1e-5, atol=1e-6)
    assert expected[0] > 0.01 and abs(expected[2]) < 1e-9
    np.testing.assert_allclose(measure(images, references)[2], 0, atol=1e-12)
    np.testing.assert_allclose(measure(references, images), measure(images, references), rtol=1e-5)


@pytest.mark.parametrize(("network", "theirs"), [("vgg16", "vgg"), ("alexnet", "alex"), ("squeezenet", "squeeze")])
def test_equals_the_published_package(network, theirs):
    """With the heads of the package, on a random backbone."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    package = pytest.importorskip("lpips")
    torch.manual_seed(0)
    reference = package.LPIPS(net=theirs, pnet_rand=True, verbose=False)
    backbone = {}
    for name, value in reference.net.state_dict().items():
        backbone[name.replace(name.split(".")[0], "features")] = value.numpy()
    heads = {name: value.numpy() for name, value in reference.state_dict().items() if name.startswith("lin")}
    heads = {name: value for name, value in heads.items() if name.startswith("lin") and "lins" not in name}
    images, references = pairs()
    pair = [torch.tensor(values.transpose(0, 3, 1, 2)) for values in (images, references)]
    with torch.no_grad():
        expected = reference(*pair, normalize=True).reshape(-1).numpy()
    measure = fidelity.lpips(fidelity.lpips_parameters(backbone, heads=heads, network=network))
    np.testing.assert_allclose(measure(images, references), expected, atol=1e-5)


@pytest.mark.parametrize(("network", "theirs"), [("vgg16", "vgg"), ("alexnet", "alex"), ("squeezenet", "squeeze")])
def test_reads_the_published_heads(network, theirs):
    file = PUBLISHED / f"lpips_lin_{theirs}.npz"
    if not file.is_file():
        pytest.skip("the published heads are not at hand")
    backbone = {name: np.zeros_like(value) for name, value in random_tensors(network)[0].items()}
    parameters = fidelity.lpips_parameters(backbone, heads=file, network=network)
    assert [head.shape for head in parameters["heads"]] == [(width,) for width in NETWORKS[network].widths]
    with np.load(file) as published:
        np.testing.assert_array_equal(parameters["heads"][1], published["lin1.model.1.weight"][0, :, 0, 0])


def test_without_heads_all_channels_weigh_the_same():
    images, references = pairs()
    backbone, heads = random_tensors("squeezenet")
    ones = {name: np.ones_like(value) for name, value in heads.items()}
    plain, alike = (fidelity.lpips_parameters(backbone, heads=h, network="squeezenet") for h in (None, ones))
    np.testing.assert_array_equal(fidelity.lpips(plain)(images, references), fidelity.lpips(alike)(images, references))


@jax.jit
def summed(measure, images, references):
    return jnp.sum(measure(images, references))


# The distance is an argument of the compiled function: as a constant, its kernels would make compiling slow.
gradient = jax.jit(jax.grad(summed, argnums=1))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["squeezenet", "alexnet"])
def test_gradients_are_finite_where_all_features_are_zero_and_zero_at_the_reference(network):
    images, references = pairs()
    backbone, heads = random_tensors(network)
    backbone["features.0.bias"] -= 3  # so that whole pixels have no feature at all
    measure = fidelity.lpips(fidelity.lpips_parameters(backbone, heads=heads, network=network))
    at_images = np.asarray(gradient(measure, images, references))
    assert np.all(np.isfinite(at_images)) and np.abs(at_images[0]).max() > 0
    np.testing.assert_allclose(at_images[2], 0, atol=1e-7)  # the two passes may round differently
    np.testing.assert_allclose(gradient(measure, references, references), np.zeros_like(references), atol=1e-7)


@pytest.mark.slow
def test_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        images, references = (jnp.asarray(values[:1].astype(np.float64)) for values in pairs((17, 18)))
        backbone, heads = random_tensors("squeezenet")
        measure = fidelity.lpips(fidelity.lpips_parameters(backbone, heads=heads, network="squeezenet"))
        along = np.random.default_rng(2).normal(size=images.shape)
        ahead, behind = (summed(measure, images + step * along, references) for step in (1e-7, -1e-7))
        numeric = (ahead - behind) / 2e-7
        np.testing.assert_allclose(jnp.sum(gradient(measure, images, references) * along), numeric, rtol=1e-5)
        assert ahead.dtype == jnp.float64


@pytest.mark.slow
def test_vmap_batch_and_half_precision():
    images, references = pairs((17, 18))
    backbone, heads = random_tensors("squeezenet")
    measure = fidelity.lpips(fidelity.lpips_parameters(backbone, heads=heads, network="squeezenet"))
    together = measure(images, references)
    np.testing.assert_allclose(measure(images[:1], references[:1]), together[:1], rtol=1e-5)
    mapped = jax.jit(jax.vmap(measure, in_axes=(0, None)))(np.stack([images, references]), references)
    np.testing.assert_allclose(mapped, [together, np.zeros(3)], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(summed(measure, images, references), np.sum(together), rtol=1e-5)
    assert jax.eval_shape(measure, jnp.asarray(images, jnp.bfloat16), references).dtype == jnp.float32


@pytest.mark.parametrize("network", NETWORKS)
def test_smallest_image(network):
    backbone = {name: np.zeros_like(value) for name, value in random_tensors(network)[0].items()}
    measure = fidelity.lpips(fidelity.lpips_parameters(backbone, network=network))
    smallest = SMALLEST[network]
    images = np.zeros((1, smallest, smallest, 3), np.float32)
    jax.eval_shape(measure, images, images)
    with pytest.raises(ValueError, match=f"at least {smallest} pixels on each side, got {smallest - 1}x{smallest}"):
        measure(images[:, 1:], images[:, 1:])


def test_mistakes_are_named():
    backbone, heads = random_tensors("squeezenet")
    with pytest.raises(ValueError, match="'vgg16', 'alexnet', 'squeezenet', got 'resnet'"):
        fidelity.lpips_parameters(backbone, network="resnet")
    with pytest.raises(ValueError, match="'heads' and one of 'vgg16'.*got 'alpha'"):
        fidelity.lpips({"alpha": 1})
    five = {name: value for name, value in heads.items() if name < "lin5"}
    with pytest.raises(ValueError, match="'lin5.model.1.weight' of LPIPS on squeezenet is missing"):
        fidelity.lpips_parameters(backbone, heads=five, network="squeezenet")
    with pytest.raises(ValueError, match="negative"):
        fidelity.lpips_parameters(backbone, heads={name: -value for name, value in heads.items()}, network="squeezenet")
    measure = fidelity.lpips(fidelity.lpips_parameters(backbone, network="squeezenet"))
    gray = np.zeros((1, 20, 20, 1), np.float32)
    with pytest.raises(ValueError, match=r"3 channels \(RGB\), got 1"):
        measure(gray, gray)
