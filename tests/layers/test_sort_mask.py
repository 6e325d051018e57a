"""SortMask against the printed definition, unfolded and sorted by NumPy."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from cprl_jax.layers import _keep_bits
from cprl_jax.layers.sort_mask import SortMaskConv, SortMaskPlacement, _kept_entries, sort_mask

# --- The oracle: a literal unfolded input, by NumPy indexing ---


def unfold(x, kernel_size, strides=(1, 1), padding="SAME", kernel_dilation=(1, 1), input_dilation=(1, 1)):
    """x_u as [batch, taps, out_h, out_w, channels], and which pixel each entry copies (same axes; -1: zero)."""
    height, width = x.shape[1:3]
    pixel = np.arange(height * width).reshape(height, width)
    mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}.get(padding)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, kernel_dilation, strict=True)]
    if mode:
        pixel = np.pad(pixel, [((r - 1) // 2, r // 2) for r in reach], mode=mode)
        padding = "VALID"
    dilated = np.full([(n - 1) * d + 1 for n, d in zip(pixel.shape, input_dilation, strict=True)], -1)
    dilated[:: input_dilation[0], :: input_dilation[1]] = pixel
    if padding == "SAME":
        totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(pixel.shape, strides, reach, strict=True)]
        padding = [(total // 2, total - total // 2) for total in totals]
    elif padding == "VALID":
        padding = [(0, 0), (0, 0)]
    dilated = np.pad(dilated, np.maximum(padding, 0), constant_values=-1)
    (top, bottom), (left, right) = np.maximum(np.negative(padding), 0)
    dilated = dilated[top : dilated.shape[0] - bottom, left : dilated.shape[1] - right]
    windows = np.lib.stride_tricks.sliding_window_view(dilated, reach)
    windows = windows[:: strides[0], :: strides[1], :: kernel_dilation[0], :: kernel_dilation[1]]
    source = windows.transpose(2, 3, 0, 1).reshape(-1, *windows.shape[:2])
    flat = np.concatenate([x.reshape(x.shape[0], -1, x.shape[3]), np.zeros_like(x[:, :1, 0])], axis=1)
    return flat[:, source], source


def literal_mask(x, rate, kernel_size, **window):
    """M of the paper for every entry of x_u, and the entries' source pixels."""
    unfolded, source = unfold(x, kernel_size, **window)
    entries = unfolded.reshape(x.shape[0], -1)
    mean = entries.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    distance = np.abs(entries - mean)
    count = entries.shape[1]
    kept = max(1, int(np.floor(round((1 - rate) * count, 6))))
    threshold = np.partition(distance, count - kept, axis=1)[:, count - kept]
    return (distance > threshold[:, None]).reshape(unfolded.shape), source


def assert_literal(x, rate, kernel_size, selection="fast", **window):
    expected, source = literal_mask(np.asarray(x, np.float32), rate, kernel_size, **window)
    mask = np.asarray(sort_mask(x, rate, kernel_size, selection=selection, **window))
    assert mask.shape == x.shape and mask.dtype == bool
    flat = np.concatenate([mask.reshape(mask.shape[0], -1, mask.shape[3]), np.zeros_like(mask[:, :1, 0])], axis=1)
    copies = flat[:, source]
    real = np.broadcast_to((source >= 0)[None, :, :, :, None], copies.shape)
    np.testing.assert_array_equal(copies[real], expected[real])


def literal_conv(x, kernel, keep, groups=1, **window):
    """W (keep * x_u) in float64; keep [batch, taps, out_h, out_w, channels]."""
    unfolded, _ = unfold(np.asarray(x, np.float64), kernel.shape[:2], **window)
    kernel = np.asarray(kernel, np.float64).reshape(unfolded.shape[1], *kernel.shape[2:])
    per_group = np.split(unfolded * keep, groups, axis=-1), np.split(kernel, groups, axis=-1)
    return np.concatenate([np.einsum("bthwi,tio->bhwo", u, k) for u, k in zip(*per_group, strict=True)], axis=-1)


