"""VGG-16's names and sizes; its values are tested in the networks that have it."""

import jax
import jax.numpy as jnp
import pytest

from cprl_jax.models.torch_names import TorchNames, torch_shape
from cprl_jax.models.vgg import VGG16, torch_rules


@pytest.mark.parametrize(("last_pool", "map_size"), [(True, (1, 2)), (False, (2, 4))])
def test_names_and_shapes_are_torchvision_s(torch_vgg16, last_pool, map_size):
    module = VGG16(last_pool=last_pool)
    images = jnp.zeros((1, 32, 71, 3))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), images, False))
    names = TorchNames(rules=torch_rules("features"))
    ours = {
        names.key([key.key for key in path]): torch_shape(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    }
    state = torch_vgg16(last_pool).state_dict()
    assert ours == {f"features.{name}": tuple(tensor.shape) for name, tensor in state.items()}
    assert jax.eval_shape(lambda v: module.apply(v, images, False), variables).shape == (1, *map_size, 512)
