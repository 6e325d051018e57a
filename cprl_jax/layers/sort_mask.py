"""SortMask: a convolution that does not see the values closest to the mean of its input (CPRL, section 4.2.2).

The paper unfolds the input of a convolution into x_u, the (C_in k_h k_w) x P matrix of all patches, and computes
W (M * x_u) with a mask M of zeros and ones:

* in training each entry of M is 1 with probability 1 - p, independently;
* at test time M_i = 1 iff |x_u,i - mu| > TopK(|x_u - mu|, K), with mu the mean of x_u and K = (1 - p) C_in k_h k_w P.

Nothing here builds x_u, except `selection='top_k'`, which is that definition word for word:

* The test-time verdict looks at an entry's value alone, so all copies of a pixel share it and W (M * x_u) is
  conv(x * m) with one mask m over pixels. mu and the K-th largest distance are those of the pixels weighted by how many
  patches each occurs in, padding counted as that many zeros.
* The training mask differs from copy to copy, but W (M * x_u) is the sum over kernel elements of a shifted 1x1 product
  with a mask of its own.

Where the paper leaves a choice: mu and K are per sample; K is rounded down; p = 0 means no mask (the printed strict
inequality would drop the smallest distance even then); surviving entries are not rescaled by 1 / (1 - p); a mask is a
constant for differentiation.
"""

import dataclasses
import fractions
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from cprl_jax.layers import _keep_bits
from cprl_jax.layers._window import Window, make_window

SELECTIONS = ("fast", "top_k")
MASKS = ("sorted", "straight_through", "random")
MONOTONE_SEARCH = "sort_mask_threshold"
"""Name of the compiled search for the threshold, which grows with each distance that it is given."""


def sort_mask(
    x: Float[Array, "batch height width channels"],
    rate: float,
    kernel_size: Sequence[int],
    strides: int | Sequence[int] = (1, 1),
    padding: str | int | Sequence[int | Sequence[int]] = "SAME",
    selection: str = "fast",
    *,
    input_dilation: int | Sequence[int] = (1, 1),
    kernel_dilation: int | Sequence[int] = (1, 1),
) -> Bool[Array, "batch height width channels"]:
    """The test-time mask of the convolution that reads x: False for the share `rate` of values nearest to their mean.

    Exactly the printed rule per sample: True iff |x - mu| exceeds the K-th largest |x_u - mu| of the unfolded input
    x_u (padding included), K = floor((1 - rate) N), N = channels * kernel height * kernel width * patches. The
    inequality is strict: without ties K - 1 entries survive, and values tied with the K-th largest do not. Distances
    are float32 whatever x is. A constant x is masked altogether, `rate = 0` masks nothing, and a sample with a NaN has
    no finite distance and is masked altogether.

    Args:
        x: input of the convolution, any range.
        rate: the paper's p, 0 <= rate < 1.
        kernel_size: (height, width).
        strides: strides of the convolution; a number or a pair.
        padding: as `flax.linen.Conv` takes it for two dimensions: 'SAME', 'SAME_LOWER', 'VALID', 'CIRCULAR',
            'REFLECT', a number, or a number or (low, high) pair for each axis.
        selection: 'fast' finds the threshold by 31 weighted counts over x; 'top_k' unfolds x and takes
            `jax.lax.top_k`, slower and with kernel-size times the memory. Same masks, up to the rounding of mu.
        input_dilation: input dilation of the convolution; a number or a pair.
        kernel_dilation: kernel dilation of the convolution; a number or a pair.

    Raises:
        ValueError: x is not of rank 4, an argument is outside its range, or the convolution has no output.
    """
    _check_rate(rate)
    _check_selection(selection)
    if x.ndim != 4:
        raise ValueError(f"x must be [batch, height, width, channels], got shape {x.shape}.")
    window = make_window(
        x.shape[1:3],
        kernel_size,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
    )
    return window.crop_periodic(_window_mask(window.pad_periodic(x), rate, window, selection))


