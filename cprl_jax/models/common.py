"""What the networks share: normalisation of the input, convolutions, pooling, and the parts of their heads.

Convolutions, pooling and dropout are written for three things that the stock layers lack: a 1x1 convolution and a
max-pooling whose gradients are not slow on a CPU, random draws that do not depend on how many devices share a batch,
and one place where SortMask gets into any network.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from cprl_jax.layers.convolution import conv_general_dilated
from cprl_jax.layers.sort_mask import SortMaskConv, SortMaskPlacement

BATCH_NORM_MOMENTUM = 0.9  # of running averages: how much of them stays

# Initial values as torch draws them: kaiming_normal_ with its default fan_in (standard deviation sqrt(2 / fan_in)), and
# its two modes and distributions that the published networks use.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
kaiming_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
torch_default = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")  # uniform within 1 / sqrt(fan_in)


def torch_default_bias(fan_in: int) -> Callable:
    """Uniform within 1 / sqrt(fan_in), the initial bias of torch's Linear and Conv2d."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Normalization(NamedTuple):
    """(images - mean) / std, for RGB in [0, 1]; by default the images as they are."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def normalize(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
        if self == Normalization():
            return images
        mean, std = (jnp.asarray(values, images.dtype).reshape(1, 1, 1, 3) for values in self)
        return (images - mean) / std


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's models
SIGNED = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # to [-1, 1]


class InputNormalization(nn.Module):
    """(images - mean) / std with the constants that the trunk's weights were trained with.

    They are variables (`mean` and `std` [3], of RGB in [0, 1], in the collection 'batch_stats') and not attributes, so
    that they are loaded, checkpointed and saved together with the weights that need them. ImageNet's until then.
    """

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
        mean = self.variable("batch_stats", "mean", lambda: jnp.asarray(IMAGENET.mean, jnp.float32)).value
        std = self.variable("batch_stats", "std", lambda: jnp.asarray(IMAGENET.std, jnp.float32)).value
        return (images - mean.reshape(1, 1, 1, 3)) / std.reshape(1, 1, 1, 3)


class PointwiseConv(nn.Module):
    """A 1x1 convolution as one matrix product, with the parameters of `nn.Conv` (`kernel` [1, 1, in, out], `bias`).

    XLA's convolution needs up to 3x the time for the gradient of such a kernel on a CPU.
    """

    features: int
    stride: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.stride > 1:
            x = x[:, :: self.stride, :: self.stride]
        # Flat: the gradient of a product with three batch axes is slower.
        y = (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], self.features)
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)


def conv(
    x: Float[Array, "batch height width channels"],
    features: int,
    kernel_size: int,
    *,
    name: str,
    train: bool,
    stage: int = 0,
    sort_mask: SortMaskPlacement = SortMaskPlacement(),  # noqa: B008 (frozen)
    stride: int = 1,
    padding: int | str = 0,
    groups: int = 1,
    use_bias: bool = True,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    kernel_init: Callable = nn.initializers.lecun_normal(),  # noqa: B008 (a pure function)
    bias_init: Callable = nn.initializers.zeros_init(),  # noqa: B008
) -> Float[Array, "batch out_height out_width features"]:
    """A convolution of a network, to be called in a compact method: masked where `sort_mask` covers it.

    The parameters are `name`/kernel (HWIO) and `name`/bias in every case, so weights fit with and without masks.

    Args:
      x: input.
      features: output channels.
      kernel_size: height and width of the kernel.
      name: of the submodule.
      train: whether masks are random (rng stream 'mask') or sorted.
      stage: of the network, as `sort_mask.stages` counts: the stem is 0.
      sort_mask: which convolutions are masked.
      stride: of both axes.
      padding: zeros on every side, as in torch, or 'SAME', as in TensorFlow.
      groups: 1, or as many as channels: a depthwise convolution.
      use_bias, kernel_init, bias_init: as in `nn.Conv`.
      dtype: of the computation; parameters are float32.
      axis_name: the mapped axis over which the batch is spread, if any.
    """
    options = dict(use_bias=use_bias, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, name=name)
    if kernel_size == 1 and padding in (0, "SAME") and groups == 1:
        return PointwiseConv(features, stride=stride, **options)(x)
    options.update(strides=(stride, stride), padding=padding, conv_general_dilated=conv_general_dilated)
    if groups > 1:
        options.update(feature_group_count=groups)
    if sort_mask.covers(x.shape[-1], stage, kernel_size):
        options.update(rate=sort_mask.rate, selection=sort_mask.selection, masks=sort_mask.masks, axis_name=axis_name)
        return SortMaskConv(features, (kernel_size, kernel_size), **options)(x, train)
    return nn.Conv(features, (kernel_size, kernel_size), **options)(x)


def batch_norm(
    x: Float[Array, "batch height width channels"],
    *,
    name: str,
    train: bool,
    dtype: Any,
    axis_name: str | None,
    epsilon: float = 1e-5,
    scale_init: Callable = nn.initializers.ones_init(),  # noqa: B008 (a pure function)
) -> Float[Array, "batch height width channels"]:
    """Batch normalisation with torch's constants, over all devices of `axis_name`; called in a compact method.

    The running variance is updated with the biased variance of the batch (torch: unbiased, n / (n - 1) times it).
    """
    # use_fast_variance computes E[x^2] - E[x]^2, which cancels.
    return nn.BatchNorm(
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=epsilon,
        dtype=dtype,
        axis_name=axis_name,
        use_fast_variance=False,
        scale_init=scale_init,
        name=name,
    )(x, use_running_average=not train)


@jax.custom_jvp
def _first_maximum(first: Array, second: Array) -> Array:
    return jnp.maximum(first, second)


@_first_maximum.defjvp
def _first_maximum_jvp(primals, tangents):
    return _first_maximum(*primals), jnp.where(primals[0] >= primals[1], *tangents)


def max_pool(
    x: Float[Array, "batch height width channels"],
    *,
    window: int,
    stride: int,
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
) -> Float[Array, "batch out_height out_width channels"]:
    """Max-pooling as maxima of shifted slices; the gradient of a tie goes to its first pixel in reading order.

    Values and gradients are those of torch's MaxPool2d. XLA's own gradient (select-and-scatter) takes 10x the time on a
    CPU. Where a ReLU meets a max-pooling, apply the ReLU after it: the same numbers (a tie of zeros has no gradient
    either way), a quarter of the work, and a far cheaper gradient.

    Args:
      x: any range.
      window: height and width in pixels.
      stride: of both axes.
      padding: (low, high) of height and width, filled with -inf.

    Raises:
      ValueError: the padded x is smaller than the window.
    """
    if any(low or high for low, high in padding):
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-np.inf)
    if min(x.shape[1:3]) < window:
        raise ValueError(f"max-pooling needs at least {window}x{window} pixels, got {x.shape[1]}x{x.shape[2]}")

    # Columns first: a tie is then settled within a row before rows are compared, which is reading order.
    for axis in (2, 1):
        span = (x.shape[axis] - window) // stride * stride + 1
        slices = [lax.slice_in_dim(x, at, at + span, stride, axis) for at in range(window)]
        x = functools.reduce(_first_maximum, slices)
    return x


def average_pool(
    x: Float[Array, "batch height width channels"], window: int, *, stride: int = 1
) -> Float[Array, "batch pooled_height pooled_width channels"]:
    """Means over squares of window x window pixels inside the image."""
    # nn.avg_pool divides by an integer array, which jax_numpy_dtype_promotion="strict" refuses.
    return nn.pool(x, 0.0, lax.add, (window, window), (stride, stride), "VALID") / window**2


def ceil_padding(size: Sequence[int], *, window: int, stride: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding for `max_pool` that lets the last window hang over, as torch's `ceil_mode=True` and Caffe do."""
    return tuple((0, (window - pixels) % stride) for pixels in size)


