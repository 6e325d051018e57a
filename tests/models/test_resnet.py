"""ResNets against a torch build of the same layers, by way of saved torch weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.models.resnet import ResNet, ResNetScore

IMAGES = np.random.default_rng(0).uniform(size=(2, 64, 70, 3)).astype(np.float32)


def torch_scores(network, images):
    import torch

    with torch.no_grad():
        return network(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("backbone", "mean", "std"),
    [
        ("resnet18", 50.0, 20.0),
        pytest.param("resnet34", 0.0, 1.0, marks=pytest.mark.slow),
        pytest.param("resnet50", -3.0, 0.5, marks=pytest.mark.slow),  # the trunk of HyperIQA's test
    ],
)
def test_scores_and_parameter_counts_are_torch_s(torch_network, loaded, backbone, mean, std):
    network = torch_network(f"resnet-{backbone}")
    # The head of a torch file is rescaled: its scores come out whatever the scale of the configuration.
    module, variables = loaded(network, "resnet", 64, backbone=backbone, score_mean=mean, score_std=std)
    assert (module.score_mean, module.score_std) == (mean, std)
    scores = jax.jit(models.score_fn(module, variables))(IMAGES)
    assert scores.shape == (2,) and scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, torch_scores(network, IMAGES), rtol=1e-4, atol=1e-4)
    assert count(variables["params"]) == sum(parameter.numel() for parameter in network.parameters())
    assert count(variables["batch_stats"]) == sum(b.numel() for b in network.buffers() if b.ndim)


@pytest.mark.slow
def test_training_mode_normalises_by_the_batch_and_updates_the_running_statistics(torch_network, loaded):
    network = torch_network("resnet-resnet18")
    module, variables = loaded(network, "resnet", 64)
    train = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))
    scores, updated = train(variables, IMAGES)
    before = {name: buffer.clone().numpy() for name, buffer in network.named_buffers()}
    expected = torch_scores(network.train(), IMAGES)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)  # two images: small differences grow
    after = {name: buffer.numpy() for name, buffer in network.named_buffers()}

    ours = updated["batch_stats"]["backbone"]["bn1"]
    np.testing.assert_allclose(ours["mean"], after["bn1.running_mean"], rtol=1e-4, atol=1e-5)
    pixels = 2 * 32 * 35
    change = (after["bn1.running_var"] - 0.9 * before["bn1.running_var"]) * (pixels - 1) / pixels  # ours is biased
    np.testing.assert_allclose(ours["var"], 0.9 * before["bn1.running_var"] + change, rtol=1e-4)


@pytest.mark.slow
def test_images_do_not_see_each_other_in_evaluation(getkey, random_variables):
    module = ResNetScore("resnet18")
    score = jax.jit(models.score_fn(module, random_variables(module)))
    images = jax.random.uniform(getkey(), (3, 32, 32, 3))
    others = images.at[1:].set(jax.random.uniform(getkey(), (2, 32, 32, 3)))
    np.testing.assert_array_equal(score(images)[0], score(others)[0])


@pytest.mark.slow
def test_gradients_of_training_are_finite_at_flat_images(random_variables):
    module = ResNetScore("resnet18", dropout=0.5)
    variables = random_variables(module)
    images = jnp.concatenate([jnp.full((1, 32, 32, 3), value) for value in (0.0, 0.5, 1.0)])

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


def test_bfloat16_is_for_the_trunk_s_computation_alone():
    """Its numbers are checked with SqueezeNet, which is quicker."""
    images = jnp.zeros((2, 32, 32, 3))
    module = ResNetScore("resnet18", dtype=jnp.bfloat16)
    scores, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), images))
    assert scores.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    trunk = ResNet("resnet18", dtype=jnp.bfloat16)
    maps, _ = jax.eval_shape(lambda: trunk.init_with_output(jax.random.key(0), images, train=False))
    assert [(stage.dtype, stage.shape) for stage in maps] == [
        (jnp.bfloat16, (2, 8 >> stage, 8 >> stage, 64 << stage)) for stage in range(4)
    ]


def test_unknown_architecture():
    with pytest.raises(ValueError, match="'resnet101'; allowed: resnet18, resnet34, resnet50"):
        ResNet("resnet101").init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
