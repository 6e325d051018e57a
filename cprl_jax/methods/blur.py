"""The images behind a Gaussian filter, in front of a network that is trained without it."""

import dataclasses

from cprl_jax.config.field import Field
from cprl_jax.layers.transformations import blur
from cprl_jax.methods import plain
from cprl_jax.methods.method import UNTRAINED
from cprl_jax.models.change import NetworkChange


@dataclasses.dataclass(frozen=True)
class Blurred(NetworkChange):
    """The network sees the images behind a Gaussian filter of `sigma` pixels."""

    sigma: float

    def images(self, images):
        return blur(images, sigma=self.sigma)


METHOD = dataclasses.replace(
    plain.METHOD,
    name="blur",
    title="Gaussian blur",
    source="Xu et al., Feature Squeezing, NDSS 2018, Sec. II-C (local smoothing)",
    trains=False,
    settings={**UNTRAINED, "sigma": Field(1.0, "standard deviation of the filter", "pixels", above=0)},
    network=lambda settings: Blurred(settings.sigma),
    parts=lambda settings: [f"{settings.sigma:g} pixels", f"after {settings.start_from}"],
)
