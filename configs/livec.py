"""CPRL on the LIVE In-the-Wild Challenge database (1,162 authentically distorted photographs).

Paper: Wang et al., "Causal Perception Inspired Representation Learning for Trustworthy Image Quality Assessment",
Table 3, column LIVEC. Needs the official release (docs/datasets.md):

  python -m cprl_jax.main --config=configs/livec.py --config.dataset.manual_dir=DIR
  python -m cprl_jax.main --config=configs/livec.py:backbone=squeezenet --config.model.weights=FILE   # for a laptop

Arguments (--config=configs/livec.py:key=value,key=value):
  backbone   hyperiqa (default: HyperIQA on ResNet-50, the paper's), resnet18, resnet34, resnet50, squeezenet
  methods    names of cprl_jax/methods joined by + (default plain+plain_longer+cprl_loss+cprl)
  schedule   paper: 16 epochs of 25 crops of 224 pixels, CPRL as printed (default for hyperiqa and the ResNets)
             short: minutes on two cores; small crops, CPRL warm-started and with the stronger directions that
             docs/papers.md explains (default for squeezenet)
"""

from cprl_jax.config import presets


def get_config(argument: str | None = None):
    return presets.cprl_experiment("livec", argument)
