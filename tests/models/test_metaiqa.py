"""MetaIQA's network against a torch build of the same layers, by way of saved torch weights."""

import flax
import jax
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.models.metaiqa import PReLU

torch = pytest.importorskip("torch")

IMAGES = np.random.default_rng(0).uniform(size=(2, 64, 64, 3)).astype(np.float32)


@pytest.mark.slow  # its trunk is that of test_resnet.py
def test_scores_and_parameter_counts_are_torch_s(torch_network, loaded):
    network = torch_network("metaiqa-resnet18")
    with torch.no_grad():
        expected = network(torch.tensor(IMAGES.transpose(0, 3, 1, 2))).numpy()
    module, variables = loaded(network, "metaiqa", 64, score_mean=0.0, score_std=100.0)
    scores = jax.jit(models.score_fn(module, variables))(IMAGES)
    np.testing.assert_allclose(scores, 100.0 * expected, rtol=1e-4)
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert counted == sum(parameter.numel() for parameter in network.parameters())
    assert set(variables["params"]["backbone"]) == {"resnet", "fc"}  # all that the lower learning rate is for


@pytest.mark.slow
def test_training_mode_normalises_by_the_batch_in_the_head_too(torch_network, loaded):
    network = torch_network("metaiqa-resnet18")
    module, variables = loaded(network, "metaiqa", 64, score_mean=0.0, score_std=100.0)
    images = np.random.default_rng(1).uniform(size=(4, 64, 64, 3)).astype(np.float32)
    train = jax.jit(lambda variables, images: module.apply(variables, images, train=True, mutable=["batch_stats"]))
    scores, updated = train(variables, images)
    with torch.no_grad():
        expected = network.train()(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(scores, 100.0 * expected, rtol=1e-3)
    for number, norm in ((1, network.net.bn1), (2, network.net.bn2)):
        np.testing.assert_allclose(
            updated["batch_stats"][f"bn{number}"]["mean"], norm.running_mean, rtol=1e-3, atol=1e-4
        )


def test_dropout_is_on_in_training_alone(config_model, random_variables):
    module = models.create(config_model("metaiqa", dropout=0.5))
    variables = random_variables(module, 64)
    jax.eval_shape(lambda: module.apply(variables, IMAGES))
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):  # there is no key for it
        jax.eval_shape(lambda: module.apply(variables, IMAGES, train=True, mutable=["batch_stats"]))


def test_a_classifier_of_torchvision_fits(torch_network, loaded):
    network = torch_network("metaiqa-resnet18").resnet_layer
    _, variables = loaded(network, "metaiqa", 64)
    np.testing.assert_array_equal(variables["params"]["backbone"]["fc"]["kernel"], network.fc.weight.detach().T)


def test_prelu_is_torch_s(getkey):
    x = jax.random.normal(getkey(), (3, 5))
    expected = torch.nn.PReLU()(torch.tensor(np.asarray(x))).detach()
    np.testing.assert_allclose(PReLU().apply(PReLU().init(getkey(), x), x), expected, rtol=1e-6)
