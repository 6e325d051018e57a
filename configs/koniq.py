"""CPRL on KonIQ-10k (10,073 authentically distorted photographs).

Paper: Wang et al., "Causal Perception Inspired Representation Learning for Trustworthy Image Quality Assessment",
Table 3, column KONIQ. The arguments are those of configs/livec.py. The reader of this data set is not part of this
version: the command ends with a sentence that says so.
"""

from cprl_jax import config as config_lib


def get_config(argument: str | None = None):
    return config_lib.cprl_experiment("koniq", argument)
