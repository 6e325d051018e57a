"""The defaults that every experiment starts from, and the checks that a configuration passes before anything runs.

A file of `configs/` calls `default()`, changes what its experiment needs and returns that from `get_config(argument)`.
Radii and epsilons are in units of 1/255 here (as in the papers' tables); in Python they are in [0, 1] pixel units.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from cprl_jax.errors import UserError

JOBS = ("train_and_evaluate", "train", "evaluate")
METHODS = ("plain", "cprl", "at")
DATASETS = ("embedded", "livec", "live", "vcl", "koniq")
ATTACKS = ("none", "fgsm", "pgd")


def default() -> ml_collections.ConfigDict:
    """Returns the configuration that every experiment starts from (fields are locked, values may change)."""
    config = ml_collections.ConfigDict()
    config.job = "train_and_evaluate"  # or "train", "evaluate" (again, from the checkpoints of the workdir)
    config.seed = 0  # of the split, the initial weights, the batches, the crops: everything random
    config.methods = ("plain", "cprl")  # trained and compared side by side; of METHODS
    config.compilation_cache = ""  # a folder that keeps compiled programs between runs ("" = none)

    config.dataset = dataset = ml_collections.ConfigDict()
    dataset.name = "embedded"  # of DATASETS
    dataset.manual_dir = ""  # the folder that holds the official release ("" = TFDS's manual directory)
    dataset.data_dir = ""  # where TFDS keeps the prepared records ("" = ~/tensorflow_datasets)
    dataset.split_file = ""  # a split saved by an earlier run ("" = draw 4:1 from the seed)
    dataset.test_fraction = 0.2  # of the scenes
    dataset.validation_fraction = 0.1  # of the scenes that are not in the test part
    dataset.seed = 0  # embedded: of its scenes and noise; config.seed splits them
    dataset.image_size = 112  # embedded: height and width of its images, pixels
    dataset.scenes = 64  # embedded: how many scenes
    dataset.levels = 5  # embedded: levels of each distortion

    config.model = model = ml_collections.ConfigDict()
    model.name = "squeezenet"  # "hyperiqa", "resnet", "squeezenet", "compact"
    model.backbone = "resnet50"  # of hyperiqa and resnet: "resnet18", "resnet34", "resnet50"
    model.weights = ""  # published weights: a path (.npz, .safetensors, .pth) or a Hugging Face owner/name[:file]
    model.dtype = "float32"  # of the computation; "bfloat16" is faster on GPU and TPU (parameters stay float32)
    model.dropout = 0.0  # before the last layer of resnet, squeezenet and compact
    model.score_mean = 50.0  # score = score_mean + score_std * output of the network
    model.score_std = 20.0
    model.sort_mask = ml_collections.ConfigDict()
    model.sort_mask.rate = 0.1  # share of the values nearest to the mean that is masked; only methods that ask for it
    model.sort_mask.min_channels = 128  # input channels from which on a convolution is masked
    model.sort_mask.stages = (2, 3)  # stages of the backbone whose convolutions (larger than 1x1) are masked
    model.sort_mask.selection = "fast"  # or "top_k", the literal definition (same masks, much slower)

    config.train = train = ml_collections.ConfigDict()
    train.batch_size = 16  # images a step, over all devices and processes
    train.crop_size = 224  # pixels
    train.steps = 0  # optimiser steps; 0 = epochs * crops_per_epoch * images / batch_size
    train.epochs = 16
    train.crops_per_epoch = 25  # random crops of each training image in an epoch
    train.mos_loss = "l1"  # or "l2", "huber"; in MOS points
    train.huber_delta = 10.0  # MOS points
    train.correlation_weight = 0.0  # weight of (1 - PLCC of the batch), which does not depend on the scores' scale
    train.backbone_learning_rate = 2e-5  # Adam
    train.head_learning_rate = 2e-4
    train.weight_decay = 0.0  # added to the gradient, before Adam's moments
    train.schedule = "constant"  # or "cosine" (to 2 % of the peak)
    train.warmup_steps = 0  # linear, from 0
    train.clip_norm = 0.0  # of the whole gradient; 0 = off
    train.ema_decay = 0.0  # evaluate an exponential moving average of the parameters; 0 = off
    train.evaluate_every = 0  # steps between validations and checkpoints; 0 = a twentieth of the run
    train.validation_crops = 2  # a validation image

    # What each method adds. `start_from` "plain" = the plain model's best parameters; a 0 in the three fields after it
    # means as in config.train.
    config.plain = plain = ml_collections.ConfigDict()
    plain.start_from = "weights"
    plain.steps = 0
    plain.batch_size = 0
    plain.crop_size = 0
    plain.sort_mask = False
    plain.validation_radius = 0.0  # 1/255; > 0: the best checkpoint is chosen by the mean of clean and attacked SRCC

    config.cprl = cprl = ml_collections.ConfigDict()
    cprl.start_from = "weights"
    cprl.steps = 0
    cprl.batch_size = 0
    cprl.crop_size = 0
    cprl.sort_mask = True
    cprl.validation_radius = 0.0
    cprl.weight = 1.0  # of the invariance loss beside the MOS loss
    cprl.warmup_steps = 0  # the weight and epsilon grow linearly from 0 over these steps
    cprl.epsilon = 2.0  # 1/255; |alpha| <= epsilon, also the radius r of the ball
    cprl.alphas = 2  # magnitudes drawn per image and step
    cprl.alpha_law = "uniform"  # on [-epsilon, epsilon] (the paper), or "edge": always epsilon
    cprl.direction_steps = 1  # 1 = the sign of the gradient (the paper); more = ascent with a random start
    cprl.norm = "absolute"  # or "squared"
    cprl.relative = False  # divide by the spread of the batch's scores: squashing them does not pay then
    cprl.mos_loss_on_interventions = 0.0  # weight of the MOS loss on the perturbed images

    config.at = at = ml_collections.ConfigDict()
    at.start_from = "weights"
    at.steps = 0
    at.batch_size = 0
    at.crop_size = 0
    at.sort_mask = False
    at.validation_radius = 0.0
    at.epsilon = 2.0  # 1/255
    at.weight = 0.5  # of the attacked images' MOS loss; the clean images' has 1 - weight

    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.checkpoint = "best"  # on the validation part, or "last"
    evaluation.crop_size = 224  # pixels
    evaluation.crops_drawn = 25  # crops a test image, drawn once from the seed and saved
    evaluation.crops = 25  # how many of them are scored and attacked (their mean is the image's score)
    evaluation.batch_size = 16  # crops at once, a device
    evaluation.attacks = ("fgsm", "pgd")
    evaluation.radii = (0.5, 1.0, 2.0, 4.0)  # 1/255
    evaluation.pgd_steps = 10
    evaluation.mid = 50.0  # scores above it are pushed down, the others up
    evaluation.resamples = 1000  # of the bootstrap over test images
    evaluation.examples = 3  # images shown in the report
    evaluation.example_radius = 2.0  # 1/255; of the shown images (PGD)
    return config


def cprl_experiment(dataset: str, argument: str | None) -> ml_collections.ConfigDict:
    """The experiment of CPRL's Table 3 on one data set; `argument` chooses backbone, methods and schedule.

    backbone: hyperiqa (HyperIQA on ResNet-50, the paper's), resnet18, resnet34, resnet50, or squeezenet.
    methods: joined by +, see METHODS.
    schedule: 'paper' (16 epochs of 25 crops of 224 pixels, CPRL as printed; default except for squeezenet), or 'short':
      small crops, few steps, and a CPRL that needs them: see docs/papers.md.

    Raises:
      UserError: an unknown key or value.
    """
    backbones = ("hyperiqa", "resnet18", "resnet34", "resnet50", "squeezenet")
    values = parse_argument(argument, {"backbone": backbones, "methods": None, "schedule": ("paper", "short")})
    backbone = values.get("backbone", "hyperiqa")
    config = default()
    config.dataset.name = dataset
    config.methods = parse_methods(values.get("methods", "plain+cprl"))
    if backbone.startswith("resnet"):
        config.model.name, config.model.backbone = "resnet", backbone
    else:
        config.model.name = backbone
    if backbone == "hyperiqa":
        # As published: labels as they are, L2 decay. The normalisation of the scores is learned by the head.
        config.model.score_mean, config.model.score_std = 0.0, 1.0
        config.train.weight_decay = 5e-4
    if backbone == "squeezenet":
        # The inputs of its 3x3 convolutions are narrow: 48 and 64 channels in the last stage.
        config.model.sort_mask.min_channels, config.model.sort_mask.stages = 48, (3,)
    if values.get("schedule", "short" if backbone == "squeezenet" else "paper") == "short":
        _short_schedule(config)
    return config


def _short_schedule(config: ml_collections.ConfigDict) -> None:
    train = config.train
    train.batch_size, train.crop_size = 24, 96
    train.steps = 400
    train.backbone_learning_rate, train.head_learning_rate = 1e-4, 2e-3
    train.schedule, train.warmup_steps = "cosine", 20
    train.correlation_weight = 20.0
    train.ema_decay = 0.98
    config.evaluation.crops = 4
    # A tenth of a small set is too few images to choose a checkpoint by; the schedule ends with small steps anyway.
    config.evaluation.checkpoint = "last"
    config.plain.batch_size, config.plain.crop_size = 16, 224
    cprl = config.cprl
    cprl.start_from = "plain"
    cprl.steps = 500
    cprl.weight, cprl.relative = 10.0, True
    cprl.epsilon, cprl.alphas, cprl.alpha_law, cprl.direction_steps = 1.5, 1, "edge", 2
    cprl.sort_mask = False
    cprl.validation_radius = 1.0
    config.at.start_from, config.at.steps = "plain", 600


def from_command_line(flag_values: flags.FlagValues, argv: Sequence[str], *, usage: str):
    """Parses `--config` (with its overrides) and `--workdir`.

    Returns:
      (config, workdir); the default workdir is runs/ and the name of the configuration with its argument.

    Raises:
      UserError: a flag, file, key or value that does not exist or has the wrong type, in one line.
      SystemExit: `--help` was asked for and printed.
    """
    if any(argument in ("--help", "-help", "-h", "--helpfull", "--helpshort") for argument in argv[1:]):
        print(usage)
        raise SystemExit(0)
    try:
        rest = flag_values(list(argv))
        config = flag_values.config
        if config is not None:
            file, _, argument = config_flags.get_config_filename(flag_values["config"]).partition(":")
            if not Path(file).is_file():
                raise UserError(f"there is no config file {file!r}; those of this project are in configs/")
            config.to_dict()  # an error in the file itself is only raised on first use
    except Exception as error:
        raise UserError(_flag_error(error)) from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are --config=FILE, --config.a.b=value, --workdir=DIR")
    if config is None:
        raise UserError("--config=FILE is missing; try --config=configs/quickstart.py")
    workdir = flag_values.workdir
    if not workdir:
        workdir = f"runs/{Path(file).stem}" + (f"-{argument.replace('/', '_')}" if argument else "")
    return config, workdir


def _flag_error(error: BaseException) -> str:
    """One line on what is wrong with the command line: our own error if one lies beneath, else the parser's."""
    text, cause = "", error
    while cause is not None:
        if isinstance(cause, UserError):  # the innermost: the ones around it repeat it with a traceback
            text = str(cause)
        cause = cause.__cause__ or cause.__context__
    if text:
        return text
    text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    if isinstance(error, (AttributeError, KeyError)):
        text = f"unknown field of --config: {text}; cprl_jax/config.py lists all fields"
    return text


def parse_argument(argument: str | None, allowed: Mapping[str, Sequence[str] | None]) -> dict[str, str]:
    """Splits the part of `--config=FILE:key=value,key=value` behind the colon.

    Args:
      argument: that text; None or "" for none.
      allowed: the keys that the configuration file knows, each with its values (None = any).

    Raises:
      UserError: an unknown or repeated key or a value that is not allowed.
    """
    values: dict[str, str] = {}
    for item in filter(None, (argument or "").split(",")):
        key, separator, value = item.partition("=")
        if not separator:
            raise UserError(f"config argument {item!r}: write key=value; keys: {_listed(allowed)}")
        if key not in allowed:
            raise UserError(
                f"config argument {item!r}: unknown key {key!r}{_near(key, allowed)}; keys: {_listed(allowed)}"
            )
        if key in values:
            raise UserError(f"config argument {key!r} is given twice")
        choices = allowed[key]
        if choices is not None and value not in choices:
            raise UserError(f"config argument {item!r}: {key} is one of {_listed(choices)}")
        values[key] = value
    return values


def parse_methods(value: str) -> tuple[str, ...]:
    """'plain+cprl' -> ('plain', 'cprl'). Raises UserError for an unknown or repeated method."""
    return check_methods(tuple(value.split("+")))


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """Returns the methods as a tuple, or raises UserError for an unknown, repeated or missing one."""
    for method in methods:
        if method not in METHODS:
            raise UserError(f"unknown method {method!r}{_near(method, METHODS)}; allowed: {_listed(METHODS)}")
    if not methods or len(set(methods)) != len(methods):
        raise UserError(f"methods {'+'.join(methods)!r}: name each method once; allowed: {_listed(METHODS)}")
    return tuple(methods)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every field that can be checked without reading data.

    Raises:
      UserError: naming the field, its value and what is allowed.
    """
    check_methods(config.methods)
    choices = {
        "job": JOBS,
        "dataset.name": DATASETS,
        "model.name": ("hyperiqa", "resnet", "squeezenet", "compact"),
        "model.backbone": ("resnet18", "resnet34", "resnet50"),
        "model.dtype": ("float32", "bfloat16"),
        "model.sort_mask.selection": ("fast", "top_k"),
        "train.mos_loss": ("l1", "l2", "huber"),
        "train.schedule": ("constant", "cosine"),
        "plain.start_from": ("weights",),
        "cprl.start_from": ("weights", "plain"),
        "at.start_from": ("weights", "plain"),
        "cprl.alpha_law": ("uniform", "edge"),
        "cprl.norm": ("absolute", "squared"),
        "evaluation.checkpoint": ("best", "last"),
    }
    for field, allowed in choices.items():
        value = lookup(config, field)
        if value not in allowed:
            raise UserError(f"config.{field} is {value!r}{_near(value, allowed)}; allowed: {_listed(allowed)}")
    at_least = {
        1: (
            "dataset.levels", "train.batch_size", "train.crop_size", "train.epochs", "train.crops_per_epoch",
            "train.validation_crops", "cprl.alphas", "cprl.direction_steps", "evaluation.crop_size", "evaluation.crops",
            "evaluation.batch_size", "evaluation.pgd_steps", "evaluation.resamples",
        ),
        0: (
            "seed", "model.dropout", "model.score_std", "model.sort_mask.rate", "train.steps", "train.warmup_steps",
            "train.weight_decay", "train.clip_norm", "train.ema_decay", "train.evaluate_every", "plain.steps",
            "plain.batch_size", "plain.crop_size", "cprl.steps", "cprl.batch_size", "cprl.crop_size", "at.steps",
            "at.batch_size", "at.crop_size", "cprl.weight", "cprl.warmup_steps", "cprl.epsilon", "at.epsilon",
            "at.weight",
            "evaluation.examples",
        ),
    }  # fmt: skip
    for bound, fields in at_least.items():
        for field in fields:
            if not lookup(config, field) >= bound:
                raise UserError(f"config.{field} is {lookup(config, field)}; it must be at least {bound}")
    for field in ("model.dropout", "model.sort_mask.rate", "train.ema_decay", "dataset.test_fraction",
                  "dataset.validation_fraction"):  # fmt: skip
        if not lookup(config, field) < 1:
            raise UserError(f"config.{field} is {lookup(config, field)}; it must be below 1")
    for attack in config.evaluation.attacks:
        if attack not in ATTACKS[1:]:
            raise UserError(f"config.evaluation.attacks names {attack!r}; allowed: {_listed(ATTACKS[1:])}")
    if any(radius <= 0 or radius > 255 for radius in config.evaluation.radii):
        raise UserError(
            f"config.evaluation.radii is {tuple(config.evaluation.radii)}; each is in (0, 255], units of 1/255"
        )
    if config.evaluation.crops > config.evaluation.crops_drawn:
        raise UserError(
            f"config.evaluation.crops is {config.evaluation.crops}, more than the {config.evaluation.crops_drawn} that "
            "are drawn (config.evaluation.crops_drawn)"
        )
    for method in config.methods:
        if config[method].start_from == "plain" and "plain" not in config.methods:
            raise UserError(
                f"config.{method}.start_from is 'plain', but the methods are {'+'.join(config.methods)}: add plain, or "
                f"set --config.{method}.start_from=weights"
            )


def lookup(config: ml_collections.ConfigDict, field: str):
    """The value of a dotted field name."""
    for part in field.split("."):
        config = config[part]
    return config


def to_json(config: ml_collections.ConfigDict) -> str:
    """The whole configuration as readable JSON (tuples become lists), the same text for the same values."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True)


def differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """Lists the fields in which two configurations (parsed JSON) differ, as 'field: old -> new'."""
    found = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def _listed(names) -> str:
    return ", ".join(str(name) for name in names)


def _near(word, names) -> str:
    match = difflib.get_close_matches(str(word), [str(name) for name in names], n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
