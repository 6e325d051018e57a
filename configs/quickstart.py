"""The whole story in minutes, without any download: `make quickstart`.

Trains a compact network on the embedded data set (photographs and procedural scenes, three degrees of six distortions,
labels from a full-reference formula: no human opinion), once plainly and once with CPRL, attacks both with FGSM and
PGD, and writes runs/quickstart/report/report.html.

Arguments (--config=configs/quickstart.py:key=value):
  methods    of plain, cprl and at, joined by + (default plain+cprl)
"""

from cprl_jax.config import defaults as config_lib
from cprl_jax.config import presets


def get_config(argument: str | None = None):
    values = presets.parse_argument(argument, {"methods": None})
    config = config_lib.default()
    config.methods = presets.parse_methods(values.get("methods", "plain+cprl"))

    config.dataset.name = "embedded"
    config.dataset.scenes, config.dataset.levels = 120, 3
    config.model.name = "compact"
    config.model.sort_mask.min_channels, config.model.sort_mask.stages = 48, (3,)

    train = config.train
    train.batch_size, train.crop_size = 24, 96
    train.steps = 400
    train.backbone_learning_rate = train.head_learning_rate = 2e-3
    train.schedule, train.warmup_steps = "cosine", 30
    train.correlation_weight = 20.0
    train.ema_decay = 0.98
    train.evaluate_every = 100

    # Directions of two ascent steps and a loss free of the scores' scale: docs/papers.md tells why.
    cprl = config.cprl
    cprl.start_from, cprl.steps = "plain", 250
    cprl.sort_mask = False
    cprl.weight, cprl.relative = 12.0, True
    cprl.epsilon, cprl.alphas, cprl.alpha_law, cprl.direction_steps = 3.0, 1, "edge", 2
    cprl.validation_radius = 2.0
    config.at.start_from, config.at.steps, config.at.epsilon = "plain", 250, 3.0
    config.at.validation_radius = 2.0

    config.evaluation.crop_size, config.evaluation.crops, config.evaluation.crops_drawn = 96, 1, 5
    config.evaluation.batch_size = 32
    return config