def images(seed, shape=(3, 7, 6, 5), kind="normal"):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return {
        "normal": lambda: x,
        "relu": lambda: np.maximum(x, 0),
        "relu_shifted": lambda: np.maximum(x + 1, 0),
        "positive": lambda: np.abs(x) + 3,
        "tied": lambda: np.round(2 * x) / 2,
        "two_values": lambda: np.sign(x),
        "constant": lambda: np.full_like(x, 0.3),
        "zero": lambda: np.zeros_like(x),
        "bytes": lambda: np.round(np.clip(64 * x + 128, 0, 255)).astype(np.float32) / 255,
        "outlier": lambda: np.where(np.arange(x.size).reshape(x.shape) == 17, 1e4, x).astype(np.float32),
    }[kind]()


KINDS = ("normal", "relu", "relu_shifted", "positive", "tied", "two_values", "constant", "zero", "bytes", "outlier")
WINDOWS = {
    "same": {},
    "valid": {"padding": "VALID"},
    "stride": {"strides": (2, 2)},
    "stride_valid": {"strides": (2, 3), "padding": "VALID"},
    "gaps": {"strides": (4, 4), "padding": "VALID"},
    "uneven_padding": {"padding": ((2, 0), (1, 3)), "strides": (1, 2)},
    "cropping_padding": {"padding": ((-1, 1), (0, -2))},
    "kernel_dilation": {"kernel_dilation": (2, 1)},
    "input_dilation": {"input_dilation": (2, 3), "strides": (1, 2)},
    "circular": {"padding": "CIRCULAR"},
    "reflect": {"padding": "REFLECT", "strides": (2, 1)},
}

# --- Test-time masks ---


