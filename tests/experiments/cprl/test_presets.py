"""What configs/defences.py and configs/tables.py set."""

import pytest

from cprl_jax.config import checks
from cprl_jax.evaluation.table_attacks import ATTACKS
from cprl_jax.experiments.cprl import presets
from cprl_jax.methods import METHODS, title
from cprl_jax.models import NETWORKS
from cprl_jax.runtime.errors import UserError
from cprl_jax.training.setup import total_steps


def test_every_defence_is_compared_under_every_attack():
    config = presets.defences(None)
    checks.validate(config)
    assert set(config.methods) == {name for name in presets.DEFENCES if name in METHODS}
    assert set(config.evaluation.attacks) == {name for name in presets.ATTACKED if name in ATTACKS}
    assert config.evaluation.radii == (1.0, 2.0) and config.dataset.name == "own"
    assert (config.model.name, config.model.weights) == ("efficientnet_lite", "imagenet")
    assert presets.defences("methods=plain+nt").methods == ("plain", "nt")
    assert set(presets.defences("methods=core").methods) <= set(config.methods)


def test_rivals_have_the_start_and_the_length_of_cprl():
    config = presets.defences("network=squeezenet")
    gradients = {}
    for name in (name for name in config.methods if config[name].as_long_as):
        assert config[name].start_from == "plain"
        pixels = (config[name].crop_size or config.train.crop_size) ** 2
        batch = config[name].batch_size or config.train.batch_size
        work = METHODS[name].gradients(config[name]) * batch * pixels
        gradients[name] = total_steps(config, name, images=100) * work
        theirs = config.cprl.steps * METHODS["cprl"].gradients(config.cprl) * config.train.batch_size
        theirs *= config.train.crop_size**2
        assert abs(gradients[name] - theirs) <= work, "to one step"
    assert {"plain_longer", "at", "nt", "sort_mask"} <= set(gradients)


def test_sort_mask_alone_is_plain_training_of_the_masked_network():
    config = presets.defences("network=squeezenet")
    assert title("sort_mask", config.sort_mask) == "plain training (with SortMask)"
    assert METHODS["sort_mask"].loss is METHODS["plain"].loss
    assert METHODS["sort_mask"].gradients(config.sort_mask) == METHODS["plain"].gradients(config.plain)


@pytest.mark.parametrize("table", [3, 4, 5, 6])
@pytest.mark.parametrize("network", ["hyperiqa", "squeezenet", "efficientnet_lite", "resnet18"])
def test_every_table_on_every_kind_of_network(table, network):
    config = presets.paper_table(f"table={table},network={network},dataset=vcl")
    checks.validate(config)
    assert config.job == "paper_table" and set(presets.PRINTED[table]) <= set(config.evaluation.attacks)
    assert (config.model.name in NETWORKS) and (config.train.epochs, config.dataset.name) == (16, "vcl")
    assert config.model.nima.output == "scalar"
    assert (config.cprl.start_from == "plain") == (network in presets.SMALL)


def test_a_mistake_is_named():
    with pytest.raises(UserError, match="unknown method 'crpl'"):
        presets.defences("methods=plain+crpl")
    with pytest.raises(UserError, match="network is one of"):
        presets.defences("network=vgg")
