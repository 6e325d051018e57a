"""What the files of configs/ share: their arguments, and the experiments that several of them run."""

from collections.abc import Mapping, Sequence

import ml_collections

from cprl_jax import methods
from cprl_jax.config.defaults import default, method_of, read_config
from cprl_jax.config.field import listed, near
from cprl_jax.data import DATASETS
from cprl_jax.models import NETWORKS
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path

COMPARED = "plain+plain_longer+cprl_loss+cprl"
"""The default methods of CPRL's experiments: a control for the length of training, and one for each part of CPRL."""

TRAINED = tuple(name for name, network in NETWORKS.items() if network.fit is None)
BACKBONES = (*(name for name in TRAINED if name != "resnet"), *NETWORKS["resnet"].variants)
"""What the argument `backbone` of a configuration can name: not what is fitted without gradients."""


def cprl_experiment(dataset: str, argument: str | None) -> ml_collections.ConfigDict:
    """The experiment of CPRL's Table 3 on one data set; `argument` chooses backbone, methods and schedule.

    backbone: hyperiqa (HyperIQA on ResNet-50, the paper's), another network, or one of the trunks of `resnet`.
    methods: joined by +, see methods.METHODS.
    schedule: 'paper' (16 epochs of 25 crops of 224 pixels, CPRL as printed; default except for squeezenet), or 'short':
      small crops, few steps, and a CPRL that needs them: see docs/papers.md.

    Raises:
      UserError: an unknown key or value.
    """
    values = parse_argument(argument, {"backbone": BACKBONES, "methods": None, "schedule": ("paper", "short")})
    backbone = values.get("backbone", "hyperiqa")
    config = default()
    config.dataset.name = dataset
    config.methods = parse_methods(values.get("methods", COMPARED))
    config.model.name = backbone
    if backbone in NETWORKS["resnet"].variants:
        config.model.name, config.model.backbone = "resnet", backbone
    if backbone == "hyperiqa":
        # As published: labels as they are, L2 decay. The normalisation of the scores is learned by the head.
        config.model.score_mean, config.model.score_std = 0.0, 1.0
        config.train.weight_decay = 5e-4
    if values.get("schedule", "short" if backbone == "squeezenet" else "paper") == "short":
        _short_schedule(config)
    else:
        config.plain_longer.start_from = "weights"  # like CPRL here: as long in all
    return config


def set_cprl(config: ml_collections.ConfigDict, **values) -> None:
    """Sets fields of CPRL with SortMask and without it alike."""
    for name in ("cprl_loss", "cprl"):
        config[name].update(values)


def _short_schedule(config: ml_collections.ConfigDict) -> None:
    train = config.train
    train.batch_size = 24
    train.crop_size = NETWORKS[config.model.name].module.largest_image or 96
    train.steps = 400
    train.backbone_learning_rate, train.head_learning_rate = 1e-4, 2e-3
    train.schedule, train.warmup_steps = "cosine", 20
    train.correlation_weight = 20.0
    train.ema_decay = 0.98
    train.evaluate_every = 100
    config.evaluation.crops = 3
    # A tenth of a small set is too few images to choose a checkpoint by; the schedule ends with small steps anyway.
    config.evaluation.checkpoint = "last"
    for name in ("plain", "plain_longer"):
        config[name].batch_size, config[name].crop_size = 16, 224
    set_cprl(config, start_from="plain", steps=300, weight=12.0, relative=True)
    set_cprl(config, epsilon=1.5, alphas=1, alpha_law="edge", direction_steps=2)
    config.at.start_from, config.at.as_long_as = "plain", "cprl"


def fine_tuning(argument: str | None) -> ml_collections.ConfigDict:
    """Fine-tuning of a model that was trained here on another data set: see configs/fine_tune.py.

    Raises:
      UserError: an unknown key, no run, a method that it did not train, or training that is not done.
    """
    values = parse_argument(argument, {"run": None, "from": None, "dataset": DATASETS, "methods": None})
    for key in ("run", "dataset"):
        if key not in values:
            raise UserError(f"{key} is missing: --config=configs/fine_tune.py:run=FOLDER,dataset=NAME")
    run = user_path(values["run"], field="run")
    source = read_config(run)
    method = method_of(source, values.get("from", ""), run)
    weights = run / method / "weights.npz"
    if not weights.is_file():
        raise UserError(f"{weights} is not there: the training of {method} in {run} is not done")
    config = default()
    config.dataset.name = values["dataset"]
    config.methods = parse_methods(values.get("methods", "plain"))
    config.dataset.resize = source.dataset.resize
    config.model.update(source.model)
    config.model.weights = str(weights)
    config.train.update(source.train)
    config.train.steps, config.train.epochs, config.train.crops_per_epoch = 0, 30, 1
    config.train.backbone_learning_rate = config.train.head_learning_rate = 1e-4
    config.train.warmup_steps, config.train.evaluate_every = 0, 0
    for field in ("crop_size", "crops", "batch_size"):
        config.evaluation[field] = source.evaluation[field]
    for name in config.methods:
        config[name].sort_mask = method in source.methods and source[method].sort_mask
    return config


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
            raise UserError(f"config argument {item!r}: write key=value; keys: {listed(allowed)}")
        if key not in allowed:
            raise UserError(
                f"config argument {item!r}: unknown key {key!r}{near(key, allowed)}; keys: {listed(allowed)}"
            )
        if key in values:
            raise UserError(f"config argument {key!r} is given twice")
        choices = allowed[key]
        if choices is not None and value not in choices:
            raise UserError(f"config argument {item!r}: {key} is one of {listed(choices)}")
        values[key] = value
    return values


def parse_methods(value: str) -> tuple[str, ...]:
    """'plain+cprl' -> ('plain', 'cprl'). Raises UserError for an unknown or repeated method."""
    return methods.check_names(tuple(value.split("+")))