@pytest.mark.parametrize("selection", ["fast", pytest.param("top_k", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_mask_is_the_definition_on_all_kinds_of_values(kind, selection):
    for size, stride, rate in itertools.product((1, 3, 5), (1, 2), (0.1, 0.5)):
        assert_literal(images(1, kind=kind), rate, (size, size), selection, strides=(stride, stride))


@pytest.mark.parametrize("selection", ["fast", pytest.param("top_k", marks=pytest.mark.slow)])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_mask_is_the_definition_for_all_windows(window, selection):
    for kernel_size, kind in itertools.product(((3, 3), (2, 3)), ("normal", "relu_shifted")):
        assert_literal(images(2, kind=kind), 0.2, kernel_size, selection, **window)


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.3, 0.9, 0.999, 0.99999])
def test_mask_is_the_definition_for_all_rates(rate):
    assert_literal(images(3), rate, (3, 3))
    assert_literal(images(3, kind="relu"), rate, (3, 3), selection="top_k")


def test_both_selections_give_the_same_mask_on_larger_inputs():
    both = jax.jit(lambda x: [sort_mask(x, 0.1, (3, 3), selection=name) for name in ("fast", "top_k")])
    for kind in ("normal", "relu_shifted", "bytes"):
        fast, top_k = both(images(4, (4, 14, 14, 32), kind))
        np.testing.assert_array_equal(fast, top_k)


def test_without_ties_and_padding_one_less_than_k_survive():
    x = images(5, (2, 8, 8, 4))
    mask = sort_mask(x, 0.25, (1, 1))
    np.testing.assert_array_equal(mask.sum(axis=(1, 2, 3)), [191, 191])
    kept, dropped = np.abs(x - x.mean(axis=(1, 2, 3), keepdims=True)), ~np.asarray(mask)
    assert (np.where(mask, kept, np.inf).min(axis=(1, 2, 3)) > np.where(dropped, kept, 0).max(axis=(1, 2, 3))).all()


def test_pixels_that_no_patch_sees_do_not_count():
    x = images(6, (1, 6, 6, 3))
    spoiled = x.copy()
    spoiled[:, 2::3] = 1e6
    window = {"strides": (3, 3), "padding": "VALID"}
    a, b = (np.asarray(sort_mask(values, 0.3, (2, 2), **window)) for values in (x, spoiled))
    seen = np.arange(6) % 3 < 2
    np.testing.assert_array_equal(a[:, seen][:, :, seen], b[:, seen][:, :, seen])


def test_constant_input_is_masked_altogether():
    for value, padding in itertools.product((0.0, 0.1, -3.7e5), ("VALID", "SAME")):
        assert not sort_mask(jnp.full((2, 9, 9, 7), value), 0.1, (3, 3), padding=padding).any()


def test_rate_zero_masks_nothing():
    assert sort_mask(images(7), 0.0, (3, 3)).all()
    assert sort_mask(images(7), 0, (3, 3), selection="top_k").all()


def test_number_of_kept_entries_is_that_of_the_decimal_rate():
    assert _kept_entries(0.9, 10) == 1
    assert _kept_entries(0.1 + 0.2, 10) == 7
    assert _kept_entries(np.float32(0.1), 10**8) == 9 * 10**7
    assert _kept_entries(0.1, 1152 * 784) == 812851
    assert _kept_entries(0.99, 10) == 1


def test_bfloat16_distances_are_those_of_the_float32_values():
    x = jnp.asarray(images(8), jnp.bfloat16)
    assert_literal(x, 0.2, (3, 3))
    np.testing.assert_array_equal(sort_mask(x, 0.2, (3, 3)), sort_mask(x.astype(jnp.float32), 0.2, (3, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["fast", "top_k"])
def test_samples_do_not_see_each_other(selection):
    x = images(9, (4, 6, 6, 3)) * np.array([1, 10, 0.1, 0], np.float32).reshape(4, 1, 1, 1)
    whole = sort_mask(x, 0.3, (3, 3), selection=selection)
    for row in range(4):
        np.testing.assert_array_equal(whole[row], sort_mask(x[row : row + 1], 0.3, (3, 3), selection=selection)[0])


@pytest.mark.slow
def test_not_a_number_masks_its_own_sample_only():
    x = images(10)
    x[1, 2, 3, 0] = np.nan
    mask = sort_mask(x, 0.2, (3, 3))
    assert not mask[1].any()
    np.testing.assert_array_equal(mask[::2], sort_mask(x[::2], 0.2, (3, 3)))
    y = SortMaskConv(2, (3, 3), rate=0.2).init_with_output(jax.random.key(0), x)[0]
    assert np.isnan(y[1]).any() and np.isfinite(y[::2]).all()


@pytest.mark.slow
def test_same_mask_under_every_transformation():
    x = images(11, (4, 6, 6, 3))
    mask = sort_mask(x, 0.3, (3, 3))

    def function(values):
        return sort_mask(values, 0.3, (3, 3))

    np.testing.assert_array_equal(jax.jit(function)(x), mask)
    np.testing.assert_array_equal(jax.vmap(function)(x[:, None])[:, 0], mask)
    devices = min(2, jax.device_count())
    split = x.reshape(devices, 4 // devices, *x.shape[1:])
    np.testing.assert_array_equal(jax.pmap(function)(split).reshape(mask.shape), mask)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))
    spec = PartitionSpec("batch")
    sharded = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec))
    np.testing.assert_array_equal(sharded(x), mask)


def test_export_with_any_batch_size():
    layer = SortMaskConv(4, (3, 3), rate=0.2)
    x = images(12)
    variables = layer.init(jax.random.key(0), x)
    (batch,) = jax.export.symbolic_shape("batch")
    spec = jax.ShapeDtypeStruct((batch, *x.shape[1:]), jnp.float32)
    exported = jax.export.export(jax.jit(lambda values: layer.apply(variables, values)))(spec)
    np.testing.assert_allclose(exported.call(x), layer.apply(variables, x), rtol=1e-6, atol=1e-6)


