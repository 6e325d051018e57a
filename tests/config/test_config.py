"""Configurations: what every file of configs/ promises, and one-line errors for what is wrong."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cprl_jax.config import checks as config_checks
from cprl_jax.config import defaults as config_lib
from cprl_jax.config import presets
from cprl_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem != "fine_tune")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid_and_documented(path):
    module = load(path)
    config_checks.validate(module.get_config())
    assert module.__doc__


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
    assert (config.train.crop_size == 224) == (schedule == "paper")


def test_the_paper_schedule_is_the_printed_one():
    config = presets.cprl_experiment("livec", None)
    assert (config.model.name, config.model.backbone) == ("hyperiqa", "resnet50")
    assert (config.train.batch_size, config.train.crop_size, config.evaluation.crops) == (16, 224, 25)
    assert (config.train.backbone_learning_rate, config.train.head_learning_rate) == (2e-5, 2e-4)
    assert (config.cprl.direction_steps, config.cprl.alpha_law, config.cprl.relative) == (1, "uniform", False)
    assert (config.model.sort_mask.rate, config.model.sort_mask.min_channels) == (0.1, 128)
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
        ("evaluation.attacks", ("fgms",), "'fgms'; allowed: fgsm, pgd"),
        ("evaluation.radii", (0.0, 1.0), "units of 1/255"),
        ("evaluation.crops", 26, "crops_drawn"),
        ("evaluation.trust_radius", 0.0, r"config.evaluation.trust_radius is 0.0; it must be in \(0, 255\]"),
        ("evaluation.landscape_extent", 300.0, "landscape_extent"),
        ("evaluation.landscape_points", 10, "landscape_points is 10; it must be odd and at least 3, or 0"),
        ("evaluation.landscape_points", 1, "odd"),
        ("evaluation.trust_images", -1, "trust_images is -1; it must be at least 0"),
        ("methods", ("cprl",), "start_from is 'plain'.*add plain"),
    ],
)
def test_a_wrong_value_is_named(field, value, message):
    config = presets.cprl_experiment("livec", "backbone=squeezenet")
    *parents, last = field.split(".")
    (config_checks.lookup(config, ".".join(parents)) if parents else config)[last] = value
    with pytest.raises(UserError, match=message):
        config_checks.validate(config)


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
        (["--config=configs/nope.py"], "there is no config file 'configs/nope.py'"),
        (["--config=configs/quickstart.py:metods=plain"], "did you mean 'methods'"),
        (["--config=configs/quickstart.py", "--config.train.stps=3"], "stps"),
        (["--config=configs/quickstart.py", "--config.train.steps=many"], "many"),
        (["--config=configs/quickstart.py", "--config.job=eval"], "train_and_evaluate"),
        (["--confg=configs/quickstart.py"], "confg"),
        (["--config=configs/quickstart.py", "runs"], "unexpected argument 'runs'"),
        ([], "--config=FILE is missing"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line_with_exit_code_2(arguments, message, tmp_path):
    command = [sys.executable, "-m", "cprl_jax.main", *arguments, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_says_what_there_is():
    done = subprocess.run([sys.executable, "-m", "cprl_jax.main", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--config=FILE" in done.stdout and "--workdir" in done.stdout
