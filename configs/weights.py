"""The models that come with the package, `robust` and `plain`, on photographs with the opinions of people.

LIVE In the Wild, or any folder of photographs with a labels.csv (see configs/own.py). One command trains both and puts
them where `python -m cprl_jax.score` finds them; stopped at any moment, it goes on where it was:

  make weights DATA=DIR [NOTICE=FILE]

which for each model is

  python -m cprl_jax.main --config=configs/weights.py:model=robust --config.dataset.manual_dir=DIR \
      --workdir=runs/weights/robust
  python -m cprl_jax.export --run=runs/weights/robust --out=cprl_jax/shipped/robust --dtype=int8 --certify=5

Both are EfficientNet-Lite0 from its ImageNet weights, whose batch normalisation is part of the convolutions and whose
depthwise kernels stay as they are. docs/papers.md tells what the settings were chosen on.

Arguments (--config=configs/weights.py:key=value):
  model      robust (default): CPRL's loss, and the loss on MOS of the perturbed images, from the plain model, on the
             photographs and on distorted copies that the plain model has labelled; or plain

--config.methods="('plain','plain_longer','at_pgd','cprl_loss')" adds to robust a plain and an adversarially trained
model, with as many image gradients on the same images.
"""

from cprl_jax.config.presets import parse_argument
from cprl_jax.experiments.cprl import presets

CONTROLS = ("plain_longer", "at_pgd")
METHODS = {"robust": "plain+cprl_loss", "plain": "plain"}  # the last one is exported


def get_config(argument: str | None = None):
    model = parse_argument(argument, {"model": tuple(METHODS)}).get("model", "robust")
    config = presets.defences(f"methods={METHODS[model]}")
    config.train.frozen = ("depthwise_conv.kernel",)
    config.train.ema_decay = 0.99
    if model == "robust":
        config.cprl_loss.update(steps=2000, weight=48.0, epsilon=2.0, warmup_steps=200, mos_loss_on_interventions=1.0)
        config.dataset.resize = 256
        config.train.scales = (1.0, 0.875, 0.75, 0.625)
        for name in ("cprl_loss", *CONTROLS):
            config[name].distorted_copies = 3
        for name in CONTROLS:
            config[name].as_long_as = "cprl_loss"
    else:
        config.dataset.resize = 320
        config.train.update(steps=600, backbone_learning_rate=2e-4, head_learning_rate=5e-3)
        config.plain.crop_size = config.evaluation.crop_size = 192
    config.evaluation.attacks = ("fgsm", "pgd")
    config.evaluation.radii = (1.0, 2.0)
    config.evaluation.crops = 5
    return config