def test_mask_is_that_of_torch_unfold_and_topk():
    torch = pytest.importorskip("torch")
    x = images(13, (2, 8, 8, 3))
    for stride, rate in itertools.product((1, 2), (0.1, 0.4)):
        channels_first = torch.from_numpy(x).permute(0, 3, 1, 2)
        unfolded = torch.nn.functional.unfold(channels_first, 3, padding=1, stride=stride)
        distance = (unfolded - unfolded.mean(dim=(1, 2), keepdim=True)).abs()
        threshold = distance.flatten(1).topk(int((1 - rate) * distance[0].numel())).values[:, -1]
        masked = unfolded * (distance > threshold.reshape(-1, 1, 1))
        layer = SortMaskConv(4, (3, 3), stride, padding=1, rate=rate)
        y, variables = layer.init_with_output(jax.random.key(0), x)
        kernel = torch.from_numpy(np.array(variables["params"]["kernel"])).permute(3, 2, 0, 1).flatten(1)
        expected = (kernel @ masked).reshape(2, 4, *y.shape[1:3]).permute(0, 2, 3, 1)
        np.testing.assert_allclose(y, expected, atol=1e-5)


# --- The layer ---

DROP_IN = {
    "plain": dict(features=6, kernel_size=(3, 3)),
    "grouped": dict(features=6, kernel_size=(3, 3), feature_group_count=2),
    "depthwise": dict(features=4, kernel_size=(3, 3), feature_group_count=4),
    "strided": dict(features=3, kernel_size=(3, 2), strides=2, padding="VALID", use_bias=False),
    "dilated": dict(features=6, kernel_size=(3, 3), kernel_dilation=2, input_dilation=(1, 2), padding=(1, 2)),
    "circular": dict(features=3, kernel_size=(4, 3), padding="CIRCULAR", strides=(2, 1)),
    "reflect": dict(features=6, kernel_size=(3, 3), padding="REFLECT"),
    "same_lower": dict(features=3, kernel_size=(2, 4), padding="SAME_LOWER", strides=None),
    "bfloat16": dict(features=6, kernel_size=(3, 3), dtype=jnp.bfloat16),
}


@pytest.mark.parametrize("arguments", DROP_IN.values(), ids=DROP_IN)
def test_rate_zero_is_nn_conv_to_the_last_bit(arguments):
    x = images(20, (2, 7, 6, 4))
    masked, plain = SortMaskConv(**arguments), nn.Conv(**arguments)
    variables = masked.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, plain.init(jax.random.key(1), x))
    expected = plain.apply(variables, x)
    for train in (False, True):
        y = masked.apply(variables, x, train=train)
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("arguments", DROP_IN.values(), ids=DROP_IN)
def test_test_time_output_is_nn_conv_of_the_masked_input(arguments):
    x = images(21, (2, 7, 6, 4))
    layer = SortMaskConv(**arguments, rate=0.3)
    variables = layer.init(jax.random.key(1), x)
    names = ("kernel_size", "strides", "padding", "kernel_dilation", "input_dilation")
    values = jnp.asarray(x, layer.dtype)
    mask = sort_mask(values, 0.3, **{name: arguments[name] for name in names if name in arguments})
    np.testing.assert_array_equal(layer.apply(variables, x), nn.Conv(**arguments).apply(variables, values * mask))


@pytest.mark.slow
def test_any_number_of_batch_axes():
    x = images(22, (2, 3, 6, 6, 4))
    layer = SortMaskConv(3, (3, 3), rate=0.3)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert y.shape == (2, 3, 6, 6, 3)
    np.testing.assert_allclose(y[1, 2], layer.apply(variables, x[1, 2]), atol=1e-6)
    train = layer.apply(variables, x[0, 0], train=True, rngs={"mask": jax.random.key(0)})
    assert train.shape == (6, 6, 3)


