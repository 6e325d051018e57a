"""MobileNet-V2 against torch builds in both conventions; with TensorFlow's weights where they are at hand."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cprl_jax import models
from cprl_jax.models.mobilenet_v2 import MobileNetV2, MobileNetV2Score
from cprl_jax.runtime.errors import UserError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TENSORFLOW = DATA / "weights" / "mobilenet_v2_1.0_224_quant.npz"
MACAW = DATA / "kodak" / "kodim23.png"
# Expansion, channels, blocks, stride: table 2 of the paper.
TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
ENDS = np.cumsum([blocks for _, _, blocks, _ in TABLE])  # numbers of the stages' last blocks


def layers():
    """(kind, inputs, outputs, stride, whether ReLU6 follows) of all layers in their order; None where a block adds."""
    found, channels = [("conv", 3, 32, 2, True)], 32
    for expansion, outputs, blocks, stride in TABLE:
        for block in range(blocks):
            inner = expansion * channels
            if expansion > 1:
                found.append(("conv", channels, inner, 1, True))
            found.append(("dw", inner, inner, 1 if block else stride, True))
            found.append(("conv", inner, outputs, 1, False))
            channels = outputs
    return [*found, ("conv", channels, 1280, 1, True)]


@pytest.fixture
def network():
    """torchvision's layers by its names, with random weights, in evaluation mode."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def layer(inputs, outputs, kernel=3, stride=1, groups=1):
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride, expansion):
            super().__init__()
            inner = inputs * expansion
            self.conv = nn.Sequential(
                *([layer(inputs, inner, 1)] if expansion > 1 else []),
                layer(inner, inner, 3, stride, inner),
                nn.Conv2d(inner, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            self.adds = stride == 1 and inputs == outputs

        def forward(self, x):
            return x + self.conv(x) if self.adds else self.conv(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            features, channels = [layer(3, 32, 3, 2)], 32
            for expansion, outputs, blocks, stride in TABLE:
                for block in range(blocks):
                    features.append(Block(channels, outputs, 1 if block else stride, expansion))
                    channels = outputs
            self.features = nn.Sequential(*features, layer(channels, 1280, 1))
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 10))

    torch.manual_seed(0)
    network = Network()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.2, 0.5)
    return network.eval()


def maps_of_torch(network, images):
    """The maps of the seven stages and the last layer of a torchvision network, for RGB in [0, 1]."""
    import torch

    x = torch.tensor(images.transpose(0, 3, 1, 2))
    x = (x - torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).reshape(
        3, 1, 1
    )
    maps = []
    with torch.no_grad():
        for number, layer in enumerate(network.features):
            x = layer(x)
            if number in {*ENDS, len(network.features) - 1}:
                maps.append(x.numpy().transpose(0, 2, 3, 1))
    return maps


def weights_of_tensorflow(generator):
    """Random weights by the names of the published file, with those of the classifier."""
    weights, number = {}, 0
    for kind, inputs, outputs, _, _ in [*layers(), ("conv", 1280, 11, 1, False)]:
        shape = (3, 3, 1, outputs) if kind == "dw" else (3 if inputs == 3 else 1,) * 2 + (inputs, outputs)
        spread = math.sqrt(2.0 / math.prod(shape[:3]))
        weights[f"{number:02d}_{kind}/w"] = generator.normal(size=shape, scale=spread).astype(np.float32)
        weights[f"{number:02d}_{kind}/b"] = generator.normal(size=outputs, scale=0.3).astype(np.float32)
        number += 2 if number % 7 == 5 else 1  # the published numbers have gaps
    return weights


def maps_of_tensorflow(weights, images):
    """The same of a network with these weights as TensorFlow computes it, by torch's convolutions."""
    torch = pytest.importorskip("torch")
    x = (torch.tensor(images.transpose(0, 3, 1, 2)) * 255 - 128) / 128
    kernels = {name: value for name, value in weights.items() if name.endswith("/w")}
    starts, maps, blocks = None, [], 0
    for (kind, _, _, stride, clipped), (name, kernel) in zip(layers(), kernels.items(), strict=False):
        if clipped and kind == "conv":
            starts = x  # of a block
        pads = []
        for pixels, length in zip(x.shape[2:], kernel.shape[:2], strict=True):
            missing = max(0, (math.ceil(pixels / stride) - 1) * stride + length - pixels)
            pads = [missing // 2, missing - missing // 2, *pads]
        y = torch.nn.functional.conv2d(
            torch.nn.functional.pad(x, pads),
            torch.tensor(kernel.transpose(3, 2, 0, 1)),
            torch.tensor(weights[name.replace("/w", "/b")]),
            stride,
            groups=x.shape[1] if kind == "dw" else 1,
        )
        y = y.clamp(0, 6) if clipped else y
        if not clipped:
            y = y + starts if starts.shape == y.shape else y
            blocks += 1
        x = y
        if not clipped and blocks in ENDS:
            maps.append(x)
    return [stage.numpy().transpose(0, 2, 3, 1) for stage in (*maps, x)]


def assert_maps_are(module, variables, images, expected):
    trunk = {collection: tree["backbone"] for collection, tree in variables.items() if "backbone" in tree}
    backbone = MobileNetV2(convention=module.convention)
    maps = jax.jit(lambda trunk, x: backbone.apply(trunk, module.normalization.normalize(x), False))(trunk, images)
    for ours, theirs in zip(maps, expected, strict=True):
        assert np.std(theirs) > 0.05  # and not all 0 or 6
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.fixture
def load(tmp_path, config_model, random_variables):
    """(module, variables) with weights of TensorFlow, from a path or a dict."""

    def from_file_or_dict(weights, convention="tensorflow"):
        config, path = config_model("mobilenet_v2", mobilenet_v2={"convention": convention}), weights
        if isinstance(weights, dict):
            path = tmp_path / "weights.npz"
            np.savez(path, **weights)
        module = models.create(config)
        return module, models.load_weights(random_variables(module), path, config_model=config)

    return from_file_or_dict


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (75, 50)])
def test_maps_are_torchvision_s(network, loaded, size):
    images = np.random.default_rng(0).uniform(size=(2, *size, 3)).astype(np.float32)
    module, variables = loaded(network, "mobilenet_v2", 64)
    assert_maps_are(module, variables, images, maps_of_torch(network, images))
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["backbone"]))
    assert counted == sum(parameter.numel() for parameter in network.features.parameters()) == 2_223_872


