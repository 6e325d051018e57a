"""Feature denoising: blocks that smooth the feature maps, in two forms.

'non_local': Xie et al., "Feature Denoising for Improving Adversarial Robustness", CVPR 2019, in their best form.
'filter': a blur, as CPRL's first author had it for its rows "Denoise". Both are described in docs/papers.md.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cprl_jax.config.field import Field
from cprl_jax.methods import adversarial_training_pgd as pgd
from cprl_jax.models.change import NetworkChange
from cprl_jax.models.common import PointwiseConv, batch_norm, kaiming_normal_fan_out, torch_default, torch_default_bias

_AT_ONCE = 2**20  # weights of a non-local mean that are held for each image at a time


def non_local_means(
    queries: Float[Array, "batch height width embedded"],
    keys: Float[Array, "batch height width embedded"],
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """At each position the mean of x over all positions, weighted by softmax(query . key / sqrt(embedded)); float32.

    Time grows with the square of the positions. Memory does not: positions are worked off in groups, whose weights the
    gradient computes again.
    """
    batch, height, width, channels = x.shape
    queries, keys, values = (
        maps.reshape(batch, height * width, maps.shape[-1]).astype(jnp.float32) for maps in (queries, keys, x)
    )
    queries = queries / math.sqrt(queries.shape[-1])

    @jax.checkpoint
    def mean_at(query: Float[Array, "batch embedded"]) -> Float[Array, "batch channels"]:
        weights = nn.softmax(jnp.einsum("be,bpe->bp", query, keys))
        return jnp.einsum("bp,bpc->bc", weights, values)

    group = max(1, _AT_ONCE // (height * width))
    means = lax.map(mean_at, queries.transpose(1, 0, 2), batch_size=group)
    return means.transpose(1, 0, 2).reshape(batch, height, width, channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonLocalBlocks(NetworkChange):
    """x + batch_norm(conv1x1(non-local means of x)) at the ends of stages; x itself before training.

    Attributes:
      stages: which; () for every one.
    """

    stages: tuple[int, ...] = ()

    def stage_output(self, module, x, place):
        if self.stages and place.stage not in self.stages:
            return x
        channels, options = x.shape[-1], dict(use_bias=False, dtype=place.dtype)
        embedding = dict(kernel_init=nn.initializers.normal(0.01), **options)
        queries, keys = (
            PointwiseConv(max(1, channels // 2), name=f"{place.name}_{role}", **embedding)(x)
            for role in ("theta", "phi")
        )
        means = non_local_means(queries, keys, x).astype(x.dtype)
        conv = PointwiseConv(channels, name=f"{place.name}_conv", kernel_init=kaiming_normal_fan_out, **options)
        change = batch_norm(
            conv(means),
            name=f"{place.name}_norm",
            train=place.train,
            dtype=place.dtype,
            axis_name=place.axis_name,
            scale_init=nn.initializers.zeros_init(),
        )
        return x + change


def blur(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """A 3x3 Gaussian filter, the border reflected, with sigma = 0.3 ((size - 1) / 2 - 1) + 0.8 of each side of the map.

    Of 56 pixels that is 8.75, and the filter nearly the mean of 9 pixels.
    """
    sizes = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    for axis, size in enumerate(sizes, start=1):
        sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
        beside = math.exp(-0.5 / sigma**2)
        before, here, after = (lax.slice_in_dim(x, at, at + size, axis=axis) for at in range(3))
        x = (here + beside * (before + after)) / (1 + 2 * beside)
    return x


@dataclasses.dataclass(frozen=True)
class Filters(NetworkChange):
    """x + conv1x1(blur(x)) in front of every convolution of more than the image's 3 channels."""

    def conv_input(self, module, x, place):
        channels = x.shape[-1]
        if channels <= 3:
            return x
        conv = PointwiseConv(
            channels,
            name=f"{place.name}_filter",
            dtype=place.dtype,
            kernel_init=torch_default,
            bias_init=torch_default_bias(channels),
        )
        return x + conv(blur(x))


def _network(settings):
    return NonLocalBlocks(stages=tuple(settings.stages)) if settings.block == "non_local" else Filters()


def _parts(settings):
    if settings.block == "filter":
        block = "3x3 filters"
    elif settings.stages:
        block = f"non-local blocks after stages {', '.join(str(stage) for stage in settings.stages)}"
    else:
        block = "non-local blocks"
    return [block, pgd.attack_part(settings)]


METHOD = dataclasses.replace(
    pgd.METHOD,
    name="denoise",
    title="feature denoising",
    source="Xie et al., CVPR 2019",
    settings={
        **pgd.OPTIONAL,
        "block": Field(
            "non_local",
            "the paper's, at the ends of stages, or a 'filter' in front of every convolution but the first",
            choices=("non_local", "filter"),
        ),
        "stages": Field(
            (),
            "of the network, after which non-local blocks are, () for all; their time grows with the square of the map",
            at_least=0,
        ),
    },
    parts=_parts,
    network=_network,
)
