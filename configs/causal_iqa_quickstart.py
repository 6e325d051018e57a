"""Causal-IQA in minutes, without any download: unseen distortions of the embedded data set.

Divides photographs and procedural scenes by distortion and content, leaves one of five distortions out after the other,
trains a compact network on the rest by each update, and tests it on the distortion that it has not seen. Labels are
from a full-reference formula, not from people. 11 minutes on two cores; the time is in proportion to `steps` and
`seeds`. The same command again resumes; with more seeds, it keeps those that are there.

  python -m cprl_jax.main --config=configs/causal_iqa_quickstart.py
  python -m cprl_jax.main --config=configs/causal_iqa_quickstart.py:seeds=3

Arguments (--config=configs/causal_iqa_quickstart.py:key=value,key=value):
  updates    erm, metaiqa, cis, cip or some of them, joined by + (default all)
  seeds      trainings of each update and distortion (default 1)
  steps      meta steps of each training (default 80)
"""

from cprl_jax.config import defaults as config_lib
from cprl_jax.config import presets
from cprl_jax.experiments.causal_iqa.presets import parse_updates
from cprl_jax.runtime.errors import UserError

STEPS = 80  # meta steps: the time is in proportion to it


def get_config(argument: str | None = None):
    values = presets.parse_argument(argument, {"updates": None, "seeds": None, "steps": None})
    config = config_lib.default()
    config.job = "leave_one_out"
    config.dataset.scenes, config.dataset.levels, config.dataset.image_size = 64, 3, 64
    config.model.name = "compact"
    config.train.crop_size = 64
    config.evaluation.crop_size, config.evaluation.crops = 64, 1  # whole images
    config.evaluation.batch_size = 64

    options = config.causal_iqa
    options.updates = parse_updates(values.get("updates"))
    options.seeds = _number(values, "seeds", 1)
    options.meta_steps = _number(values, "steps", STEPS)
    # Five of six. White and coloured noise are so alike that the one gives the other away: it only trains.
    options.held_out = ("gaussian-blur", "white-noise", "jpeg", "pixelation", "contrast")
    options.batch_size = 8
    options.backbone_learning_rate = options.head_learning_rate = 2e-3
    options.beta2 = 0.999  # 0.9999 remembers longer than this training lasts
    return config


def _number(values: dict[str, str], key: str, otherwise: int) -> int:
    text = values.get(key, str(otherwise))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"config argument {key}={text}: it must be a whole number of at least 1")
    return int(text)
