"""What a network is: its declaration, and the base classes of what it computes.

A file of this folder that ends in `NETWORK = Network(...)` adds a network: its name to `config.model.name`, its
variants to `config.model.backbone`, its settings as `config.model.NAME`, its weights to `config.model.weights`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from cprl_jax.config.field import Field, listed, near
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.change import NetworkChange, Place
from cprl_jax.models.common import Dropout, Normalization, Standardization, batch_norm, conv, linear
from cprl_jax.models.torch_names import TorchNames
from cprl_jax.runtime.errors import UserError

Tensors = dict[str, np.ndarray]
"""Arrays by name."""


class MaskableModule(nn.Module, kw_only=True):
    """A network, a trunk or a block of one: a module whose convolutions may be masked, and which a method may change.

    Attributes:
      sort_mask: which convolutions are masked.
      change: what the training method changes.
      dtype: of the computation; parameters and statistics are float32.
      axis_name: the mapped axis over which the batch is spread, if any.
    """

    sort_mask: SortMaskPlacement = SortMaskPlacement()
    change: NetworkChange = NetworkChange()
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def shared(self) -> dict[str, Any]:
        """The attributes above, for the modules inside this one."""
        return dict(sort_mask=self.sort_mask, change=self.change, dtype=self.dtype, axis_name=self.axis_name)

    def conv(
        self,
        x: Float[Array, "batch height width channels"],
        features: int,
        kernel_size: int,
        *,
        name: str,
        train: bool,
        stage: int = 0,
        **options: Any,
    ) -> Float[Array, "batch out_height out_width features"]:
        """`common.conv` with the attributes of this module; called in a compact method."""
        x = self.change.conv_input(self, x, self._place(f"{name}_input", stage, train))
        options |= dict(sort_mask=self.sort_mask, dtype=self.dtype, axis_name=self.axis_name)
        return conv(x, features, kernel_size, name=name, train=train, stage=stage, **options)

    def activate(
        self,
        x: Float[Array, "batch height width channels"],
        activation: Callable[[Array], Array],
        *,
        name: str,
        stage: int,
        train: bool,
    ) -> Float[Array, "batch height width channels"]:
        """An activation of the trunk, or what the method has in its place; called in a compact method.

        Args:
          x: what is activated.
          activation: the network's own, such as `nn.relu`.
          name: of the place, unique in this module.
          stage: as `sort_mask.stages` counts.
          train: whether the network is in training mode.
        """
        return self.change.activation(self, x, activation, self._place(name, stage, train))

    def end_stage(
        self, x: Float[Array, "batch height width channels"], *, stage: int, train: bool
    ) -> Float[Array, "batch height width channels"]:
        """The end of a stage of the trunk, where a method may add a block; called in a compact method."""
        return self.change.stage_output(self, x, self._place(f"stage{stage}_end", stage, train))

    def _place(self, name: str, stage: int, train: bool) -> Place:
        return Place(name, stage, train, self.dtype, self.axis_name)

    def batch_norm(
        self, x: Float[Array, "batch height width channels"], *, name: str, train: bool, **options: Any
    ) -> Float[Array, "batch height width channels"]:
        """`common.batch_norm` with the attributes of this module; called in a compact method."""
        return batch_norm(x, name=name, train=train, dtype=self.dtype, axis_name=self.axis_name, **options)


class ScoreNetwork(MaskableModule, kw_only=True):
    """A network that gives scores [batch] for images [batch, height, width, 3], RGB in [0, 1], the higher the better.

    Its trunk computes in `dtype`, its head in float32.

    Attributes:
      score_mean, score_std: score = score_mean + score_std * output of the head.
      dropout: rate, in the head.
    """

    score_mean: float = 0.0
    score_std: float = 1.0
    dropout: float = 0.0

    normalization: ClassVar[Normalization] = Normalization()
    smallest_image: ClassVar[int] = 1  # pixels a side
    largest_image: ClassVar[int | None] = None  # None: any

    def trunk(self, trunk: type[nn.Module], images: Float[Array, "batch height width 3"], train: bool, **options: Any):
        """The maps of a trunk, a submodule named 'backbone', for the normalised images; called in a compact method.

        Args:
          trunk: a `MaskableModule` of (images, train).
          images: RGB in [0, 1].
          train: as in `__call__`.
          options: further attributes of the trunk.

        Raises:
          ValueError: images of fewer than `smallest_image` pixels a side.
        """
        height, width = images.shape[1:3]
        if min(height, width) < self.smallest_image:
            raise ValueError(
                f"{type(self).__name__} takes images of at least {self.smallest_image}x{self.smallest_image} pixels, "
                f"got {height}x{width}"
            )
        images = self.change.images(images)
        return trunk(**self.shared, **options, name="backbone")(self.normalization.normalize(images), train)

    def standardized_score(self, features: Float[Array, "batch features"], train: bool) -> Float[Array, " batch"]:
        """The score of pooled features: standardised, with dropout, and a linear layer; called in a compact method."""
        features = Standardization(self.axis_name, name="head_standardization")(features, train)
        features = Dropout(self.dropout, self.axis_name)(features, train)
        output = linear(features, 1, name="head", kernel_init=nn.initializers.normal(0.1))
        return self.score(output[:, 0])

    def score(self, output: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """score_mean + score_std * output."""
        return self.score_mean + self.score_std * output


def linear_head(*layers: str) -> Callable[[Tensors, float, float], None]:
    """Rescales loaded parameters so that mean + std * output is what the output was before, in place.

    Args:
      layers: those in which the output is linear; the output contains the bias of the first one as it is.
    """

    def rescale(tensors: Tensors, mean: float, std: float) -> None:
        for layer in layers:
            for leaf in ("kernel", "bias"):
                name = f"params/{layer}/{leaf}"
                if name in tensors:
                    offset = mean if (layer, leaf) == (layers[0], "bias") else 0.0
                    tensors[name] = (tensors[name] - offset) / std

    return rescale


class PackagedFile(NamedTuple):
    """A file of weights in an installed Python package."""

    package: str  # the name that Python imports it by
    file: str  # its path inside the package


class PublishedWeights(NamedTuple):
    """Weights that somebody published, and that `models.load_weights` reads."""

    source: str  # who publishes them: a package, a repository ('owner/name'), and the file where there are several
    licence: str  # of the weights as they are published: an SPDX name, or 'none stated'


TORCHVISION = PublishedWeights("torchvision", "BSD-3-Clause")
PYIQA = PublishedWeights("chaofengc/IQA-PyTorch", "CC-BY-NC-SA-4.0")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that `config.model.name` can name.

    Attributes:
      name: in configurations.
      title: for a reader.
      source: the publication.
      weights: all that are known to load; () means that nobody has published any, so that it starts from random ones.
      module: the class; its attributes are those of `ScoreNetwork`, `backbone` if there are variants, and the settings.
      variants: the values of `config.model.backbone`; the first one is the default.
      settings: they become `config.model.NAME.SETTING`, and attributes of the module.
      stages: of the trunk that have convolutions larger than 1x1, where SortMask may be; 0 is the stem.
      sort_mask: its place where the configuration does not say (`stages`, `min_channels`): the middle of the trunk.
      torch_names: of the weights that are published for torch, if any are.
      prepare: makes those names, or ours ('params/...'), out of other published ones: (tensors, settings) -> tensors.
      rescale: (tensors by our names, mean, std), see `linear_head`; the weights must give the scores of the file.
      optional_parts: beginnings of our names, in the trunk, that a file may lack as a whole, and what they are called.
      imagenet: variant ('' if there are none) -> the file that weights='imagenet' means.
      fit: of a network that is not trained by gradients (`models.fitted`): (module, training images, validation images,
        pristine, seed) -> (variables, numbers to note); `pristine()` reads undistorted photographs, for who needs them.
      read: of such a network: (path, module) -> its parameters by name, from a file that somebody else published.
    """

    name: str
    title: str
    source: str
    weights: tuple[PublishedWeights, ...]
    module: type[ScoreNetwork]
    variants: tuple[str, ...] = ()
    settings: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    stages: tuple[int, ...] = (1, 2, 3)
    sort_mask: SortMaskPlacement = SortMaskPlacement()
    torch_names: TorchNames | None = None
    prepare: Callable[[Tensors, Mapping[str, Any]], Tensors] = lambda tensors, settings: tensors
    rescale: Callable[[Tensors, float, float], None] = linear_head("head")
    optional_parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    imagenet: Mapping[str, PackagedFile] = dataclasses.field(default_factory=dict)
    fit: Callable[..., tuple[Mapping, dict[str, float]]] | None = None
    read: Callable[..., Mapping[str, Any]] | None = None

    def variant(self, backbone: str) -> str:
        """The variant that a value of `config.model.backbone` means: '' is the default. '' if there are no variants.

        Raises:
          UserError: an unknown one.
        """
        if not self.variants:
            return ""
        if backbone and backbone not in self.variants:
            raise UserError(
                f"config.model.backbone is {backbone!r}{near(backbone, self.variants)}; allowed for {self.name}: "
                f"{listed(self.variants)}"
            )
        return backbone or self.variants[0]

    def described(self, backbone: str) -> str:
        """'resnet (resnet18)', 'squeezenet': the name and the variant that a value of `config.model.backbone` means."""
        variant = self.variant(backbone)
        return f"{self.name} ({variant})" if variant else self.name

    def settings_of(self, config_model: ml_collections.ConfigDict) -> dict[str, Any]:
        """The values of the settings in `config.model`; a block or a setting that is absent has its default.

        Raises:
          UserError: a value that its field does not allow.
        """
        block, values = config_model.get(self.name, {}), {}
        for name, field in self.settings.items():
            value = block.get(name, field.default)
            values[name] = tuple(value) if isinstance(field.default, tuple) else value
            field.check(f"config.model.{self.name}.{name}", values[name])
        return values
