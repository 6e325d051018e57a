"""How far the scores of quality models can be moved by changes that nobody sees.

Paper: Zhang et al., "Perceptual Attacks of No-Reference Image Quality Models with Human-in-the-Loop", NeurIPS 2022,
Algorithm 1, Tables 1 and 2. In place of its observers, a declared threshold on the distance decides what nobody sees
(config.perceptual.thresholds).

  python -m cprl_jax.main --config=configs/perceptual_attack.py            # the two models of `make quickstart`
  python -m cprl_jax.main --config=configs/perceptual_attack.py:models=ma19 --config.perceptual.ma19_weights=FILE \
      --config.perceptual.images=DIR --config.perceptual.height=128 --config.perceptual.width=192

The same command again resumes: every (model, fidelity, image) is computed once and kept.

Arguments (--config=configs/perceptual_attack.py:key=value,key=value):
  models       joined by +: ma19, brisque (their weights by config.perceptual.ma19_weights, .brisque_svr), and
               run:FOLDER:METHOD for a model that was trained here, also by configs/classical.py or configs/ma19.py;
               --config.perceptual.logistic=fitted brings all to 0..10 by maps fitted to the labels, as the paper does
               (default run:runs/quickstart:plain+run:runs/quickstart:cprl, attacked on their own test images)
  fidelities   chebyshev, ssim, lpips or dists, joined by + (default chebyshev+ssim); the last two need
               config.perceptual.vgg16_weights
  size         paper: 32 candidates of 200 steps (default); short: 8 of 100, minutes for 12 small images
"""

from cprl_jax.config import defaults as config_lib
from cprl_jax.config import presets


def get_config(argument: str | None = None):
    values = presets.parse_argument(argument, {"models": None, "fidelities": None, "size": ("paper", "short")})
    config = config_lib.default()
    config.job = "perceptual_attack"
    perceptual = config.perceptual
    if "models" in values:
        perceptual.models = tuple(values["models"].split("+"))
    else:
        perceptual.models = ("run:runs/quickstart:plain", "run:runs/quickstart:cprl")
        config.dataset.scenes, config.dataset.levels, config.dataset.seed = 180, 3, 7  # configs/quickstart.py
        config.dataset.split_file = "runs/quickstart/split.json"
    perceptual.fidelities = tuple(values.get("fidelities", "chebyshev+ssim").split("+"))
    if values.get("size", "paper") == "short":
        perceptual.multipliers, perceptual.steps = 8, 100
    return config
