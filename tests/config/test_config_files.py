"""The files of configs/, and every command of the docs with one of them: parsed, checked, and their networks traced."""

import functools
import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import config_flags

from cprl_jax import models
from cprl_jax.config import checks, command_line, defaults
from cprl_jax.experiments.causal_iqa.presets import BACKBONES
from cprl_jax.training import setup

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.name for path in (ROOT / "configs").glob("*.py") if path.stem != "fine_tune"
)  # that one needs a run
PAGES = [*(ROOT / "configs").glob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
RESNETS = models.NETWORKS["resnet"].variants
OTHERS = tuple(name for name in models.NETWORKS if name != "resnet")
VARIANTS = [
    *(f"livec.py:backbone={backbone},schedule={s}" for backbone in (*RESNETS, *OTHERS) for s in ("paper", "short")),
    *(f"causal_iqa.py:backbone={backbone}" for backbone in BACKBONES),
    *(f"causal_iqa.py:reduction={reduction}" for reduction in ("tsne", "pca", "none")),
    "leave_one_out.py:dataset=tid2013,clusters=3,content=false,levels=true",
    "causal_iqa_quickstart.py:updates=cis,seeds=2,steps=3",
    "perceptual_attack.py:models=ma19+brisque,fidelities=lpips+dists,size=short",
]


def documented():
    """The arguments of every command in the docs, in their order, each once."""
    found = {}
    for page in PAGES:
        if page.name == "extending.md":  # its own test executes it, with the files that it adds
            continue
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command in re.findall(r"-m cprl_jax\.main (--config=configs/[^\n`]*)", text):
            arguments = [word for word in shlex.split(command, comments=True) if word != "..."]
            if "configs/fine_tune.py" not in arguments[0]:
                found[" ".join(arguments)] = arguments
    return found


COMMANDS = documented()


def parsed(*arguments):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["main", *arguments])  # where config_flags looks for overrides
        return command_line.parse(values, sys.argv, usage="")[0]


@functools.cache
def trace(module, train_size, test_size):
    """Scores of a network in training and in evaluation mode, without computing them."""
    keys = dict.fromkeys(("params", "mask", "dropout", "change"), jax.random.key(0))

    def score(variables, size, train):
        return module.apply(variables, jnp.zeros((2, size, size, 3)), train=train, rngs=keys, mutable=["batch_stats"])[
            0
        ]

    variables = jax.eval_shape(lambda: module.init(keys, jnp.zeros((1, train_size, train_size, 3))))
    for size, train in ((train_size, True), (test_size, False)):
        scores = jax.eval_shape(functools.partial(score, size=size, train=train), variables)
        assert (scores.shape, scores.dtype) == ((2,), jnp.float32)


def check(config):
    checks.validate(config)
    if config.job == "perceptual_attack":  # its other models are trained ones, and BRISQUE
        for name in set(config.perceptual.models) & set(models.NETWORKS):
            model = defaults.default().model
            model.name = name
            trace(models.create(model), 64, 64)
    elif config.job in ("causal_iqa", "leave_one_out"):
        trace(models.create(config.model), config.train.crop_size, config.evaluation.crop_size)
    else:
        for method in config.methods:
            trace(setup.create_model(config, method), setup.crop_size(config, method), config.evaluation.crop_size)


@pytest.mark.parametrize("file", FILES)
def test_a_file(file):
    check(parsed(f"--config=configs/{file}"))


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_documented_command(number):
    check(parsed(*list(COMMANDS.values())[number]))


def test_the_commands_are_found():
    used = {re.match(r"--config=configs/(\w+\.py)", command)[1] for command in COMMANDS}
    assert used >= set(FILES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_argument(variant):
    check(parsed(f"--config=configs/{variant}"))
