"""Configurations: what every file of configs/ promises, and one-line errors for what is wrong."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import config_flags

from cprl_jax import models
from cprl_jax.config import checks as config_checks
from cprl_jax.config import command_line, presets
from cprl_jax.config import defaults as config_lib
from cprl_jax.config.fields import ALL, group_of
from cprl_jax.evaluation.table_attacks import ATTACKS
from cprl_jax.methods import METHODS
from cprl_jax.models import NETWORKS
from cprl_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fine_tuning_goes_on_with_the_network_of_a_run(tmp_path):
    source = presets.cprl_experiment("koniq", "backbone=resnet18")
    source.train.crop_size = 160
    (tmp_path / "config.json").write_text(config_lib.to_json(source))
    get_config = load(ROOT / "configs" / "fine_tune.py").get_config
    argument = f"run={tmp_path},dataset=livec"
    with pytest.raises(UserError, match="weights.npz is not there: the training of cprl"):
        get_config(argument)
    (tmp_path / "cprl").mkdir()
    (tmp_path / "cprl" / "weights.npz").touch()
    config = get_config(argument)
    config_checks.validate(config)
    assert (config.model.name, config.model.backbone, config.train.crop_size) == ("resnet", "resnet18", 160)
    module = models.create(config.model)
    scores, _ = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, 160, 160, 3))))
    assert scores.shape == (1,)
    assert (config.dataset.name, config.model.weights) == ("livec", str(tmp_path / "cprl" / "weights.npz"))
    assert config.plain.sort_mask, "as the network that is fine-tuned"
    for wrong, message in (
        ("dataset=livec", "run is missing"),
        (f"{argument},from=at", "'at' was not trained"),
        (f"run={tmp_path}/none,dataset=livec", "not the folder of a run"),
    ):
        with pytest.raises(UserError, match=message):
            get_config(wrong)


@pytest.mark.parametrize("backbone", ["hyperiqa", "resnet18", "squeezenet"])
@pytest.mark.parametrize("schedule", ["paper", "short"])
def test_arguments_of_the_paper_experiment(backbone, schedule):
    config = presets.cprl_experiment("livec", f"backbone={backbone},schedule={schedule},methods=plain+cprl+at")
    config_checks.validate(config)
    assert config.methods == ("plain", "cprl", "at")
    assert (config.train.crop_size == 224) == (schedule == "paper" or backbone == "hyperiqa")


def test_the_paper_schedule_is_the_printed_one():
    config = presets.cprl_experiment("livec", None)
    assert (config.model.name, config.model.backbone) == ("hyperiqa", "")  # its usual trunk, ResNet-50
    assert (config.train.batch_size, config.train.crop_size, config.evaluation.crops) == (16, 224, 25)
    assert (config.train.backbone_learning_rate, config.train.head_learning_rate) == (2e-5, 2e-4)
    assert (config.cprl.direction_steps, config.cprl.alpha_law, config.cprl.relative) == (1, "uniform", False)
    assert config.model.sort_mask.rate == 0.1
    assert models.create(config.model).sort_mask.min_channels == 128
    assert config.cprl.sort_mask and not config.plain.sort_mask
    assert config.evaluation.radii == (0.5, 1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("bckbone=resnet18", "unknown key 'bckbone'.*did you mean 'backbone'"),
        ("backbone=vgg", "backbone is one of .*squeezenet"),
        ("backbone", "key=value"),
        ("backbone=resnet18,backbone=resnet34", "twice"),
        ("methods=plain+crpl", "unknown method 'crpl'.*did you mean 'cprl'"),
        ("methods=plain+plain", "each method once"),
    ],
)
def test_a_wrong_argument_is_named(argument, message):
    with pytest.raises(UserError, match=message):
        presets.cprl_experiment("livec", argument)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("job", "trian", "config.job is 'trian'.*did you mean 'train'"),
        ("dataset.name", "koniq10k", "did you mean 'koniq'"),
        ("model.name", "vgg", "hyperiqa"),
        ("train.batch_size", 0, "config.train.batch_size is 0; it must be at least 1"),
        ("train.ema_decay", 1.0, "below 1"),
        ("model.sort_mask.rate", float("nan"), "config.model.sort_mask.rate is nan"),
        ("evaluation.attacks", ("fgms",), "names 'fgms' .did you mean 'fgsm'"),
        ("evaluation.radii", (0.0, 1.0), r"config.evaluation.radii is .*above 0 and at most 255 \(1/255\)"),
        ("cprl.start_from", "plian", "config.cprl.start_from is 'plian'"),
        ("evaluation.baseline", "nt", "config.evaluation.baseline is 'nt'; it is one of config.methods"),
        ("plain_longer.as_long_as", "crpl", "'crpl' .did you mean 'cprl'"),
        ("plain_longer.as_long_as", "plain_longer", "another method"),
        ("evaluation.radii", ("a",), r"config.evaluation.radii is \('a',\); it may hold numbers, as in \(0.5,\)"),
        ("evaluation.radii", (None,), r"radii is \(None,\); it may hold numbers"),
        ("evaluation.radii", (True,), r"radii is \(True,\); it may hold numbers"),
        ("evaluation.radii", 2.0, r"radii is 2.0; it may hold numbers"),
        ("evaluation.radii", (), "radii is .*, but config.evaluation.attacks names fgsm, pgd; name a radius"),
        ("evaluation.radii", (1.0, 1.0000001), "name each radius once"),
        ("train.scales", (), r"train.scales is \(\); name at least one"),
        ("train.scales", (1.0, 1.0), "and each once"),
        ("train.scales", (1.0, 0.0), "above 0"),
        ("evaluation.datasets", (3,), r"config.evaluation.datasets is \(3,\); it may hold texts"),
        ("perceptual.models", (3,), r"config.perceptual.models is \(3,\)"),
        ("evaluation.universal.sources", (1,), r"config.evaluation.universal.sources is \(1,\)"),
        ("model.sort_mask.stages", ("a",), "stages is .*numbers"),
        ("train.backbone_learning_rate", float("inf"), "it must be a finite number"),
        ("train.crop_size", 1, "config.train.crop_size is 1; squeezenet needs at least 17"),
        ("evaluation.crop_size", 16, "config.evaluation.crop_size is 16; squeezenet needs at least 17"),
        ("cprl.crop_size", 8, "config.cprl.crop_size is 8; squeezenet needs at least 17"),
        ("model.name", "hyperiqa", "config.train.crop_size is 96; hyperiqa needs at least 221"),
        ("evaluation.landscape_points", 10, "landscape_points is 10; it must be odd and at least 3, or 0"),
        ("evaluation.landscape_points", 1, "odd"),
        ("methods", ("cprl",), "start_from is 'plain'.*add it there"),
    ],
)
def test_a_wrong_value_is_named(field, value, message):
    config = presets.cprl_experiment("livec", "backbone=squeezenet")
    *parents, last = field.split(".")
    with config.ignore_type():
        (config_checks.lookup(config, ".".join(parents)) if parents else config)[last] = value
    with pytest.raises(UserError, match=message):
        config_checks.validate(config)


def outside(field):
    """Values that a field does not allow, one for each of its bounds."""
    if field.choices:
        yield "no such choice"
    for bound, step in ((field.at_least, -1), (field.above, 0), (field.at_most, 1), (field.below, 0)):
        if bound is not None and not (field.zero and bound + step == 0):
            yield type(bound)(bound + step)


@pytest.mark.parametrize("name", ALL)
def test_every_bound_that_is_declared_is_checked(name):
    field, config = ALL[name], config_lib.default()
    *parents, last = name.split(".")
    block = config_checks.lookup(config, ".".join(parents)) if parents else config
    for value in outside(field):
        with config.ignore_type():
            block[last] = (value,) if isinstance(field.default, tuple) else value
        with pytest.raises(UserError, match=r"unknown method" if name == "methods" else rf"config\.{name}"):
            config_checks.validate(config)


def test_a_field_that_there_is_not_is_named():
    config = presets.cprl_experiment("livec", "backbone=squeezenet")
    with config.unlocked():
        config.train.stepps = 3
    with pytest.raises(UserError, match=r"config\.train\.stepps is no field .*did you mean 'train\.steps'"):
        config_checks.validate(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [("at.weight", 1.5), ("cprl.epsilon", 0.0), ("train.huber_delta", 0.0), ("train.correlation_weight", -1.0)],
)
def test_what_no_training_can_mean_is_refused(name, value):
    config = config_lib.default()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=rf"config\.{name} is {value}"):
        config_checks.validate(config)


@pytest.mark.parametrize(("name", "value"), [("train.frozen", ("stem",)), ("train.scales", (1.0, 0.5))])
def test_what_causal_iqa_would_ignore_is_refused(name, value):
    config = config_lib.default()
    config.update_from_flattened_dict({name: value})
    config_checks.validate(config)
    config.job = "causal_iqa"
    with pytest.raises(UserError, match=r"config\.train\.frozen and config\.train\.scales have no effect"):
        config_checks.validate(config)


def test_a_field_belongs_to_one_group():
    assert {group_of(name) for name in ALL} == {"trains", "judges", "places"}
    for name, group in (
        ("evaluation.mid", "trains"),
        ("evaluation.crop_size", "trains"),
        ("evaluation.radii", "judges"),
        ("at.epsilon", "trains"),
        ("dataset.manual_dir", "places"),
    ):
        assert group_of(name) == group


def test_another_mid_is_another_training(tmp_path):
    config = config_lib.default()
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    config.evaluation.radii, config.dataset.manual_dir = (1.0,), "elsewhere"
    config_lib.check_same_run(tmp_path / "config.json", config)
    config.evaluation.mid = 40.0
    with pytest.raises(UserError, match=r"another configuration \(evaluation.mid: 50.0 -> 40.0\)"):
        config_lib.check_same_run(tmp_path / "config.json", config)


BROKEN = (
    "cut",
    "methods",
    "no methods",
    "unknown method",
    "radii",
    "block",
    "no model",
    "no evaluation",
    "below a bound",
)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "null", "3", *BROKEN])
def test_a_broken_config_of_a_run_is_named(tmp_path, text):
    whole = json.loads(config_lib.to_json(config_lib.default()))
    broken = {
        "cut": json.dumps(whole)[:200],
        "methods": json.dumps(whole | {"methods": "plain"}),
        "radii": json.dumps(whole | {"evaluation": {"radii": [None]}}),
        "block": json.dumps(whole | {"train": 3}),
        "no methods": json.dumps(whole | {"methods": []}),
        "unknown method": json.dumps(whole | {"methods": ["magic"]}),
        "no model": json.dumps(whole | {"model": {}}),
        "no evaluation": json.dumps(whole | {"evaluation": {}}),
        "below a bound": json.dumps(whole | {"dataset": whole["dataset"] | {"resize": -5}}),
    }
    (tmp_path / "config.json").write_text(broken.get(text, text))
    with pytest.raises(UserError, match=r"config\.json is damaged .*; put back a copy, or give another") as caught:
        config_lib.read_config(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        config_lib.check_same_run(tmp_path / "config.json", config_lib.default())


@pytest.mark.parametrize("name", ALL)
def test_every_default_has_its_type_also_as_json(name):
    ALL[name].check_type(name, json.loads(json.dumps(ALL[name].default)))


def test_json_round_trip_and_differences():
    config = config_lib.default()
    old = json.loads(config_lib.to_json(config))
    config.train.steps, config.cprl.epsilon = 7, 3.0
    new = json.loads(config_lib.to_json(config))
    assert config_lib.differences(old, old) == []
    assert config_lib.differences(old, new) == ["cprl.epsilon: 2.0 -> 3.0", "train.steps: 0 -> 7"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"--config={ROOT}/configs/quickstart.py:metods=plain"], "did you mean 'methods'"),
        ([f"--config={ROOT}/configs/quickstart.py", "--config.train.stps=3"], "stps"),
        ([f"--config={ROOT}/configs/quickstart.py", "--config.train.steps=many"], "many"),
        ([f"--config={ROOT}/configs/quickstart.py", "--config.job=eval"], "train_and_evaluate"),
        (["--confg=configs/quickstart.py"], "confg"),
        ([f"--config={ROOT}/configs/quickstart.py", "runs"], "unexpected argument 'runs'"),
        ([], "--config=FILE is missing"),
    ],
)
def test_a_wrong_command_line_is_named(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main", *arguments])  # where config_flags looks for overrides
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    with pytest.raises(UserError, match=message) as caught:
        config, _ = command_line.parse(values, ["main", *arguments], usage="")
        config_checks.validate(config)
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_in_one_line_with_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "cprl_jax.main", "--config=configs/nope.py", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: there is no config file 'configs/nope.py'")
    assert not (tmp_path / "run").exists()


def test_what_a_config_of_an_earlier_version_lacks_has_its_default(tmp_path):
    whole = json.loads(config_lib.to_json(config_lib.default()))
    del whole["dataset"]["resize"], whole["evaluation"]["trust_images"], whole["perceptual"]
    (tmp_path / "config.json").write_text(json.dumps(whole))
    config = config_lib.default()
    assert config_lib.to_json(config_lib.read_config(tmp_path)) == config_lib.to_json(config)
    config_lib.check_same_run(tmp_path / "config.json", config)
    config.dataset.resize = 48
    with pytest.raises(UserError, match="dataset.resize: 0 -> 48"):
        config_lib.check_same_run(tmp_path / "config.json", config)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("def get_config(:", "line 1: invalid syntax"),
        ("def get_config(argument=None):\n    return 1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("\nimport nope", "line 2: ModuleNotFoundError: No module named 'nope'"),
    ],
    ids=["syntax", "division", "import"],
)
def test_a_mistake_in_a_configuration_is_told_with_its_place(tmp_path, text, where):
    (tmp_path / "file.py").write_text(text)
    command = [sys.executable, "-m", "cprl_jax.main", f"--config={tmp_path / 'file.py'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith(f"{tmp_path / 'file.py'}, {where}\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["value = 3", "# A page\n", "def get_config(:", "it's"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, monkeypatch, text):
    (tmp_path / "file.py").write_text(text)
    arguments = ["main", f"--config={tmp_path / 'file.py'}"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # another file of this process
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    with pytest.raises(UserError, match="--config names no configuration, a Python file with a function get_config"):
        command_line.parse(values, arguments, usage="")


def test_whole_numbers_fit_into_what_devices_count_in():
    for name, field in ALL.items():
        if type(field.default) is int and not field.choices:
            with pytest.raises(UserError, match=f"config.{name} is 9+; it must be "):
                field.check(f"config.{name}", 99999999999999999999)


def test_help_says_what_there_is():
    short, full = (command_line.help_text(every_field=value) for value in (False, True))
    for name in (*METHODS, *NETWORKS, *ATTACKS):
        assert f"\n  {name} " in short
    assert "train.ema_decay" not in short
    assert all(f"--config.{name}=" in full for name in ALL)


def test_radii_are_needed_where_they_are_used():
    config = config_lib.default()
    config.evaluation.radii = ()
    with pytest.raises(UserError, match=r"config.evaluation.radii is \(\)"):
        config_checks.validate(config)
    config.job = "causal_iqa"
    config_checks.validate(config)
