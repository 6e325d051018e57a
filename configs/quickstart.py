"""The whole story in minutes, without any download: `make quickstart`.

Trains a compact network on the embedded data set (photographs and procedural scenes, three levels of six distortions,
labels from a full-reference formula: no human opinion) with the loss on MOS, with that loss for as long as CPRL, with
CPRL's loss, and with CPRL's loss and SortMask; attacks all four with FGSM and PGD, and writes
runs/quickstart/report/report.html.

  python -m cprl_jax.main --config=configs/quickstart.py                 # 10 minutes on two cores
  python -m cprl_jax.main --config=configs/quickstart.py:methods=plain+nt+at

Expect (docs/results.md has the measured tables) an SRCC of 0.85 for plain on clean images, and its ranking reversed by
PGD at 2/255 (-0.43); 0.78 for CPRL's loss, and 0.43 under PGD (0.30 to 0.43 over three seeds).

Arguments (--config=configs/quickstart.py:key=value):
  methods    names of cprl_jax/methods joined by + (default plain+plain_longer+cprl_loss+cprl)
"""

from cprl_jax.config import presets
from cprl_jax.config.defaults import default


def get_config(argument: str | None = None):
    values = presets.parse_argument(argument, {"methods": None})
    config = default()
    config.methods = presets.parse_methods(values.get("methods", presets.COMPARED))

    # Scenes and a split that no choice of a setting has seen; only the few photographs are in every set.
    config.seed = config.dataset.seed = 7
    config.dataset.name = "embedded"
    config.dataset.scenes, config.dataset.levels = 180, 3
    config.dataset.test_fraction = 0.1
    config.model.name = "compact"
    config.model.sort_mask.min_channels, config.model.sort_mask.stages = 48, (3,)

    train = config.train
    train.batch_size, train.crop_size = 24, 88
    train.steps = 600
    train.backbone_learning_rate = train.head_learning_rate = 2e-3
    train.schedule, train.warmup_steps = "cosine", 30
    train.correlation_weight = 20.0
    train.ema_decay = 0.98
    train.evaluate_every = 200

    # Directions of two ascent steps and a loss free of the scores' scale: docs/papers.md says why.
    presets.set_cprl(config, start_from="plain", steps=110, weight=16.0, relative=True)
    presets.set_cprl(config, epsilon=3.0, alphas=1, alpha_law="edge", direction_steps=2)
    for rival in ("at", "nt"):
        config[rival].start_from, config[rival].as_long_as = "plain", "cprl"
    config.at.epsilon = 3.0

    evaluation = config.evaluation
    evaluation.checkpoint = "last"
    evaluation.crop_size, evaluation.crops = 88, 1
    evaluation.batch_size = 32
    evaluation.radii = (1.0, 2.0)
    evaluation.trust_images = 4
    return config