@pytest.mark.slow
def test_gradient_is_the_mask_times_the_gradient_of_the_convolution():
    x = jnp.asarray(images(23))
    layer, plain = SortMaskConv(4, (3, 3), rate=0.3), nn.Conv(4, (3, 3))
    variables = layer.init(jax.random.key(0), x)
    mask = sort_mask(x, 0.3, (3, 3))
    weights = images(24, (3, 7, 6, 4))

    def loss(module, variables, values):
        return jnp.sum(weights * module.apply(variables, values) ** 2)

    for transform in (lambda f: f, jax.jit):
        of_variables, of_x = transform(jax.grad(lambda v, x: loss(layer, v, x), (0, 1)))(variables, x)
        expected_variables, expected_x = jax.grad(lambda v, x: loss(plain, v, x), (0, 1))(variables, x * mask)
        np.testing.assert_allclose(of_x, expected_x * mask, rtol=1e-5, atol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), of_variables, expected_variables
        )
    per_sample = jax.vmap(jax.grad(lambda values: loss(layer, variables, values[None])[()]))
    assert np.isfinite(per_sample(x)).all()
    tangent = jax.jvp(lambda values: layer.apply(variables, values), (x,), (x,))[1]
    bias = variables["params"]["bias"].reshape(1, 1, 1, -1)
    np.testing.assert_allclose(tangent, layer.apply(variables, x) - bias, atol=1e-5)


def test_straight_through_changes_the_gradient_in_x_only():
    x = jnp.asarray(images(23))
    layer, plain = SortMaskConv(4, (3, 3), rate=0.3), nn.Conv(4, (3, 3))
    through = layer.clone(masks="straight_through")
    variables = layer.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, through.init(jax.random.key(0), x), variables)
    np.testing.assert_array_equal(through.apply(variables, x), layer.apply(variables, x))
    weights = images(24, (3, 7, 6, 4))

    def gradients(module, values):
        return jax.jit(jax.grad(lambda v, x: jnp.sum(weights * module.apply(v, x) ** 2), (0, 1)))(variables, values)

    of_variables, of_x = gradients(through, x)
    jax.tree.map(np.testing.assert_array_equal, of_variables, gradients(layer, x)[0])
    # As if nothing were masked where it is differentiated, at the values that are there with the mask.
    expected = gradients(plain, x * sort_mask(x, 0.3, (3, 3)))[1]
    np.testing.assert_allclose(of_x, expected, rtol=1e-5, atol=1e-5)
    assert np.any(gradients(layer, x)[1] == 0) and not np.any(of_x == 0)
    tangent = jax.jvp(lambda values: through.apply(variables, values), (x,), (x,))[1]
    bias = variables["params"]["bias"].reshape(1, 1, 1, -1)
    np.testing.assert_allclose(tangent, plain.apply(variables, x) - bias, atol=1e-5)


def test_random_masks_at_test_time_are_those_of_training():
    x = jnp.asarray(images(23))
    layer = SortMaskConv(4, (3, 3), rate=0.3)
    variables = layer.init(jax.random.key(0), x)
    rngs = {"mask": jax.random.key(1)}
    expected = layer.apply(variables, x, train=True, rngs=rngs)
    for masks in ("random", "straight_through"):
        other = layer.clone(masks=masks)
        np.testing.assert_array_equal(other.apply(variables, x, train=True, rngs=rngs), expected)
    np.testing.assert_array_equal(layer.clone(masks="random").apply(variables, x, rngs=rngs), expected)
    unmasked = SortMaskConv(4, (3, 3), masks="random")
    np.testing.assert_array_equal(unmasked.apply(variables, x), nn.Conv(4, (3, 3)).apply(variables, x))


# --- Training masks ---


class _DrawnKey(nn.Module):
    """Returns the key that a module at the top level gets from the stream 'mask'."""

    @nn.compact
    def __call__(self):
        return self.make_rng("mask")


