"""Which pixels a 2-D convolution reads, and how often: the geometry behind an unfolded input."""

import dataclasses
from collections.abc import Sequence
from numbers import Integral

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

PADDING_NAMES = ("SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT")
_PAD_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect"}

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Window:
    """The sliding window of one 2-D convolution over images of one size; all sizes are (height, width).

    Periodic and mirrored padding is done by `pad_periodic` beforehand, because its values are copies of pixels. What is
    left for `zero_padding` are zeros, as in `jax.lax.conv_general_dilated`.
    """

    image_size: Pair  # after pad_periodic
    kernel_size: Pair
    strides: Pair
    periodic_padding: tuple[Pair, Pair]
    periodic_mode: str | None
    zero_padding: tuple[Pair, Pair]
    input_dilation: Pair
    kernel_dilation: Pair

    @property
    def output_size(self) -> Pair:
        """Size of the convolution's output; the number of patches P is its product."""
        return tuple(self._positions(axis).shape[0] for axis in (0, 1))

    @property
    def entries(self) -> int:
        """Entries of the unfolded input per channel: kernel height x kernel width x P, zeros included."""
        (height, width), (rows, columns) = self.output_size, self.kernel_size
        return height * width * rows * columns

    def visits(self) -> Int[np.ndarray, "height width"]:
        """In how many entries of the unfolded input each pixel occurs."""
        return np.outer(self._axis_visits(0), self._axis_visits(1))

    def pad_periodic(self, images: Float[Array, "batch h w channels"]) -> Float[Array, "batch height width channels"]:
        """Images with their 'CIRCULAR' or 'REFLECT' margins; unchanged for every other padding."""
        if self.periodic_mode is None:
            return images
        return jnp.pad(images, ((0, 0), *self.periodic_padding, (0, 0)), mode=self.periodic_mode)

    def crop_periodic(self, padded: Array) -> Array:
        """Undoes `pad_periodic`."""
        rows, columns = (
            slice(low, size - high) for (low, high), size in zip(self.periodic_padding, self.image_size, strict=True)
        )
        return padded[:, rows, columns]

    def pad_zeros(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w channels"]:
        """Images with all zeros that the convolution sees: around them and, for a dilated input, between pixels."""
        spatial = [
            (low, high, step - 1) for (low, high), step in zip(self.zero_padding, self.input_dilation, strict=True)
        ]
        return lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])

    def tap(self, padded: Float[Array, "batch h w channels"], row, column) -> Float[Array, "batch oh ow channels"]:
        """What kernel element (row, column) sees at every output position, from the result of `pad_zeros`.

        The taps of all kernel elements together are the unfolded input. Row and column may be traced.
        """
        (out_h, out_w), (stride_h, stride_w) = self.output_size, self.strides
        start = (0, row * self.kernel_dilation[0], column * self.kernel_dilation[1], 0)
        batch, _, _, channels = padded.shape
        size = (batch, (out_h - 1) * stride_h + 1, (out_w - 1) * stride_w + 1, channels)
        return lax.dynamic_slice(padded, start, size)[:, ::stride_h, ::stride_w]

    def _positions(self, axis: int) -> Int[np.ndarray, "outputs taps"]:
        """Coordinates (in the dilated, unpadded image; outside it means padding) that each output reads."""
        low, high = self.zero_padding[axis]
        reach = (self.kernel_size[axis] - 1) * self.kernel_dilation[axis] + 1
        extent = (self.image_size[axis] - 1) * self.input_dilation[axis] + 1 + low + high
        outputs = max(0, (extent - reach) // self.strides[axis] + 1)
        return (
            np.arange(outputs)[:, None] * self.strides[axis]
            - low
            + np.arange(self.kernel_size[axis])[None, :] * self.kernel_dilation[axis]
        )

    def _axis_visits(self, axis: int) -> Int[np.ndarray, " size"]:
        pixels, between = np.divmod(self._positions(axis), self.input_dilation[axis])
        inside = (between == 0) & (pixels >= 0) & (pixels < self.image_size[axis])
        return np.bincount(pixels[inside], minlength=self.image_size[axis])


def make_window(
    image_size: Sequence[int],
    kernel_size: Sequence[int],
    *,
    strides: int | Sequence[int] | None = 1,
    padding: str | int | Sequence[int | Sequence[int]] = "SAME",
    input_dilation: int | Sequence[int] | None = 1,
    kernel_dilation: int | Sequence[int] | None = 1,
) -> Window:
    """The window of a 2-D convolution whose arguments are written as `flax.linen.Conv` takes them.

    Raises:
        ValueError: an argument that is not one of a two-dimensional convolution.
    """
    if isinstance(kernel_size, Integral):
        raise ValueError(
            f"kernel_size must be a pair such as (3, 3), got {kernel_size}: a single number means a "
            "one-dimensional kernel in flax, and only two-dimensional convolutions are supported."
        )
    kernel_size = _pair(kernel_size, "kernel_size")
    strides = _pair(strides, "strides")
    input_dilation = _pair(input_dilation, "input_dilation")
    kernel_dilation = _pair(kernel_dilation, "kernel_dilation")
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel_size, kernel_dilation, strict=True)]
    none = ((0, 0), (0, 0))
    image_size, periodic, mode = tuple(image_size), none, None
    if isinstance(padding, str):
        name = padding.upper()
        if name not in PADDING_NAMES:
            raise ValueError(
                f"padding {padding!r} is not one of {', '.join(PADDING_NAMES)}, a number or two (low, "
                "high) pairs. 'CAUSAL' exists for one-dimensional convolutions only."
            )
        if name in _PAD_MODES:
            periodic, mode, zeros = tuple(((size - 1) // 2, size // 2) for size in reach), _PAD_MODES[name], none
            image_size = tuple(size + low + high for size, (low, high) in zip(image_size, periodic, strict=True))
        else:
            # As lax.conv_general_dilated: computed from the size before input dilation.
            zeros = tuple((int(low), int(high)) for low, high in lax.padtype_to_pads(image_size, reach, strides, name))
    else:
        zeros = _explicit_padding(padding)
    return Window(image_size, kernel_size, strides, periodic, mode, zeros, input_dilation, kernel_dilation)


def _pair(value: int | Sequence[int] | None, name: str) -> Pair:
    pair = (1, 1) if value is None else _as_pair(value)
    if pair is None or min(pair) < 1:
        raise ValueError(f"{name} must be a positive whole number or a pair of them, got {value!r}.")
    return pair


def _explicit_padding(padding: int | Sequence[int | Sequence[int]]) -> tuple[Pair, Pair]:
    both = (padding, padding) if isinstance(padding, Integral) else padding
    pairs = [_as_pair(entry) for entry in both] if isinstance(both, Sequence) else []
    if len(pairs) != 2 or None in pairs:
        raise ValueError(
            f"padding must be one of {', '.join(PADDING_NAMES)}, a whole number, a pair of whole numbers "
            f"or two (low, high) pairs, got {padding!r}."
        )
    return tuple(pairs)


def _as_pair(value: int | Sequence[int]) -> Pair | None:
    """The two numbers meant by a number or a pair of numbers, None if it is neither."""
    pair = (value, value) if isinstance(value, Integral) else value
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(entry, Integral) for entry in pair):
        return None
    return int(pair[0]), int(pair[1])