def grid_patches(
    images: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch patches size size channels"]:
    """Patches of size x size pixels, side by side from the top left corner, row by row; what is left over is not seen.

    Raises:
      ValueError: an image smaller than a patch.
    """
    rows, columns = images.shape[1] // size, images.shape[2] // size
    if rows * columns == 0:
        raise ValueError(f"a patch has {size}x{size} pixels, the images have {images.shape[1]}x{images.shape[2]}")
    x = images[:, : rows * size, : columns * size]
    x = x.reshape(x.shape[0], rows, size, columns, size, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(x.shape[0], rows * columns, size, size, x.shape[-1])


def flatten_channels_first(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch features"]:
    """Flattens in the order of torch's NCHW, which published weights count on."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def global_mean(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
    """The mean over all pixels, in float32."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def global_max(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
    """The maximum over all pixels; the gradient of a tie goes to its first pixel in reading order.

    By `max_pool`: the gradient of `jnp.max` is NaN where compiled code computes x twice, with different roundings.
    """
    height, width = x.shape[1:3]
    side = max(height, width)
    return max_pool(x, window=side, stride=1, padding=((0, side - height), (0, side - width)))[:, 0, 0]


def global_std(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
    """The standard deviation over all pixels, in float32, of at least 0.01: the gradient at a flat x is 0, not NaN."""
    x = x.astype(jnp.float32)
    deviation = x - jnp.mean(x, axis=(1, 2), keepdims=True)
    return jnp.sqrt(jnp.mean(deviation * deviation, axis=(1, 2)) + 1e-4)


def linear(
    x: Float[Array, "*batch inputs"], features: int, *, name: str, kernel_init: Callable = torch_default
) -> Float[Array, "*batch features"]:
    """A linear layer in float32 with torch's initial values; called in a compact method."""
    dense = nn.Dense(features, kernel_init=kernel_init, bias_init=torch_default_bias(x.shape[-1]), name=name)
    return dense(x.astype(jnp.float32))


def example_keys(module: nn.Module, stream: str, batch: int, axis_name: str | None) -> Key[Array, " batch"]:
    """A random key for each example, which does not depend on how many devices share the batch.

    Args:
      module: in one of its methods.
      stream: the name of its stream of random numbers.
      batch: the examples of this device.
      axis_name: the mapped axis over which the batch is spread, if any.
    """
    first = 0 if axis_name is None else lax.axis_index(axis_name) * batch
    return jax.vmap(jax.random.fold_in, (None, 0))(module.make_rng(stream), first + jnp.arange(batch))


class Dropout(nn.Module):
    """Dropout of features; an example's mask does not depend on how many devices share its batch.

    Attributes:
      rate: share of the features that is dropped in training; the others are divided by 1 - rate.
      axis_name: the mapped axis over which the batch is spread, if any.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *places features"], train: bool
    ) -> Float[Array, "batch *places features"]:
        if not train or self.rate == 0:
            return x
        keys = example_keys(self, "dropout", x.shape[0], self.axis_name)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0)


def moments(
    x: Float[Array, "rows features"], axis_name: str | None
) -> tuple[Float[Array, " features"], Float[Array, " features"]]:
    """Mean and (biased) variance of each feature over all rows, of all devices of `axis_name`."""

    def average(values):
        values = jnp.mean(values, axis=0)
        return values if axis_name is None else lax.pmean(values, axis_name)

    mean = average(x)
    deviation = x - mean.reshape(1, -1)
    return mean, average(deviation * deviation)


def union_of_moments(mean: Array, variance: Array, new_mean: Array, new_variance: Array, *, share: Float[Array, ""]):
    """Mean and variance of the union of two sets, of which the new one has this share of the members."""
    change = new_mean - mean
    spread = new_variance - variance + (1.0 - share) * change * change
    return mean + share * change, variance + share * spread


class Standardization(nn.Module):
    """Brings features to mean 0 and a joint spread of 1, by the statistics of the first training batches, then fixed.

    A linear layer behind it starts well and learns at a rate that does not depend on the trunk's scale or width. It is
    no batch normalisation: that would couple the images of a batch, and remove from a batch of attacked images just the
    shift that the attack made.

    Variables in 'batch_stats': `mean` and `variance` [features], of the first `batches` calls with train=True (the
    plain average over them), and `count`, how many went in. The first call standardises by its own batch, the others by
    what was known before them. Before any training it is the division by sqrt(features) alone.

    Attributes:
      axis_name: the mapped axis over which the batch is spread, if any.
      batches: how many batches are averaged.
    """

    axis_name: str | None = None
    batches: int = 50

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool) -> Float[Array, "batch features"]:
        features = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        variance = self.variable("batch_stats", "variance", jnp.ones, (features,), jnp.float32)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.float32)
        used_mean, used_variance = mean.value, variance.value
        if train:
            batch_mean, batch_variance = moments(lax.stop_gradient(x), self.axis_name)
            first = count.value == 0
            used_mean = jnp.where(first, batch_mean, used_mean)
            used_variance = jnp.where(first, batch_variance, used_variance)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                share = jnp.where(count.value < self.batches, 1.0 / (count.value + 1.0), 0.0)
                mean.value, variance.value = union_of_moments(
                    mean.value, variance.value, batch_mean, batch_variance, share=share
                )
                count.value = count.value + (share > 0).astype(count.value.dtype)
        # A floor: a feature that never varied in those batches must not be blown up when it does.
        floor = 1e-3 * jnp.mean(used_variance)
        scale = lax.rsqrt((used_variance + floor + 1e-12) * features)
        return (x - used_mean.reshape(1, -1)) * scale.reshape(1, -1)
