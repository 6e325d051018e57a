"""The files of configs/, and every command of the docs with one of them: parsed, checked, and their networks traced."""

import ast
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
from cprl_jax.training import setup

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.name for path in (ROOT / "configs").glob("*.py") if path.stem != "fine_tune"
)  # that one needs a run
PAGES = [*(ROOT / "configs").glob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
RESNETS = models.NETWORKS["resnet"].variants
OTHERS = tuple(name for name, network in models.NETWORKS.items() if name != "resnet" and network.fit is None)
QUICK = ("hyperiqa", "resnet18", "squeezenet")  # to trace
VARIANTS = [
    *(f"livec.py:backbone={backbone},schedule={schedule}" for backbone in QUICK for schedule in ("paper", "short")),
    *(f"causal_iqa.py:backbone={backbone}" for backbone in ("resnet18", "squeezenet")),
    *(f"causal_iqa.py:reduction={reduction}" for reduction in ("tsne", "pca", "none")),
    "leave_one_out.py:dataset=tid2013,clusters=3,content=false,levels=true",
    "causal_iqa_quickstart.py:updates=cis,seeds=2,steps=3",
    "perceptual_attack.py:models=ma19+brisque,fidelities=lpips+dists,size=short",
    *(
        pytest.param(f"{file}:backbone={backbone}", marks=pytest.mark.slow)
        for file, backbones in (("livec.py", (*RESNETS, *OTHERS)), ("causal_iqa.py", RESNETS))
        for backbone in backbones
        if backbone not in QUICK
    ),
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
def trace(module, size):
    """The variables of a network and its scores, without computing them."""
    keys = dict.fromkeys(("params", "change"), jax.random.key(0))
    scores, _ = jax.eval_shape(lambda: module.init_with_output(keys, jnp.zeros((2, size, size, 3))))
    assert (scores.shape, scores.dtype) == ((2,), jnp.float32)


def check(config):
    checks.validate(config)
    if config.job == "perceptual_attack":  # its other models are trained ones, and BRISQUE
        for name in set(config.perceptual.models) & set(models.NETWORKS) - {"brisque"}:
            model = defaults.default().model
            model.name = name
            trace(models.create(model), 64)
        return
    causal = config.job in ("causal_iqa", "leave_one_out")
    method = config.methods[-1]  # the one with SortMask, by default
    module = models.create(config.model) if causal else setup.create_model(config, method)
    for size in (setup.crop_size(config, method), config.evaluation.crop_size):
        trace(module, size)


@pytest.mark.parametrize("file", FILES)
def test_a_file(file):
    assert ast.get_docstring(ast.parse((ROOT / "configs" / file).read_text(encoding="utf-8")))
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