def training_masks(key, layer, batch, output_size, channels):
    """The masks that `layer` draws, as [batch, taps, out_h, out_w, channels]."""
    taps = int(np.prod(layer.kernel_size))
    drawn = _DrawnKey().apply({}, rngs={"mask": key})
    masks = []
    for start in range(0, taps, 32):
        draws = range(start, min(start + 32, taps))
        words = np.asarray(
            _keep_bits.keep_bits(
                drawn, (*output_size, channels), rate=layer.rate, draws=draws, examples=jnp.arange(batch)
            )
        )
        masks += [(words >> bit) & 1 for bit in range(len(draws))]
    return np.stack(masks, axis=1)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "arguments",
    [
        dict(features=6, kernel_size=(3, 3)),
        dict(features=6, kernel_size=(1, 1)),
        dict(features=6, kernel_size=(3, 3), feature_group_count=2, strides=2),
        pytest.param(
            dict(features=4, kernel_size=(3, 3), feature_group_count=4, padding="VALID"), marks=pytest.mark.slow
        ),
        pytest.param(
            dict(features=3, kernel_size=(5, 7), kernel_dilation=(1, 2), padding=((3, 1), (6, 6))),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(features=6, kernel_size=(3, 3), input_dilation=2, strides=(1, 2), padding=((-1, 1), (0, 2))),
            marks=pytest.mark.slow,
        ),
        pytest.param(dict(features=6, kernel_size=(4, 3), padding="CIRCULAR", strides=(2, 1)), marks=pytest.mark.slow),
    ],
    ids=lambda arguments: "-".join(str(value) for value in arguments.values()),
)
def test_training_output_and_gradients_are_those_of_the_masked_unfolded_input(arguments):
    x = images(30, (2, 7, 6, 4))
    layer, key = SortMaskConv(**arguments, rate=0.3, use_bias=False), jax.random.key(5)
    variables = layer.init(jax.random.key(0), x)

    def run(variables, x):
        return layer.apply(variables, x, train=True, rngs={"mask": key})

    y, pull_back = jax.vjp(jax.jit(run), variables, x)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    window = {
        name: arguments[name]
        for name in ("strides", "padding", "kernel_dilation", "input_dilation")
        if name in arguments
    }
    window = {name: (value, value) if isinstance(value, int) else value for name, value in window.items()}
    groups = arguments.get("feature_group_count", 1)
    keep = training_masks(key, layer, 2, y.shape[1:3], 4)
    np.testing.assert_allclose(y, literal_conv(x, kernel, keep, groups, **window), atol=1e-5)
    # Linear in x and in the kernel: the directional derivatives of <y, g> are the outputs for another x or kernel.
    cotangent, other_x, other_kernel = images(31, y.shape), images(32, x.shape), images(33, kernel.shape)
    of_variables, of_x = pull_back(jnp.asarray(cotangent))
    expected = np.sum(cotangent * literal_conv(other_x, kernel, keep, groups, **window))
    np.testing.assert_allclose(np.sum(of_x * other_x), expected, rtol=1e-4, atol=1e-4)
    expected = np.sum(cotangent * literal_conv(x, other_kernel, keep, groups, **window))
    np.testing.assert_allclose(np.sum(of_variables["params"]["kernel"] * other_kernel), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_mean_and_variance():
    x, rate, draws = images(34, (1, 5, 5, 3)), 0.3, 4000
    layer = SortMaskConv(2, (3, 3), rate=rate, use_bias=False)
    variables = layer.init(jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(1), draws)
    samples = jax.jit(jax.vmap(lambda key: layer.apply(variables, x, train=True, rngs={"mask": key})))(keys)
    plain = nn.Conv(2, (3, 3), use_bias=False)
    mean = (1 - rate) * plain.apply(variables, x)
    variance = rate * (1 - rate) * plain.apply(jax.tree.map(jnp.square, variables), x**2)
    assert np.max(np.abs(samples.mean(axis=0) - mean) / np.sqrt(variance / draws)) < 5
    np.testing.assert_allclose(samples.var(axis=0), variance, rtol=0.15)


@pytest.mark.slow
def test_training_masks_follow_the_key_and_nothing_else():
    x = images(35, (4, 6, 6, 3))
    layer = SortMaskConv(2, (3, 3), rate=0.5)
    variables = layer.init({"params": jax.random.key(0), "mask": jax.random.key(0)}, x, train=True)

    def run(values, seed):
        return layer.apply(variables, values, train=True, rngs={"mask": jax.random.key(seed)})

    first = run(x, 1)
    np.testing.assert_allclose(jax.jit(run, static_argnums=1)(x, 1), first, atol=1e-6)
    np.testing.assert_allclose(run(x[:2], 1), first[:2], atol=1e-6)
    assert np.abs(first - run(x, 2)).max() > 0.1
    same_image = run(np.broadcast_to(x[:1], x.shape), 1)
    assert np.abs(same_image[0] - same_image[1]).max() > 0.1
    legacy = layer.apply(variables, x, train=True, rngs={"mask": jax.random.PRNGKey(1)})
    np.testing.assert_allclose(legacy, first, atol=1e-6)
    other_kind = layer.apply(variables, x, train=True, rngs={"mask": jax.random.key(1, impl="rbg")})
    assert np.isfinite(other_kind).all()


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_training_masks_do_not_depend_on_the_number_of_devices(mapping):
    x, devices = images(36, (4, 6, 6, 3)), min(2, jax.device_count())
    layer, plain = SortMaskConv(2, (3, 3), rate=0.5, axis_name="batch"), SortMaskConv(2, (3, 3), rate=0.5)
    variables = plain.init(jax.random.key(0), x)

    def gradient(module, values):
        def loss(values):
            return jnp.sum(module.apply(variables, values, train=True, rngs={"mask": jax.random.key(1)}) ** 2)

        return jax.grad(loss)(values)

    def sharded(values):
        return gradient(layer, values)

    if mapping == "pmap":
        split = x.reshape(devices, 4 // devices, *x.shape[1:])
        result = jax.pmap(sharded, axis_name="batch")(split).reshape(x.shape)
    else:
        mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))
        spec = PartitionSpec("batch")
        result = jax.jit(jax.shard_map(sharded, mesh=mesh, in_specs=spec, out_specs=spec))(x)
    np.testing.assert_allclose(result, gradient(plain, x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_training_accumulates_in_float32():
    x = images(37, (2, 6, 6, 32))
    layer = SortMaskConv(4, (3, 3), rate=0.1, dtype=jnp.bfloat16, use_bias=False)
    variables = layer.init(jax.random.key(0), x)
    y = layer.apply(variables, x, train=True, rngs={"mask": jax.random.key(1)})
    assert y.dtype == jnp.bfloat16
    rounded = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
    kernel = np.asarray(variables["params"]["kernel"].astype(jnp.bfloat16), np.float64)
    keep = training_masks(jax.random.key(1), layer, 2, (6, 6), 32)
    np.testing.assert_allclose(y.astype(jnp.float32), literal_conv(rounded, kernel, keep), rtol=2**-8, atol=1e-4)


def test_keep_bits_come_from_threefry():
    threefry = pytest.importorskip("jax.extend.random").threefry_2x32
    key, counter = np.array([0x1234567, 0x89ABCDEF], np.uint32), np.arange(200, dtype=np.uint32) * 77777777
    expected = threefry(jnp.asarray(key), jnp.asarray(counter))
    pair = _keep_bits.threefry2x32((key[0], key[1]), (jnp.asarray(counter[:100]), jnp.asarray(counter[100:])))
    np.testing.assert_array_equal(np.concatenate(pair), expected)


def test_keep_bits_refuse_draws_without_a_place():
    for draws in (range(8, 12), range(33), range(1024, 1030)):
        with pytest.raises(ValueError, match="draws must be"):
            _keep_bits.keep_bits(jax.random.key(0), (1, 1, 1), rate=0.1, draws=draws, examples=jnp.arange(1))


def test_keep_bits_are_independent_and_fair():
    key, rate, shape, examples = jax.random.key(0), 0.1, (20, 20, 30), jnp.arange(4)
    words = np.asarray(_keep_bits.keep_bits(key, shape, rate=rate, draws=range(9), examples=examples))
    assert words.max() < 2**9
    bits = np.stack([(words >> draw) & 1 for draw in range(9)]).astype(np.float64)
    assert abs(bits.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / bits.size)
    centred = (bits - (1 - rate)) / np.sqrt(rate * (1 - rate))
    pairs = [(centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])]
    pairs += [(centred[:, :, 1:], centred[:, :, :-1]), (centred[..., 1:], centred[..., :-1])]
    pairs += [(centred[a], centred[b]) for a, b in itertools.combinations(range(9), 2)]
    for a, b in pairs:
        assert abs((a * b).mean()) < 5 / np.sqrt(a.size)
    later = _keep_bits.keep_bits(key, shape, rate=rate, draws=range(32, 41), examples=examples)
    assert 0.15 < (((words ^ later) & 1) == 1).mean() < 0.21


# --- Refusals and placement ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(rate=1.0), r"rate must be in \[0, 1\)"),
        (dict(rate=-0.1), r"rate must be in \[0, 1\)"),
        (dict(rate=float("nan")), r"rate must be in \[0, 1\)"),
        (dict(selection="quick"), "'quick' is not one of fast, top_k"),
        (dict(kernel_size=3), r"pair such as \(3, 3\)"),
        (dict(kernel_size=(3, 3, 3)), "kernel_size must be"),
        (dict(kernel_size=(0, 3)), "kernel_size must be"),
        (dict(strides=(2, 2, 2)), "strides must be"),
        (dict(strides=0), "strides must be"),
        (dict(kernel_dilation=-1), "kernel_dilation must be"),
        (dict(input_dilation=1.5), "input_dilation must be"),
        (dict(padding="CAUSAL"), "'CAUSAL' is not one of SAME"),
        (dict(padding=((1, 1),)), "padding must be"),
        (dict(padding=1.5), "padding must be"),
        (dict(padding=((1, 1, 1), 2)), "padding must be"),
        (dict(kernel_size=(9, 9), padding="VALID"), "entries per sample, got 0"),
    ],
)
def test_refusals_name_what_is_allowed(arguments, message):
    x = jnp.zeros((1, 6, 6, 4))
    arguments = dict(kernel_size=(3, 3), rate=0.1) | arguments
    with pytest.raises(ValueError, match=message):
        sort_mask(x, **arguments)
    with pytest.raises(ValueError, match=message):
        SortMaskConv(4, **arguments).init(jax.random.key(0), x)


