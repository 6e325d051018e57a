"""Denoising blocks against PyTorch: the non-local means in groups and at once, the filters at odd sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from torch.nn import functional

from cprl_jax import methods
from cprl_jax.config import defaults as config_lib
from cprl_jax.methods import METHODS, feature_denoising
from cprl_jax.methods.feature_denoising import Filters, NonLocalBlocks, blur, non_local_means
from cprl_jax.models.change import Place
from cprl_jax.runtime.errors import UserError
from cprl_jax.training import setup


class At(nn.Module):
    """One place of a change."""

    name_of_place: str
    change: object

    @nn.compact
    def __call__(self, x):
        return getattr(self.change, self.name_of_place)(self, x, Place("here", 1, False, x.dtype, None))


def maps(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nchw(x):
    return torch.tensor(np.asarray(x, np.float64)).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def means_in_torch(queries, keys, x):
    """All weights at once, channels first, as published."""
    queries, keys, values = (maps.flatten(2) for maps in (queries, keys, x))
    weights = torch.softmax(queries.transpose(1, 2) @ keys / queries.shape[1] ** 0.5, dim=-1)
    return (values @ weights.transpose(1, 2)).reshape(x.shape)


@pytest.mark.parametrize("at_once", [2**20, 150], ids=["one_group", "groups_and_a_rest"])
def test_non_local_means_and_their_gradients_are_those_of_torch(monkeypatch, at_once):
    monkeypatch.setattr(feature_denoising, "_AT_ONCE", at_once)  # 150: groups of 5 of 28 positions, and 3
    ours = [maps(0, 2, 4, 7, 3), maps(1, 2, 4, 7, 3), maps(2, 2, 4, 7, 6)]
    theirs = [nchw(x).requires_grad_() for x in ours]
    weight = maps(3, 2, 4, 7, 6)
    (means_in_torch(*theirs) * nchw(weight)).sum().backward()
    found, back = jax.vjp(jax.jit(non_local_means), *ours)
    np.testing.assert_allclose(found, nhwc(means_in_torch(*theirs)), rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(back(weight), theirs, strict=True):
        np.testing.assert_allclose(gradient, nhwc(expected.grad), rtol=1e-4, atol=1e-5)


def test_a_non_local_block_is_the_published_one():
    module, x = At("stage_output", NonLocalBlocks()), maps(0, 2, 5, 6, 8)
    variables = module.init(jax.random.key(0), x)
    np.testing.assert_array_equal(module.apply(variables, x), x)  # a scale of 0
    assert np.std(variables["params"]["here_theta"]["kernel"]) == pytest.approx(0.01, rel=0.5)
    generator = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32), variables)
    params, statistics = (
        jax.tree.map(lambda leaf: torch.tensor(np.float64(leaf)), variables[kind]) for kind in ("params", "batch_stats")
    )

    def conv(x, name):
        return functional.conv2d(x, params[name]["kernel"][0, 0].T[:, :, None, None])

    y = nchw(x)
    denoised = conv(means_in_torch(conv(y, "here_theta"), conv(y, "here_phi"), y), "here_conv")
    scale, bias = params["here_norm"]["scale"], params["here_norm"]["bias"]
    moments = statistics["here_norm"]["mean"], statistics["here_norm"]["var"]
    expected = y + functional.batch_norm(denoised, *moments, scale, bias)
    assert params["here_theta"]["kernel"].shape == (1, 1, 8, 4)
    np.testing.assert_allclose(module.apply(variables, x), nhwc(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("size", [(5, 9), (56, 4), (2, 1), (1, 1)], ids=["odd", "large", "narrow", "one_pixel"])
def test_the_filter_is_a_gaussian_with_a_reflected_border(size):
    x, (height, width) = maps(0, 2, *size, 3), size
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    taps = []
    for pixels in size:
        sigma = 0.3 * ((pixels - 1) * 0.5 - 1) + 0.8
        taps.append(np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / (2 * sigma**2)))
    kernel = np.outer(*taps) / np.outer(*taps).sum()
    expected = sum(kernel[i, j] * padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3))
    np.testing.assert_allclose(blur(x), expected, rtol=1e-5, atol=1e-6)


def test_a_filter_block_adds_a_convolution_of_the_blurred_maps_and_leaves_images_alone():
    module, x = At("conv_input", Filters()), maps(0, 2, 5, 6, 8)
    variables = module.init(jax.random.key(0), x)
    layer = variables["params"]["here_filter"]
    assert np.abs(layer["kernel"]).max() <= 8**-0.5 and 0 < np.abs(layer["bias"]).max() <= 8**-0.5  # as torch's
    added = np.asarray(blur(x)) @ np.asarray(layer["kernel"])[0, 0] + np.asarray(layer["bias"])
    np.testing.assert_allclose(module.apply(variables, x), x + added, rtol=1e-5, atol=1e-6)
    assert not module.init(jax.random.key(0), x[..., :3])


def added(name, backbone, crop, **settings):
    """The modules that denoising adds to a network."""
    config = config_lib.default()
    config.model.name, config.model.backbone, config.train.crop_size = name, backbone, crop
    config.denoise.update(settings)
    shapes = [
        flatten_dict(jax.eval_shape(lambda method=method: setup.start_variables(config, method, seed=0))["params"])
        for method in ("plain", "denoise")
    ]
    assert set(shapes[0]) < set(shapes[1])
    return {"/".join(path[:-1]) for path in set(shapes[1]) - set(shapes[0])}, shapes[0]


def test_blocks_are_at_the_ends_of_the_stages_that_are_named():
    names, _ = added("resnet", "resnet18", 64)
    roles = ("theta", "phi", "conv", "norm")
    assert names == {f"backbone/stage{stage}_end_{role}" for stage in (1, 2, 3, 4) for role in roles}
    names, _ = added("compact", "", 16, stages=(2, 3))
    assert names == {f"backbone/stage{stage}_end_{role}" for stage in (2, 3) for role in roles}
    with pytest.raises(UserError, match="name 5; those of CompactScore .* are 1, 2, 3"):
        added("compact", "", 16, stages=(2, 5))


@pytest.mark.parametrize(
    ("name", "backbone"), [("resnet", "resnet18"), ("squeezenet", "")], ids=["resnet18", "squeezenet"]
)
def test_a_filter_is_in_front_of_every_convolution_but_the_first(name, backbone):
    names, plain = added(name, backbone, 64, block="filter")
    trunk = {"/".join(path[:-1]) for path, leaf in plain.items() if path[-1] == "kernel" and len(leaf.shape) == 4}
    convolutions = {name for name in trunk if name.startswith("backbone/")}
    assert names == {f"{name}_input_filter" for name in convolutions - {"backbone/conv1"}}


@pytest.mark.slow
def test_a_step_on_a_network_moves_the_scale_of_the_blocks(one_step):
    before, after, _ = one_step("denoise", stages=(2, 3))
    scales = [tree.params["backbone"]["stage2_end_norm"]["scale"] for tree in (before, after)]
    assert not np.any(scales[0]) and np.all(scales[1])


@pytest.mark.slow
def test_a_step_with_filters_on_a_network(one_step):
    one_step("denoise", block="filter", attack_steps=1)


@pytest.mark.parametrize("change", [NonLocalBlocks(), Filters()], ids=["non_local", "filter"])
def test_half_precision_stays(change):
    module = At("conv_input" if isinstance(change, Filters) else "stage_output", change)
    x = jnp.asarray(maps(0, 1, 3, 4, 6), jnp.bfloat16)
    value = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x)[0])
    assert value.dtype == jnp.bfloat16


def test_its_row_names_the_blocks_and_the_attack():
    config = config_lib.default()
    assert methods.title("denoise", config.denoise) == "feature denoising (non-local blocks, clean images alone)"
    config.denoise.update({"stages": (2, 3), "attack_steps": 1})
    parts = "non-local blocks after stages 2, 3, FGSM at 2/255"
    assert methods.title("denoise", config.denoise) == f"feature denoising ({parts})"
    config.denoise.block = "filter"
    assert methods.title("denoise", config.denoise) == "feature denoising (3x3 filters, FGSM at 2/255)"
    assert METHODS["denoise"].network(config.denoise) == Filters()
