"""The names of torch files: ours must map one to one onto those of torch builds."""

import jax
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.models import torch_names


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("network", "backbone", "size"),
    [
        ("resnet", "resnet18", 32),
        ("resnet", "resnet50", 32),
        ("hyperiqa", "resnet34", 224),
        ("hyperiqa", "resnet50", 224),
        ("squeezenet", "", 32),
    ],
)
def test_names_and_shapes_are_those_of_a_torch_state_dict(torch_network, config_model, network, backbone, size):
    state = torch_network(f"{network}-{backbone}" if backbone else network).state_dict()
    theirs = {name: tuple(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}
    theirs = {name: shape for name, shape in theirs.items() if not name.startswith("classifier.")}
    module = models.create(config_model(network, backbone=backbone or "resnet18"))
    variables = jax.eval_shape(lambda: models.initialize(module, jax.random.key(0), size))
    ours = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = models.NETWORKS[network].torch_names.key([key.key for key in path[1:]])
        if name is not None:
            assert name not in ours
            ours[name] = torch_names.torch_shape(leaf.shape)
    assert ours == theirs


def test_layouts():
    kernel = np.arange(2 * 3 * 4 * 5).reshape(5, 4, 2, 3)  # OIHW
    assert torch_names.from_torch_layout(kernel).shape == (2, 3, 4, 5)
    assert torch_names.from_torch_layout(kernel)[1, 2, 3, 4] == kernel[4, 3, 1, 2]
    matrix = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(torch_names.from_torch_layout(matrix), matrix.T)
    np.testing.assert_array_equal(torch_names.from_torch_layout(matrix[0]), matrix[0])
    np.testing.assert_array_equal(torch_names.from_torch_layout(matrix, "cnn.1.gamma"), matrix)
    for array in (kernel, matrix, matrix[0]):
        assert torch_names.torch_shape(torch_names.from_torch_layout(array).shape) == array.shape


def test_classifiers():
    names = torch_names.TorchNames(rules=(), prefix="res.", classifier=("fc.",))
    assert names.is_classifier("fc.weight") and names.is_classifier("res.fc.weight")
    assert not names.is_classifier("fc1w_conv.bias")
    assert not torch_names.TorchNames(rules=()).is_classifier("fc.weight")
