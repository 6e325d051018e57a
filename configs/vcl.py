"""CPRL on VCL@FER (552 distorted images of 23 scenes, four distortions).

Paper: Wang et al., "Causal Perception Inspired Representation Learning for Trustworthy Image Quality Assessment",
Table 3, column VCL. Needs the official release (docs/datasets.md); the arguments are those of configs/livec.py.

  python -m cprl_jax.main --config=configs/vcl.py --config.dataset.manual_dir=DIR --config.model.weights=resnet50.pth
"""

from cprl_jax.config import presets


def get_config(argument: str | None = None):
    return presets.cprl_experiment("vcl", argument)
