"""The images with fewer bits a colour, in front of a network that is trained without it."""

import dataclasses

from cprl_jax.config.field import Field
from cprl_jax.layers.transformations import bit_depth
from cprl_jax.methods import plain
from cprl_jax.methods.method import UNTRAINED
from cprl_jax.models.change import NetworkChange


@dataclasses.dataclass(frozen=True)
class BitDepth(NetworkChange):
    """The network sees 2^bits levels of each colour; gradients go straight through the rounding."""

    bits: int

    def images(self, images):
        return bit_depth(images, bits=self.bits)


METHOD = dataclasses.replace(
    plain.METHOD,
    name="bit_depth",
    title="reduced bit depth",
    source="Xu et al., Feature Squeezing, NDSS 2018, Sec. II-B",
    trains=False,
    settings={**UNTRAINED, "bits": Field(4, "of each colour", at_least=1, at_most=8)},
    network=lambda settings: BitDepth(settings.bits),
    parts=lambda settings: [f"{settings.bits} bits", f"after {settings.start_from}"],
)
