"""The control of every method that trains on from the plain model: the plain loss for as many image gradients."""

import dataclasses

from cprl_jax.methods import plain
from cprl_jax.methods.method import COMMON, START

METHOD = dataclasses.replace(
    plain.METHOD,
    name="plain_longer",
    parts=lambda settings: [f"as long as {settings.as_long_as}"],
    settings={
        "start_from": dataclasses.replace(START, default="plain"),
        "as_long_as": dataclasses.replace(COMMON["as_long_as"], default="cprl"),
    },
)