class SortMaskConv(nn.Module):
    """A two-dimensional `flax.linen.Conv` whose unfolded input is masked: W (M * x_u) + b (CPRL, section 4.2.2).

    Same parameters (`kernel` in HWIO order and `bias`), initial values and output shapes as `nn.Conv`, so weights can
    be exchanged; with `rate=0` the same outputs to the last bit. With `feature_group_count` > 1 the mask still ranks
    the entries of all channels together, as x_u holds them all, and each group reads its own.

    Attributes are those of `nn.Conv`, and
        rate: the paper's p, 0 <= rate < 1: share of the entries that is masked.
        selection: how the test-time threshold is found, see `sort_mask`.
        axis_name: the mapped axis over which a batch is divided, if any; with it the training masks of an example do
            not depend on how many devices share the batch.
        masks: at test time. 'sorted': the paper's. 'straight_through': the same outputs, with the derivatives as if
            nothing were masked, for attacks that go through the mask (BPDA: Athalye et al., "Obfuscated Gradients Give
            a False Sense of Security", ICML 2018). 'random': those of training.
    """

    features: int
    kernel_size: Sequence[int]
    strides: int | Sequence[int] | None = 1
    padding: str | int | Sequence[int | Sequence[int]] = "SAME"
    input_dilation: int | Sequence[int] | None = 1
    kernel_dilation: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()
    conv_general_dilated: Callable | None = None
    rate: float = 0.0
    selection: str = "fast"
    axis_name: str | None = None
    masks: str = "sorted"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch height width channels"], train: bool = False
    ) -> Float[Array, "*batch out_height out_width features"]:
        """The masked convolution.

        Args:
            x: input; like `nn.Conv`, with any number of batch axes, also none. The mask is per sample.
            train: True draws a random mask for every entry of x_u from the rng stream 'mask', each entry kept with
                probability 1 - rate (rate rounded to 16 bits); False masks the entries nearest to the mean, or does
                what `masks` says.

        Raises:
            ValueError: an attribute is outside its range, or x does not fit it.
        """
        _check_rate(self.rate)
        _check_selection(self.selection)
        _check_masks(self.masks)
        if x.ndim < 3:
            raise ValueError(f"x must be [..., height, width, channels], got shape {x.shape}.")
        channels, groups = x.shape[-1], self.feature_group_count
        if channels % groups or self.features % groups:
            raise ValueError(
                f"feature_group_count={groups} must divide the {channels} input channels and the "
                f"{self.features} features."
            )
        window = make_window(
            x.shape[-3:-1],
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
        )

        kernel = self.param(
            "kernel", self.kernel_init, (*window.kernel_size, channels // groups, self.features), self.param_dtype
        )
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)

        batch_shape = x.shape[:-3]
        if len(batch_shape) != 1:
            x = x.reshape(-1, *x.shape[-3:])
        x = window.pad_periodic(x)
        if (train or self.masks == "random") and self.rate > 0:
            y = _random_masked_conv(
                x,
                kernel,
                self.make_rng("mask"),
                self.rate,
                window,
                groups=groups,
                precision=self.precision,
                examples=_example_numbers(x.shape[0], self.axis_name),
            )
        else:
            if self.rate > 0:
                mask = _window_mask(x, self.rate, window, self.selection).astype(x.dtype)
                # A product, not a selection: a masked NaN or infinity stays visible.
                x = x * mask if self.masks == "sorted" else _straight_through_product(x, mask)
            y = (self.conv_general_dilated or lax.conv_general_dilated)(
                x,
                kernel,
                window.strides,
                window.zero_padding,
                lhs_dilation=window.input_dilation,
                rhs_dilation=window.kernel_dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
                precision=self.precision,
            )
        if bias is not None:
            y = y + bias.reshape(1, 1, 1, -1)
        return y if len(batch_shape) == 1 else y.reshape(*batch_shape, *y.shape[1:])


