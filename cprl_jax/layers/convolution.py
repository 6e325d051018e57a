"""Convolution that is not slow on a CPU, and its gradients least of all.

On CPUs, XLA (JAX 0.10 to 0.12) computes a convolution at a third of the machine's speed where a kernel has few output
features, and its gradient in the kernel three to six times more slowly than that. The same sums are fast as

* values: a convolution with one row of the kernel at a time, all rows side by side as features, which are then added
  up, shifted: three times the features for a 3x3 kernel;
* the gradient in the image: the transpose of a convolution whose columns are side by side as input channels, which is
  the same idea the other way round; for the wide kernel with a stride that a ResNet begins with, of blocks of pixels;
* the gradient in the kernel, and everything where there is a stride or a small map: a matrix product. Long sums of the
  gradient in the kernel are added up image by image, which also makes them more accurate, and with them the losses of a
  training depend less on how many devices share its batches.

`python benchmarks/convolution.py` measures all of them. On a GPU or TPU this is XLA's convolution throughout.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cprl_jax.layers.depthwise import Padding, Strides, depthwise

_SMALL_MAP = 64  # pixels up to which a matrix product is fastest
_FEW_CHANNELS = 8  # those of an image rather than a feature map: XLA's convolution is fastest, unless
_SMALL_KERNEL = 9  # its kernel has no more pixels than this and a stride
_LONG_SUM = 8  # times as many places as features: the gradient in the kernel is summed image by image


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    *,
    strides: Strides = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
) -> Float[Array, "batch out_height out_width features"]:
    """The convolution of `lax.conv_general_dilated` (a correlation, zeros as padding), differentiable in both modes.

    Args:
      x: any range.
      kernel: HWIO.
      strides: strides along height and width.
      padding: zeros before and after height and width.
    """
    options = dict(strides=strides, padding=padding)
    return lax.platform_dependent(
        x, kernel, cpu=functools.partial(_convolve, **options), default=functools.partial(_library, **options)
    )


def conv_general_dilated(
    lhs, rhs, window_strides, padding, *, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision
):
    """`convolve`, or `depthwise`, in the form in which `nn.Conv` takes the function that it calls.

    Raises:
      ValueError: dilation, a precision, or groups of more than one channel.
    """
    depth = 1 < feature_group_count == lhs.shape[-1] == rhs.shape[-1]
    if {*lhs_dilation, *rhs_dilation} != {1} or precision is not None or not (feature_group_count == 1 or depth):
        raise ValueError(
            "there is no dilation, no precision and no group of several channels here: leave conv_general_dilated of "
            "nn.Conv alone"
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    compute = depthwise if depth else convolve
    return compute(lhs, rhs, strides=tuple(window_strides), padding=tuple(tuple(pair) for pair in padding))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, strides, padding):
    if x.shape[-1] < _FEW_CHANNELS and (max(strides) == 1 or kernel.shape[0] * kernel.shape[1] > _SMALL_KERNEL):
        compute = _library
    else:
        compute = _as_product if _is_small(x, strides) else _by_rows
    return compute(x, kernel, strides, padding)


@_convolve.defjvp
def _convolve_jvp(strides, padding, primals, tangents):
    """Linear in each tangent: the gradients are the transposes of the two terms."""
    x, kernel = primals
    x_dot, kernel_dot = tangents
    if x.shape[-1] < _FEW_CHANNELS and max(strides) > 1 and kernel.shape[0] * kernel.shape[1] > _SMALL_KERNEL:
        by_image = _by_blocks
    else:
        by_image = _as_product if _is_small(x, strides) else _by_columns
    values = _convolve(x, kernel, strides, padding)
    sums_by_image = values.shape[1] * values.shape[2] >= _LONG_SUM * values.shape[3]
    return values, (
        by_image(x_dot, kernel, strides, padding)
        + _as_product(x, kernel_dot, strides, padding, sums_by_image=sums_by_image)
    )


def _is_small(x, strides) -> bool:
    return max(strides) > 1 or x.shape[1] * x.shape[2] <= _SMALL_MAP


def _library(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _by_rows(x, kernel, strides, padding):
    """Every row of the kernel gives separate features; their sum, each shifted by its row. Without strides."""
    height, width, channels, features = kernel.shape
    rows = kernel.transpose(1, 2, 0, 3).reshape(1, width, channels, height * features)
    # Padded first: XLA's convolution is slower when it pads.
    outputs = _library(_padded(x, padding), rows, strides, ((0, 0), (0, 0)))
    places = outputs.shape[1] - height + 1
    return sum(outputs[:, row : row + places, :, row * features : (row + 1) * features] for row in range(height))


def _by_columns(x, kernel, strides, padding):
    """Every column of the kernel has separate input channels: the image, shifted by its column. Without strides."""
    height, width, channels, features = kernel.shape
    x = _padded(x, padding)
    places = x.shape[2] - width + 1
    shifted = jnp.concatenate([x[:, :, column : column + places] for column in range(width)], axis=-1)
    return _library(shifted, kernel.reshape(height, 1, width * channels, features), strides, ((0, 0), (0, 0)))


def _by_blocks(x, kernel, strides, padding):
    """Blocks of as many pixels as a stride has become channels, of image and kernel; what is left has no stride."""
    x = _padded(x, padding)
    batch, _, _, channels = x.shape
    blocks = tuple(-(-length // stride) for length, stride in zip(kernel.shape, strides, strict=False))
    places = [place + count - 1 for place, count in zip(_places(x, kernel, strides), blocks, strict=True)]
    height, width = (count * stride for count, stride in zip(places, strides, strict=True))
    # Pixels after the last window are cut off; those that fill its last block are multiplied by zeros of the kernel.
    x = jnp.pad(x, ((0, 0), (0, max(0, height - x.shape[1])), (0, max(0, width - x.shape[2])), (0, 0)))
    x = x[:, :height, :width].reshape(batch, places[0], strides[0], places[1], strides[1], channels)
    missing = [(0, -length % stride) for length, stride in zip(kernel.shape, strides, strict=False)]
    kernel = jnp.pad(kernel, (*missing, (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks[0], strides[0], blocks[1], strides[1], channels, -1)
    return _by_columns(
        x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, *places, -1),
        kernel.transpose(0, 2, 1, 3, 4, 5).reshape(*blocks, -1, kernel.shape[-1]),
        (1, 1),
        ((0, 0), (0, 0)),
    )


def _as_product(x, kernel, strides, padding, *, sums_by_image=False):
    """The columns of all windows side by side, times the kernel; its rows are side by side as well, or added up after.

    Adding up takes a third of the memory for a 3x3 kernel, but computes every row for every place: with a stride or on
    a small map, more than is needed. `sums_by_image` is about the transpose: the gradient in the kernel.
    """
    kernel_height, kernel_width, channels, features = kernel.shape
    x = _padded(x, padding)
    height, width = _places(x, kernel, strides)
    if strides[0] > 1 or height * width <= _SMALL_MAP:
        windows = [
            x[
                :,
                row : row + strides[0] * (height - 1) + 1 : strides[0],
                column : column + strides[1] * (width - 1) + 1 : strides[1],
            ]
            for row in range(kernel_height)
            for column in range(kernel_width)
        ]
        product = _product(jnp.concatenate(windows, axis=-1), kernel.reshape(-1, features), sums_by_image)
        return product.reshape(x.shape[0], height, width, features)
    columns = [x[:, :, column : column + strides[1] * (width - 1) + 1 : strides[1]] for column in range(kernel_width)]
    by_row = kernel.transpose(1, 2, 0, 3).reshape(kernel_width * channels, kernel_height * features)
    product = _product(jnp.concatenate(columns, axis=-1), by_row, sums_by_image)
    product = product.reshape(x.shape[0], x.shape[1], width, kernel_height, features)
    return sum(product[:, row : row + height, :, row] for row in range(kernel_height))


def _product(x, matrix, by_image):
    """The last axis of x times the matrix; each image times its own copy of it, if `by_image`."""
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    if by_image:
        return x @ jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape))
    return x.reshape(-1, x.shape[-1]) @ matrix


def _places(x, kernel, strides) -> tuple[int, int]:
    """How many windows of the kernel there are in a padded image, down and across."""
    sizes = zip(x.shape[1:3], kernel.shape, strides, strict=False)
    return tuple((size - length) // stride + 1 for size, length, stride in sizes)


def _padded(x, padding):
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))
