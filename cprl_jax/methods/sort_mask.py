"""The control of CPRL's other part: plain training of the network with SortMask, without the invariance loss."""

import dataclasses

from cprl_jax.methods import plain
from cprl_jax.methods.method import COMMON

METHOD = dataclasses.replace(
    plain.METHOD, name="sort_mask", settings={"sort_mask": dataclasses.replace(COMMON["sort_mask"], default=True)}
)
