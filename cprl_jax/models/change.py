"""What a training method changes in any network: its images, the inputs of convolutions, activations, ends of stages.

A method that changes the network (smooth activations, competing channels, denoising blocks) declares a subclass of
`NetworkChange`, which overrides the places that it changes. The networks call these places by `MaskableModule`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax.config.field import listed
from cprl_jax.runtime.errors import UserError

Maps = Float[Array, "batch height width channels"]


class Place(NamedTuple):
    """Where in a network something is.

    Attributes:
      name: of the place, unique in its module ('conv1_relu'); the name of what a change adds there.
      stage: as SortMask's stages count: 0 is the stem.
      train: whether the network is in training mode.
      dtype: of the computation.
      axis_name: the mapped axis over which the batch is spread, if any.
    """

    name: str
    stage: int
    train: bool
    dtype: Any
    axis_name: str | None


@dataclasses.dataclass(frozen=True)
class NetworkChange:
    """No change: the places of every network as they are. Subclasses are frozen dataclasses that override some.

    All methods but `images` are called in a compact method of a module: they may make submodules (named after
    `Place.name`), whose variables the weights of the unchanged network may lack. Random numbers come from
    `common.example_keys(module, "change", ...)`.

    Attributes:
      draws: of a network that is random in evaluation mode too: a score is the mean over so many draws. 0: none are.
      stages: those that change, all of which the network must have. (): every one.
    """

    draws: ClassVar[int] = 0
    stages: ClassVar[tuple[int, ...]] = ()

    def images(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
        """What the network sees in place of the images, RGB in [0, 1]."""
        return images

    def conv_input(self, module: nn.Module, x: Maps, place: Place) -> Maps:
        """In front of a convolution of the trunk."""
        return x

    def activation(self, module: nn.Module, x: Maps, default: Callable[[Maps], Maps], place: Place) -> Maps:
        """In place of an activation of the trunk, `default`."""
        return default(x)

    def stage_output(self, module: nn.Module, x: Maps, place: Place) -> Maps:
        """At the end of a stage of the trunk."""
        return x


_PLACES = {
    "images": "images that a change can take part in",
    "conv_input": "convolutions behind a change",
    "activation": "activations that can be replaced",
    "stage_output": "stages that a change can follow",
}


def check_change(module: nn.Module, image_size: int) -> None:
    """Raises UserError where a network lacks every place of a kind, or a stage, that its change is about."""
    change = getattr(module, "change", NetworkChange())
    overridden = [place for place in _PLACES if getattr(type(change), place) is not getattr(NetworkChange, place)]
    if not overridden:
        return
    recorder = _Recorder(change, set(), set())
    recorded = module.clone(change=recorder)
    streams = {"params": jax.random.key(0), "change": jax.random.key(0)}
    jax.eval_shape(lambda: recorded.init(streams, jnp.zeros((1, image_size, image_size, 3))))
    if unmet := [_PLACES[place] for place in overridden if place not in recorder.met]:
        raise UserError(
            f"{type(module).__name__} has no {' and no '.join(unmet)}, which this method needs: set another "
            "config.model.name, or leave the method out of config.methods"
        )
    if unknown := set(change.stages) - recorder.ended:
        raise UserError(
            f"the stages of a method's settings name {listed(sorted(unknown))}; those of {type(module).__name__} that "
            f"end with a change are {listed(sorted(recorder.ended))}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Recorder(NetworkChange):
    """A change that notes which places a network calls."""

    change: NetworkChange
    met: set[str]
    ended: set[int]  # stages

    def images(self, images):
        self.met.add("images")
        return self.change.images(images)

    def conv_input(self, module, x, place):
        self.met.add("conv_input")
        return self.change.conv_input(module, x, place)

    def activation(self, module, x, default, place):
        self.met.add("activation")
        return self.change.activation(module, x, default, place)

    def stage_output(self, module, x, place):
        self.met.add("stage_output")
        self.ended.add(place.stage)
        return self.change.stage_output(module, x, place)
