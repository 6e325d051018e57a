"""The images made smaller and brought back to their size, in front of a network that is trained without it."""

import dataclasses

from cprl_jax.config.field import Field
from cprl_jax.layers.transformations import resize
from cprl_jax.methods import plain
from cprl_jax.methods.method import UNTRAINED
from cprl_jax.models.change import NetworkChange


@dataclasses.dataclass(frozen=True)
class Resized(NetworkChange):
    """The network sees the images after antialiased resizing, down by `scale` and up again."""

    scale: float

    def images(self, images):
        return resize(images, scale=self.scale)


METHOD = dataclasses.replace(
    plain.METHOD,
    name="resize",
    title="resizing down and up",
    source="after Guo et al., Countering Adversarial Images Using Input Transformations, ICLR 2018",
    trains=False,
    settings={**UNTRAINED, "scale": Field(0.5, "of the sides of the small images", above=0, at_most=1)},
    network=lambda settings: Resized(settings.scale),
    parts=lambda settings: [f"by {settings.scale:g}", f"after {settings.start_from}"],
)
