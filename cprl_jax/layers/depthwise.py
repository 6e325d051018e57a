"""Depthwise convolution that is not slow on a CPU: every channel with a kernel of its own.

On CPUs, XLA (JAX 0.10 to 0.12) computes a convolution with as many groups as channels group by group, 10 to 80 times
slower than the same sum written as products of the shifted image with one kernel element each:

* values: one such sum;
* the gradient in the image: another one, of the gradient in the values. With a stride, pixels that lie a whole number
  of strides apart meet the same kernel elements: each of these sets is such a sum, and they are interleaved;
* the gradient in the kernel: for each element the sum over an image's places, then over images, which is accurate and
  depends little on how many devices share a batch.

`python benchmarks/convolution.py` measures them. On a GPU or TPU this is XLA's convolution throughout.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]


def depthwise(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width 1 channels"],
    *,
    strides: Strides = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
) -> Float[Array, "batch out_height out_width channels"]:
    """The convolution of `lax.conv_general_dilated` with `feature_group_count=channels`, differentiable in both modes.

    On a CPU, half precision is added up in float32.

    Args:
      x: any range.
      kernel: HWIO.
      strides: strides along height and width.
      padding: zeros before and after height and width.
    """
    options = dict(strides=strides, padding=padding)
    return lax.platform_dependent(
        x, kernel, cpu=functools.partial(_on_cpu, **options), default=functools.partial(_library, **options)
    )


def _library(x, kernel, *, strides, padding):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


def _on_cpu(x, kernel, *, strides, padding):
    exact = jnp.promote_types(x.dtype, jnp.float32)
    return _depthwise(x.astype(exact), kernel.astype(exact), strides, padding).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, strides, padding):
    return _sum_of_shifts(_padded(x, padding), kernel, strides)


@_depthwise.defjvp
def _depthwise_jvp(strides, padding, primals, tangents):
    """Linear in each tangent: the gradients are the transposes of the two terms."""
    x, kernel = primals
    x_dot, kernel_dot = tangents
    values = _depthwise(x, kernel, strides, padding)
    # The transpose of the gradient in the image; the transpose of this is that gradient again.
    by_image = jax.linear_transpose(lambda y: _image_gradient(y, kernel, strides, padding, x.shape), values)
    # A copy for each image: the gradients in these are added up.
    copies = jnp.broadcast_to(kernel_dot, (x.shape[0], *kernel_dot.shape))
    return values, by_image(x_dot)[0] + _sum_of_shifts(_padded(x, padding), copies, strides)


# Compiled on their own, so that layers of one shape are traced once.
@functools.partial(jax.jit, static_argnums=2)
def _sum_of_shifts(x, kernel, strides):
    """The convolution of a padded x with a kernel [height, width, 1, channels], or with one for each image."""
    rows, columns, _, channels = kernel.shape[-4:]
    height, width = (
        (size - length) // stride + 1
        for size, length, stride in zip(x.shape[1:3], (rows, columns), strides, strict=True)
    )
    return sum(
        x[
            :,
            row : row + strides[0] * (height - 1) + 1 : strides[0],
            column : column + strides[1] * (width - 1) + 1 : strides[1],
        ]
        * kernel[..., row, column, :, :].reshape(-1, 1, 1, channels)
        for row in range(rows)
        for column in range(columns)
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _image_gradient(y, kernel, strides, padding, shape):
    """The gradient in an image of that shape, from that in the values."""
    height, width = (size + sum(pair) for size, pair in zip(shape[1:3], padding, strict=True))
    blocks = -(-height // strides[0]), -(-width // strides[1])  # padded to a whole number of strides
    phases = []
    for first_row in range(strides[0]):
        for first_column in range(strides[1]):
            part = kernel[first_row :: strides[0], first_column :: strides[1]][::-1, ::-1]
            if 0 in part.shape:  # no window begins so
                phases.append(jnp.zeros((shape[0], *blocks, shape[3]), y.dtype))
                continue
            margins = [
                (length - 1, count - size)
                for length, count, size in zip(part.shape[:2], blocks, y.shape[1:3], strict=True)
            ]
            phases.append(_sum_of_shifts(_padded(y, margins), part, (1, 1)))
    pixels = jnp.stack(phases, axis=3).reshape(shape[0], *blocks, *strides, shape[3])
    pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(
        shape[0], blocks[0] * strides[0], blocks[1] * strides[1], shape[3]
    )
    (top, _), (left, _) = padding
    return pixels[:, top : top + shape[1], left : left + shape[2]]


def _padded(x, padding):
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))
