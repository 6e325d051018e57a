"""HyperIQA against a torch build of the same layers, by way of saved torch weights."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.models.hyperiqa import HyperIQA, flatten_channels_first
from cprl_jax.runtime.errors import UserError

IMAGES = np.random.default_rng(0).uniform(size=(2, 224, 224, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("backbone", "mean", "std"), [("resnet18", 50.0, 20.0), pytest.param("resnet50", 0.0, 1.0, marks=pytest.mark.slow)]
)
def test_scores_and_parameter_counts_are_torch_s(torch_network, loaded, backbone, mean, std):
    import torch

    network = torch_network(f"hyperiqa-{backbone}")
    images = IMAGES[: 2 if backbone == "resnet18" else 1]
    with torch.no_grad():
        expected = network(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    module, variables = loaded(network, "hyperiqa", 224, backbone=backbone, score_mean=mean, score_std=std)
    assert (module.score_mean, module.score_std) == (mean, std)
    scores = jax.jit(models.score_fn(module, variables))(images)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert counted == sum(parameter.numel() for parameter in network.parameters())
    if backbone == "resnet50":
        assert counted == 27_375_369
    distortion_layers = {"lda1_pool", "lda2_pool", "lda3_pool", "lda1_fc", "lda2_fc", "lda3_fc", "lda4_fc"}
    assert set(variables["params"]["backbone"]) == {"resnet", *distortion_layers}


@pytest.mark.slow
def test_gradients_are_finite(random_variables):
    module = HyperIQA("resnet18")
    score = models.score_fn(module, random_variables(module, 224))
    image = jnp.asarray(IMAGES[:1]).at[:, :100].set(0.5)  # partly flat
    gradient = jax.jit(jax.grad(lambda image: score(image)[0]))(image)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_dropout_is_drawn_in_training_alone():
    """Abstractly: the rng stream is asked for exactly when it should be."""
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    for dropout, train, drawn in ((0.5, True, True), (0.5, False, False), (0.0, True, False)):
        module = HyperIQA("resnet18", dropout=dropout)
        variables = jax.eval_shape(module.init, jax.random.key(0), images)

        def apply(variables, images, module=module, train=train):
            return module.apply(variables, images, train=train, mutable=["batch_stats"])[0]

        if drawn:
            with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
                jax.eval_shape(apply, variables, images)
        else:
            assert jax.eval_shape(apply, variables, images).shape == (2,)


def test_flatten_channels_first(getkey):
    x = jax.random.normal(getkey(), (2, 3, 4, 5))
    expected = np.asarray(x).transpose(0, 3, 1, 2).reshape(2, -1)
    np.testing.assert_array_equal(flatten_channels_first(x), expected)


@pytest.mark.parametrize(
    ("size", "allowed"),
    [((224, 224), True), ((221, 223), True), ((220, 224), False), ((224, 225), False), ((96, 96), False)],
)
def test_sizes(size, allowed):
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    if allowed:
        jax.eval_shape(HyperIQA("resnet18").init, jax.random.key(0), images)
    else:
        with pytest.raises(UserError, match=rf"224x224 pixels .* got {size[0]}x{size[1]}.*config.train.crop_size"):
            jax.eval_shape(HyperIQA("resnet18").init, jax.random.key(0), images)