@pytest.mark.slow
def test_so_are_those_of_torchvision_itself(network, loaded):
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.mobilenet_v2(num_classes=10).eval()
    theirs.load_state_dict(network.state_dict())
    images = np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype(np.float32)
    module, variables = loaded(theirs, "mobilenet_v2", 64)
    assert_maps_are(module, variables, images, maps_of_torch(theirs, images))


@pytest.mark.parametrize("size", [(64, 64), pytest.param((75, 50), marks=pytest.mark.slow)])
def test_maps_are_tensorflow_s(load, size):
    weights = weights_of_tensorflow(np.random.default_rng(1))
    images = np.random.default_rng(0).uniform(size=(2, *size, 3)).astype(np.float32)
    module, variables = load(weights)
    assert_maps_are(module, variables, images, maps_of_tensorflow(weights, images))
    assert "backbone" not in variables["batch_stats"]


def test_weights_of_the_other_convention_are_refused(load, network):
    weights = weights_of_tensorflow(np.random.default_rng(1))
    with pytest.raises(UserError, match="weights.npz: config.model.mobilenet_v2.convention is 'torch'.*'tensorflow'"):
        load(weights, "torch")
    of_torch = {name: value.numpy() for name, value in network.state_dict().items()}
    with pytest.raises(
        UserError, match="convention is 'tensorflow', but the file has no layers of TensorFlow.*'torch'"
    ):
        load(of_torch)


def test_files_that_do_not_fit(load):
    weights = weights_of_tensorflow(np.random.default_rng(1))
    with pytest.raises(UserError, match="54 layers; MobileNet-V2 has 52"):
        load(weights | {"99_conv/w": np.ones(1)})
    with pytest.raises(UserError, match="unknown name 'head/w'; those of MobileNet-V2 are like '00_conv/w'"):
        load(weights | {"head/w": np.ones(1)})
    with pytest.raises(UserError, match="block1/depthwise_conv/bias of mobilenet_v2 missing"):
        load({name: value for name, value in weights.items() if name != "01_dw/b"})


@pytest.mark.skipif(not (TENSORFLOW.exists() and MACAW.exists()), reason="the published weights are not here")
def test_published_weights_see_a_macaw(load):
    module, variables = load(TENSORFLOW)
    photograph = Image.open(MACAW).convert("RGB")
    left = (photograph.width - photograph.height) // 2
    square = photograph.crop((left, 0, left + photograph.height, photograph.height))
    images = np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC), np.float32)[None] / 255
    trunk = {"params": variables["params"]["backbone"]}
    maps = jax.jit(
        lambda x: MobileNetV2(convention="tensorflow").apply(trunk, module.normalization.normalize(x), False)
    )
    last = np.asarray(maps(images)[-1])
    assert last.min() >= 0.0 and last.max() <= 6.0
    with np.load(TENSORFLOW) as file:
        logits = last.mean(axis=(1, 2)) @ file["63_conv/w"][0, 0] + file["63_conv/b"]
    probabilities = jax.nn.softmax(logits[0])
    assert np.argmax(probabilities) == 89 and probabilities[89] > 0.9  # 0 is the background
    listed = json.loads(TENSORFLOW.with_suffix(".json").read_text())
    strides = [stride for _, _, stride, _ in (row for row in listed if len(row) == 4)]
    assert strides[:-1] == [stride for _, _, _, stride, _ in layers()]


@pytest.mark.slow
@pytest.mark.parametrize(("convention", "size"), [("tensorflow", 32), ("torch", 32), ("torch", 1)])
def test_image_gradients_are_finite(convention, size, getkey, random_variables):
    """At a natural image (a ramp), flat and saturated ones."""
    module = MobileNetV2Score(convention=convention)
    variables = random_variables(module)
    ramp = jnp.linspace(0.1, 0.9, size).reshape(1, size, 1) * jnp.ones((size, size, 3))
    images = jnp.stack([ramp, *(jnp.full((size, size, 3), value) for value in (0.0, 0.5, 1.0))])
    found = jax.jit(jax.grad(lambda images: jnp.sum(models.score_fn(module, variables)(images))))(images)
    assert np.isfinite(found).all() and np.abs(found[0]).max() > 0


def test_masks_cover_depthwise_convolutions(config_model):
    config = config_model("mobilenet_v2", sort_mask={"rate": 0.1, "stages": (3,), "min_channels": 150})
    names = [f"backbone/block{number}/depthwise_conv" for number in (5, 6)]
    assert models.masked_convolutions(models.create(config), 32) == names
