"""SqueezeNet against a torch build of the same layers, and with the published Caffe weights where they are at hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

from cprl_jax import models
from cprl_jax.models.common import IMAGENET
from cprl_jax.models.squeezenet import SqueezeNetScore, SqueezeNetTrunk

CAFFE = Path(__file__).parents[2].parent / "shared" / "data" / "weights" / "squeezenet11_notop_caffe_bgr.npz"


def trunk_maps(variables, images, **options):
    trunk = {collection: tree["backbone"] for collection, tree in variables.items()}
    return jax.jit(lambda images: SqueezeNetTrunk(**options).apply(trunk, images, False))(images)


def caffe_weights(generator):
    """Random weights by the names of the published file."""
    trunk = jax.eval_shape(lambda: models.initialize(SqueezeNetScore(), jax.random.key(0), 32))["params"]["backbone"]
    flat = {"/".join(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(trunk)}
    names = {name.replace("/kernel", "/w").replace("/bias", "/b"): shape for name, shape in flat.items()}
    return {name: generator.normal(size=shape, scale=0.1).astype(np.float32) for name, shape in names.items()}


@pytest.fixture
def load(tmp_path, config_model, random_variables):
    """Variables with the weights of a file, or of a dict that is first saved as one."""

    def from_file_or_dict(weights):
        path = weights
        if isinstance(weights, dict):
            path = tmp_path / "weights.npz"
            np.savez(path, **weights)
        variables = random_variables(SqueezeNetScore())
        return models.load_weights(variables, path, config_model=config_model("squeezenet"))

    return from_file_or_dict


@pytest.mark.sampled
@pytest.mark.parametrize("size", [(64, 64), (67, 50), (17, 18)])
def test_maps_are_torch_s(torch_network, loaded, size):
    import torch

    network = torch_network("squeezenet")
    images = np.random.default_rng(0).uniform(size=(2, *size, 3)).astype(np.float32)
    normalized = np.array(IMAGENET.normalize(jnp.asarray(images))).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = network(torch.tensor(normalized))
    _, variables = loaded(network, "squeezenet", 64)
    for ours, theirs in zip(trunk_maps(variables, images), expected, strict=True):
        theirs = theirs.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["backbone"]))
    assert counted == sum(parameter.numel() for parameter in network.features.parameters()) == 722_496


def test_caffe_input_convention(load):
    """RGB in [0, 1] through the turned first kernel is what BGR in 0..255 minus the means is to the published one."""
    weights = caffe_weights(np.random.default_rng(0))
    images = np.random.default_rng(1).uniform(size=(1, 20, 20, 3)).astype(np.float32)
    bgr = images[..., ::-1] * 255 - np.array([103.939, 116.779, 123.68], np.float32)
    patches = np.lib.stride_tricks.sliding_window_view(bgr[0], (3, 3), axis=(0, 1))[::2, ::2].transpose(0, 1, 3, 4, 2)
    expected = patches.reshape(9, 9, 27) @ weights["conv1/w"].reshape(27, 64) + weights["conv1/b"]
    maps = trunk_maps(load(weights), images)
    np.testing.assert_allclose(maps[0][0], np.maximum(expected, 0), rtol=1e-4, atol=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(not CAFFE.exists(), reason="the published weights are not here")
def test_published_caffe_weights(load):
    variables = load(CAFFE)
    photographs = [data.astronaut()[:224, 100:324], data.coffee()[100:324, 100:324]]
    images = np.stack(photographs).astype(np.float32) / 255
    maps = trunk_maps(variables, images)
    assert [stage.shape for stage in maps] == [(2, 111, 111, 64), (2, 55, 55, 128), (2, 27, 27, 256), (2, 13, 13, 512)]
    for stage in maps:
        assert np.isfinite(stage).all() and (stage >= 0).all()
        alive = np.asarray(stage).max(axis=(0, 1, 2)) > 0
        assert alive.mean() > 0.9  # random input would leave far fewer
    scores = jax.jit(models.score_fn(SqueezeNetScore(), variables))(images)
    assert np.isfinite(scores).all()


@pytest.mark.slow
def test_training_fixes_the_spread_of_the_scores_at_the_start(getkey):
    """Whatever the scale of the trunk's features, the first scores are near the mean and not all the same."""
    module = SqueezeNetScore(score_mean=50.0, score_std=20.0, pooled_stages=(0, 1, 2, 3))
    variables = models.initialize(module, getkey(), 32)
    variables["batch_stats"]["backbone"]["input"]["std"] /= 255.0  # features of a large scale, as Caffe's
    images = jax.random.uniform(getkey(), (8, 32, 32, 3)) * jnp.linspace(0.1, 1.0, 8).reshape(8, 1, 1, 1)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))
    scores, updated = apply(variables, images)
    assert 0.1 < np.std(scores) < 10 and abs(np.mean(scores) - 50) < 5
    after = jax.jit(models.score_fn(module, {**variables, **updated}))(images)
    np.testing.assert_allclose(after, scores, rtol=1e-4)


@pytest.mark.slow
def test_gradients_are_finite_also_at_flat_images(getkey, random_variables):
    module = SqueezeNetScore(pooled_stages=(0, 3), dropout=0.2)
    variables = random_variables(module)
    images = jax.random.uniform(getkey(), (3, 32, 32, 3)).at[0].set(0.0).at[1].set(0.5)

    def total(params, images):
        scores, _ = module.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jnp.sum(scores)

    gradients = jax.jit(jax.grad(total, (0, 1)))(variables["params"], images)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients[1][2]).max() > 0


@pytest.mark.slow
def test_bfloat16_computes_near_float32(getkey, random_variables):
    images = jax.random.uniform(getkey(), (2, 32, 32, 3))
    variables = random_variables(SqueezeNetScore())
    expected, scores = (
        jax.jit(models.score_fn(SqueezeNetScore(), variables, dtype=dtype))(images) for dtype in ("float32", "bfloat16")
    )
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, expected, atol=0.1 * np.abs(expected).max())
    assert not np.array_equal(scores, expected)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, 16, "at least 17x17 pixels, got 16x16"),
        ({"pooled_stages": (4,)}, 32, r"\(4,\): give at least one of 0, 1, 2, 3"),
        ({"pooled_stages": ()}, 32, "at least one of 0, 1, 2, 3"),
        ({"statistics": ("median",)}, 32, "at least one of mean, std"),
    ],
)
def test_refusals(options, size, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(SqueezeNetScore(**options).init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
