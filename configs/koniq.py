"""CPRL on KonIQ-10k (10,073 authentically distorted photographs).

Paper: Wang et al., "Causal Perception Inspired Representation Learning for Trustworthy Image Quality Assessment",
Table 3, column KONIQ. Needs the official release (docs/datasets.md); the arguments are those of configs/livec.py.

  python -m cprl_jax.main --config=configs/koniq.py --config.dataset.manual_dir=DIR --config.model.weights=resnet50.pth
"""

from cprl_jax.config import presets


def get_config(argument: str | None = None):
    return presets.cprl_experiment("koniq", argument)