@dataclasses.dataclass(frozen=True)
class SortMaskPlacement:
    """Which convolutions of a backbone become `SortMaskConv`: a hashable field of every network.

    The paper masks "the middle layer, which is generally more than 128 channels", with p = 0.1 (section 5.1); read here
    as stages 2 and 3, 128 input channels or more, and no 1x1 convolutions.

    Raises:
        ValueError: a field is outside its range.
    """

    rate: float = 0.0  # the paper's p, 0 <= rate < 1; 0 masks nothing anywhere
    min_channels: int = 128  # fewest input channels of a masked convolution
    stages: tuple[int, ...] = (2, 3)  # stages of the backbone; the first one after the stem is 1
    selection: str = "fast"  # 'fast' or 'top_k', see sort_mask
    masks: str = "sorted"  # at test time: 'sorted', 'straight_through' or 'random', see SortMaskConv

    def __post_init__(self):
        _check_rate(self.rate)
        _check_selection(self.selection)
        _check_masks(self.masks)
        object.__setattr__(self, "stages", tuple(self.stages))

    def covers(self, in_channels: int, stage: int, kernel_size: int | Sequence[int]) -> bool:
        """Whether a convolution with that many input channels, in that stage, with that kernel is to be masked."""
        largest = kernel_size if isinstance(kernel_size, int) else max(kernel_size)
        return self.rate > 0 and stage in self.stages and in_channels >= self.min_channels and largest > 1


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1): the share of entries that is masked; got {rate}.")


def _check_selection(selection: str) -> None:
    if selection not in SELECTIONS:
        raise ValueError(f"selection {selection!r} is not one of {', '.join(SELECTIONS)}.")


def _check_masks(masks: str) -> None:
    if masks not in MASKS:
        raise ValueError(f"masks {masks!r} is not one of {', '.join(MASKS)}.")


@jax.custom_jvp
def _straight_through_product(x: Array, mask: Array) -> Array:
    """x * mask with the derivatives of x."""
    return x * mask


@_straight_through_product.defjvp
def _straight_through_product_jvp(primals, tangents):
    return _straight_through_product(*primals), tangents[0]


def _kept_entries(rate: float, entries: int) -> int:
    """K = floor((1 - rate) * entries) for the decimal number that was written: rate 0.9 of 10 entries keeps 1, not 0.

    At least 1: the largest distance does not exceed itself, so K = 1 masks everything, as no K at all would.
    """
    exact = fractions.Fraction(str(rate)).limit_denominator(10**9)
    return max(1, math.floor((1 - exact) * entries))


def _window_mask(x: Array, rate: float, window: Window, selection: str) -> Bool[Array, "batch height width channels"]:
    """`sort_mask` of an x that already has its periodic margins."""
    if rate == 0:
        return jnp.ones(x.shape, bool)
    entries = window.entries * x.shape[-1]
    if not 0 < entries < 2**31:
        raise ValueError(
            f"the unfolded input must have between 1 and 2**31 - 1 entries per sample, got {entries} for "
            f"input size {window.image_size}, {x.shape[-1]} channels and kernel {window.kernel_size}."
        )
    x = lax.stop_gradient(x).astype(jnp.float32)
    kept = _kept_entries(rate, entries)
    return (_fast_mask if selection == "fast" else _top_k_mask)(x, kept, entries, window)


def _top_k_mask(x: Array, kept: int, entries: int, window: Window) -> Array:
    padded = window.pad_zeros(x)
    rows, columns = window.kernel_size
    taps = [window.tap(padded, row, column) for row in range(rows) for column in range(columns)]
    unfolded = jnp.stack(taps, axis=1).reshape(x.shape[0], entries)
    mean = jnp.mean(unfolded, axis=1, keepdims=True)
    mean = mean + jnp.mean(unfolded - mean, axis=1, keepdims=True)
    threshold = lax.top_k(jnp.abs(unfolded - mean), kept)[0][:, -1]
    return jnp.abs(x - mean.reshape(-1, 1, 1, 1)) > threshold.reshape(-1, 1, 1, 1)


