"""The images behind JPEG compression, in front of a network that is trained without it."""

import dataclasses

from cprl_jax.config.field import Field
from cprl_jax.layers.jpeg import jpeg
from cprl_jax.methods import plain
from cprl_jax.methods.method import UNTRAINED
from cprl_jax.models.change import NetworkChange


@dataclasses.dataclass(frozen=True)
class Jpeg(NetworkChange):
    """The network sees the images after compression; gradients go straight through its rounding."""

    quality: int

    def images(self, images):
        return jpeg(images, quality=self.quality)


METHOD = dataclasses.replace(
    plain.METHOD,
    name="jpeg",
    title="JPEG compression",
    source="Dziugaite et al., A Study of the Effect of JPG Compression on Adversarial Images, 2016",
    trains=False,
    settings={**UNTRAINED, "quality": Field(75, "libjpeg's", at_least=1, at_most=100)},
    network=lambda settings: Jpeg(settings.quality),
    parts=lambda settings: [f"quality {settings.quality}", f"after {settings.start_from}"],
)