def test_refusals_of_shapes():
    with pytest.raises(ValueError, match=r"batch, height, width, channels"):
        sort_mask(jnp.zeros((6, 6, 4)), 0.1, (3, 3))
    with pytest.raises(ValueError, match=r"height, width, channels"):
        SortMaskConv(4, (3, 3)).init(jax.random.key(0), jnp.zeros((6, 4)))
    with pytest.raises(ValueError, match="feature_group_count=3 must divide"):
        SortMaskConv(6, (3, 3), feature_group_count=3).init(jax.random.key(0), jnp.zeros((1, 6, 6, 4)))
    with pytest.raises(ValueError, match="feature_group_count=2 must divide"):
        SortMaskConv(3, (3, 3), feature_group_count=2).init(jax.random.key(0), jnp.zeros((1, 6, 6, 4)))


def test_placement():
    placement = SortMaskPlacement(rate=0.1, stages=[2, 3])
    assert hash(placement) == hash(SortMaskPlacement(rate=0.1))
    assert placement.covers(128, 2, (3, 3)) and placement.covers(256, 3, 3) and placement.covers(128, 3, (1, 5))
    assert not placement.covers(127, 2, (3, 3))
    assert not placement.covers(256, 1, (3, 3))
    assert not placement.covers(256, 4, (3, 3))
    assert not placement.covers(256, 2, (1, 1)) and not placement.covers(256, 2, 1)
    assert not SortMaskPlacement().covers(256, 2, (3, 3))
    with pytest.raises(ValueError, match="rate"):
        SortMaskPlacement(rate=2)
    with pytest.raises(ValueError, match="fast, top_k"):
        SortMaskPlacement(selection="topk")
    with pytest.raises(ValueError, match="sorted, straight_through, random"):
        SortMaskPlacement(masks="none")
    with pytest.raises(ValueError, match="'none' is not one of sorted, straight_through, random"):
        SortMaskConv(4, (3, 3), masks="none").init(jax.random.key(0), jnp.zeros((1, 6, 6, 4)))
