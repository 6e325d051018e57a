"""CPRL's invariance loss without SortMask: what the loss alone contributes."""

import dataclasses

from cprl_jax.methods import cprl
from cprl_jax.methods.method import COMMON

METHOD = dataclasses.replace(
    cprl.METHOD, name="cprl_loss", settings={**cprl.METHOD.settings, "sort_mask": COMMON["sort_mask"]}
)
