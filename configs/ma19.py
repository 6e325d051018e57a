"""Ma19 trained without opinions: on pairs of images that full-reference measures rank.

Paper: Ma et al., "Blind Image Quality Assessment by Learning from Multiple Annotators", ICIP 2019, as Zhang et al.,
NeurIPS 2022, train it: photographs under white noise, Gaussian blur, JPEG and JPEG 2000. The probability that an image
of a pair is the better one follows from the mean of four full-reference measures (`--config.dataset.label`), and the
loss is the fidelity of that probability and the network's; the paper learns the reliability of each annotator instead.
1500 steps of 32 crops of 96 pixels; the images are made once, before.

Trained on 19 of Kodak's 24 photographs (half an hour on a core, beside other work), the score orders the JPEG qualities
of the other five with an SRCC of 0.99 to 1.00, and those of the 12 photographs of highest MOS in a test part of LIVE-C,
which are JPEG files already, with 0.91 to 1.00, mean 0.98; the published network has 0.91 to 1.00 and 0.98 to 1.00
(benchmarks/jpeg_ladders.py). On all distorted versions of the five, its SRCC with the computed labels is 0.89
[0.83, 0.92].

  python -m cprl_jax.main --config=configs/ma19.py:photographs=DIR
  python benchmarks/jpeg_ladders.py --model=runs/ma19 OTHER_PHOTOGRAPHS

Arguments (--config=configs/ma19.py:key=value,key=value):
  photographs   the folder of undistorted photographs; the distorted ones are kept in config.dataset.manual_dir
  methods       names of cprl_jax/methods joined by + (default plain)
"""

from cprl_jax.config import defaults as config_lib
from cprl_jax.config import presets


def get_config(argument: str | None = None):
    values = presets.parse_argument(argument, {"photographs": None, "methods": None})
    config = config_lib.default()
    config.dataset.name, config.dataset.photographs = "distorted", values.get("photographs", "")
    config.methods = presets.parse_methods(values.get("methods", "plain"))
    config.model.name = "ma19"
    train = config.train
    train.mos_loss = "fidelity"
    train.steps, train.batch_size, train.crop_size = 1500, 32, 96
    train.backbone_learning_rate = train.head_learning_rate = 1e-3
    train.schedule, train.warmup_steps, train.clip_norm = "cosine", 50, 1.0
    train.ema_decay = 0.99
    evaluation = config.evaluation
    evaluation.crop_size, evaluation.crops = 256, 1
    evaluation.radii = (1.0, 2.0)
    evaluation.trust_images = 4
    return config
