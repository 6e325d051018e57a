"""CPRL on the LIVE image quality database, release 2 (779 distorted images of 29 scenes, five distortions).

Paper: Wang et al., "Causal Perception Inspired Representation Learning for Trustworthy Image Quality Assessment",
Table 3, column LIVE. The arguments are those of configs/livec.py. The reader of this data set is not part of this
version: the command ends with a sentence that says so.
"""

from cprl_jax import config as config_lib


def get_config(argument: str | None = None):
    return config_lib.cprl_experiment("live", argument)