def _fast_mask(x: Array, kept: int, entries: int, window: Window) -> Array:
    visits = window.visits().reshape(1, *window.image_size, 1)
    zeros = entries - int(visits.sum()) * x.shape[-1]

    def total(values: Array) -> Array:
        # Channels first: it leaves a small array to weight, and rounds less than one long sum.
        weighted = jnp.sum(values, axis=3, keepdims=True) * visits.astype(values.dtype)
        return jnp.sum(weighted, axis=(1, 2), keepdims=True)

    mean = total(x) / entries
    # The second pass takes out most of the rounding of the first, so that both selections see the same mean.
    mean = mean + (total(x - mean) - zeros * mean) / entries
    # Bit patterns of non-negative floats are ordered as the floats.
    distance = lax.bitcast_convert_type(jnp.abs(x - mean), jnp.int32)
    zero_distance = lax.bitcast_convert_type(jnp.abs(mean), jnp.int32)
    # XLA on a CPU splits sums over more than 32 numbers and writes their terms to memory first: half the speed.
    run = max(size for size in range(1, 33) if x.shape[3] % size == 0)
    runs = distance.reshape(*x.shape[:3], -1, run)

    def count_from(bound: Array) -> Int[Array, "batch 1 1 1"]:
        """Entries of x_u whose distance is at least `bound`."""
        per_run = jnp.sum(runs >= bound[..., None], axis=4, dtype=jnp.int32)
        return total(per_run) + zeros * (zero_distance >= bound).astype(jnp.int32)

    def settle_bit(index: int, threshold: Array) -> Array:
        raised = threshold | lax.shift_left(jnp.int32(1), jnp.int32(30 - index))
        return jnp.where(count_from(raised) >= kept, raised, threshold)

    def kth_largest(start: Array) -> Int[Array, "batch 1 1 1"]:
        return lax.fori_loop(0, 31, settle_bit, start)

    kth_largest.__name__ = MONOTONE_SEARCH
    # Zero, written so that under shard_map it varies over the mesh like the data, as a loop's carry has to.
    return distance > jax.jit(kth_largest)(zero_distance & 0)


def _example_numbers(batch: int, axis_name: str | None) -> Int[Array, " batch"]:
    first = 0 if axis_name is None else lax.axis_index(axis_name) * batch
    return first + jnp.arange(batch)


def _random_masked_conv(
    x: Array, kernel: Array, key: Array, rate: float, window: Window, *, groups: int, precision: Any, examples: Array
) -> Float[Array, "batch out_height out_width features"]:
    """W (M * x_u) with M random, as a sum over kernel elements.

    A scan, not a Python loop: XLA on a CPU would compute all terms before it adds the first two, which takes as much
    memory as unfolding. The backward pass computes the masked entries again rather than store them; what is stored for
    it is one word of mask bits per input of the products.
    """
    (rows, columns), features = window.kernel_size, kernel.shape[-1]
    elements = kernel.reshape(rows * columns, *kernel.shape[2:])
    padded = window.pad_zeros(x)
    accumulator = jnp.promote_types(x.dtype, jnp.float32)

    def product(padded, element, keep, index):
        entries = window.tap(padded, index // columns, index % columns)
        bit = (keep >> (index % _keep_bits.BITS_PER_WORD).astype(jnp.uint32)) & np.uint32(1)
        entries = entries * bit.astype(entries.dtype)
        if groups == 1:
            return jnp.einsum(
                "bhwi,io->bhwo", entries, element, precision=precision, preferred_element_type=accumulator
            )
        entries = entries.reshape(*entries.shape[:-1], groups, -1)
        element = element.reshape(-1, groups, features // groups)
        y = jnp.einsum("bhwgi,igo->bhwgo", entries, element, precision=precision, preferred_element_type=accumulator)
        return y.reshape(*y.shape[:-2], features)

    product = jax.checkpoint(product, prevent_cse=False)
    y = None
    for start in range(0, rows * columns, _keep_bits.BITS_PER_WORD):
        draws = range(start, min(start + _keep_bits.BITS_PER_WORD, rows * columns))
        keep = _keep_bits.keep_bits(key, (*window.output_size, x.shape[-1]), rate=rate, draws=draws, examples=examples)
        if y is None:
            # Zeros that vary over a mesh like the data, see _fast_mask.
            y = jnp.broadcast_to((keep[..., :1] & 0).astype(accumulator), (*keep.shape[:-1], features))
        y, _ = lax.scan(
            lambda y, term: (y + product(padded, term[0], keep, term[1]), None),  # noqa: B023 (scan runs it here)
            y,
            (elements[draws.start : draws.stop], jnp.arange(draws.start, draws.stop)),
        )
    return y.astype(x.dtype)
