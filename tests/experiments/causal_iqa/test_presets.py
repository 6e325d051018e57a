"""The configuration files of Causal-IQA: the paper's numbers, their arguments, and mistakes in them."""

import importlib.util
from pathlib import Path

import pytest

from cprl_jax.config import checks as config_checks
from cprl_jax.config.fields import UPDATES
from cprl_jax.runtime.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"


def load(name, argument=None):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument)
    config_checks.validate(config)
    return config


def test_settings_of_the_paper():
    config = load("causal_iqa")
    options = config.causal_iqa
    assert (config.job, config.dataset.name) == ("causal_iqa", "tid2013+kadid10k")
    assert (config.model.name, config.model.backbone, config.dataset.resize, config.train.crop_size) == (
        "metaiqa",
        "resnet18",
        256,
        224,
    )
    assert (options.clusters, options.dimensions, options.reduction, options.epochs) == (2, 10, "tsne", 100)
    assert (options.decay, options.decay_epochs, options.backbone_learning_rate, options.beta2) == (
        0.8,
        10,
        1e-4,
        0.9999,
    )
    assert tuple(config.evaluation.datasets) == ("cid2013", "livec", "koniq")
    assert tuple(options.updates) == UPDATES


def test_arguments():
    config = load("causal_iqa", "updates=cis,clusters=5,content=false,levels=true,train=tid2013,backbone=resnet50")
    options = config.causal_iqa
    assert (tuple(options.updates), options.clusters, options.content, options.levels) == (("cis",), 5, False, True)
    assert (config.dataset.name, config.model.backbone) == ("tid2013", "resnet50")
    config = load("causal_iqa", "train=own,backbone=squeezenet")
    assert (config.model.name, config.model.score_mean, config.train.crop_size) == ("squeezenet", 50.0, 160)
    config = load("leave_one_out", "dataset=tid2013,reduction=pca")
    assert (config.job, config.dataset.name, config.causal_iqa.reduction) == ("leave_one_out", "tid2013", "pca")
    config = load("causal_iqa_quickstart", "updates=erm+cip,seeds=3,steps=7")
    assert (config.job, config.causal_iqa.seeds, config.causal_iqa.meta_steps) == ("leave_one_out", 3, 7)
    assert len(config.causal_iqa.held_out) == 5


@pytest.mark.parametrize(
    "name, argument, said",
    [
        ("causal_iqa", "updates=cia", "updates names 'cia' .did you mean 'ci"),
        ("causal_iqa", "updates=erm+erm", "updates 'erm.erm': name each once"),
        ("causal_iqa", "clusters=6", "clusters is one of 1, 2, 3, 4, 5"),
        ("leave_one_out", "dataset=koniq", "dataset is one of kadid10k, tid2013"),
        ("causal_iqa_quickstart", "seeds=0", "seeds=0: it must be a whole number of at least 1"),
        ("causal_iqa_quickstart", "steps=x", "steps=x: it must be"),
    ],
)
def test_mistakes(name, argument, said):
    with pytest.raises(UserError, match=said):
        load(name, argument)
