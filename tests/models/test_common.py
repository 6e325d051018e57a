"""The networks' shared layers, against torch, flax and NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models import common


class OneConv(nn.Module):
    """`conv` needs a compact method around it."""

    kernel_size: int
    stage: int = 0
    sort_mask: SortMaskPlacement = SortMaskPlacement()

    @nn.compact
    def __call__(self, x, train=False):
        return common.conv(
            x,
            5,
            self.kernel_size,
            name="conv",
            train=train,
            stage=self.stage,
            stride=2,
            padding=self.kernel_size // 2,
            sort_mask=self.sort_mask,
        )


def on_two_devices(function, x):
    """The function applied to two halves of the batch, which know their place by the axis 'batch'."""
    return jax.pmap(function, axis_name="batch", devices=jax.devices()[:2])(x.reshape(2, -1, *x.shape[1:]))


# --- Normalisation of the input ---


def test_normalization():
    images = np.random.default_rng(0).uniform(size=(2, 3, 4, 3)).astype(np.float32)
    expected = (images - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(common.IMAGENET.normalize(jnp.asarray(images)), expected, rtol=1e-5, atol=1e-6)


def test_input_normalization_takes_its_constants_from_the_variables(getkey):
    images = jax.random.uniform(getkey(), (2, 3, 4, 3))
    module = common.InputNormalization()
    variables = module.init(getkey(), images)
    assert set(variables) == {"batch_stats"}
    np.testing.assert_allclose(module.apply(variables, images), common.IMAGENET.normalize(images), rtol=1e-6, atol=1e-6)
    other = {"batch_stats": {"mean": jnp.array([0.1, 0.2, 0.3]), "std": jnp.array([1.0, 2.0, 4.0])}}
    expected = (np.asarray(images) - [0.1, 0.2, 0.3]) / [1.0, 2.0, 4.0]
    np.testing.assert_allclose(module.apply(other, images), expected, rtol=1e-5, atol=1e-6)


# --- Convolutions ---


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("use_bias", [False, True])
def test_pointwise_conv_is_flax_conv(getkey, stride, use_bias):
    x = jax.random.normal(getkey(), (2, 7, 6, 4))
    ours = common.PointwiseConv(5, stride=stride, use_bias=use_bias, bias_init=nn.initializers.normal(1.0))
    flax_conv = nn.Conv(5, (1, 1), strides=stride, use_bias=use_bias, padding="VALID")
    variables = ours.init(getkey(), x)
    np.testing.assert_allclose(ours.apply(variables, x), flax_conv.apply(variables, x), rtol=1e-5, atol=1e-5)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, flax_conv.init(getkey(), x))


def test_conv_is_masked_only_where_the_placement_says(getkey):
    x = jax.random.normal(getkey(), (2, 8, 8, 4))
    placement = SortMaskPlacement(rate=0.5, min_channels=4, stages=(2,))
    plain = OneConv(3)
    variables = plain.init(getkey(), x)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"conv": {"kernel": (3, 3, 4, 5), "bias": (5,)}}}
    expected = plain.apply(variables, x)
    for module, masked in (
        (OneConv(3, stage=2, sort_mask=placement), True),
        (OneConv(3, stage=1, sort_mask=placement), False),
        (OneConv(3, stage=2, sort_mask=SortMaskPlacement(rate=0.5, min_channels=5)), False),
        (OneConv(3, stage=2, sort_mask=SortMaskPlacement(rate=0.0, min_channels=1)), False),
    ):
        assert jax.tree.structure(module.init(getkey(), x)) == jax.tree.structure(variables)
        assert np.array_equal(module.apply(variables, x), expected) != masked
    one = OneConv(1, stage=2, sort_mask=placement)
    assert not one.sort_mask.covers(4, 2, 1)
    one.apply(one.init(getkey(), x), x, train=True)  # no rng stream 'mask' is needed


# --- Pooling ---


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("size", "padding", "ceil_mode"),
    [
        ((9, 8), 0, False),
        ((9, 8), 1, False),
        ((8, 11), 0, True),
        ((9, 9), 0, True),
        ((3, 3), 0, False),
        ((2, 5), 1, False),
    ],
)
def test_max_pool_and_its_gradient_are_torch_s_also_at_ties(size, padding, ceil_mode):
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    x = generator.integers(-2, 2, size=(2, *size, 3)).astype(np.float32)  # full of ties
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(theirs, 3, 2, padding, ceil_mode=ceil_mode)
    weights = generator.normal(size=expected.shape).astype(np.float32)
    (expected * torch.tensor(weights)).sum().backward()

    ours = common.ceil_padding(size, window=3, stride=2) if ceil_mode else ((padding, padding),) * 2

    def pool(x):
        return common.max_pool(x, window=3, stride=2, padding=ours)

    np.testing.assert_array_equal(pool(x), expected.detach().numpy().transpose(0, 2, 3, 1))
    gradient = jax.grad(lambda x: jnp.sum(pool(x) * weights.transpose(0, 2, 3, 1)))(x)
    np.testing.assert_allclose(gradient, theirs.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_relu_after_max_pool_is_relu_before_it(getkey):
    x = jax.random.normal(getkey(), (1, 9, 9, 4))

    def after(x):
        return nn.relu(common.max_pool(x, window=3, stride=2))

    def before(x):
        return common.max_pool(nn.relu(x), window=3, stride=2)

    np.testing.assert_array_equal(after(x), before(x))
    weights = jax.random.normal(getkey(), after(x).shape)
    gradients = [jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(x) for f in (after, before)]
    np.testing.assert_array_equal(*gradients)


@pytest.mark.slow
def test_max_pool_shows_nan_keeps_bfloat16_and_differentiates_forwards():
    x = jnp.arange(49.0).reshape(1, 7, 7, 1).at[0, 3, 3, 0].set(jnp.nan)
    assert np.isnan(common.max_pool(x, window=3, stride=2)).sum() == 1
    assert common.max_pool(x.astype(jnp.bfloat16), window=3, stride=2).dtype == jnp.bfloat16
    _, tangent = jax.jvp(lambda x: common.max_pool(x, window=3, stride=3), (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(tangent, jnp.ones((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="at least 3x3 pixels, got 2x7"):
        common.max_pool(x[:, :2], window=3, stride=2)


@pytest.mark.slow
def test_global_statistics():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(common.global_mean(x), x.mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(common.global_std(x), np.sqrt(x.var((1, 2)) + 1e-4), rtol=1e-5)
    flat = jnp.full((1, 4, 4, 2), 7.0, jnp.bfloat16)
    assert common.global_mean(flat).dtype == common.global_std(flat).dtype == jnp.float32
    gradient = jax.grad(lambda x: jnp.sum(common.global_std(x)))(flat.astype(jnp.float32))
    np.testing.assert_array_equal(gradient, 0.0)


def test_global_max_and_its_gradient():
    """One pixel of each channel has the gradient, the first in reading order."""
    x = np.random.default_rng(0).integers(-2, 2, size=(2, 3, 5, 4)).astype(np.float32)  # full of ties
    np.testing.assert_array_equal(common.global_max(x), x.max((1, 2)))
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(common.global_max(x)))(x)).reshape(2, 15, 4)
    np.testing.assert_array_equal(gradient.argmax(1), x.reshape(2, 15, 4).argmax(1))
    np.testing.assert_array_equal(
        np.sort(gradient, axis=1)[:, -2:].transpose(1, 0, 2), [np.zeros((2, 4)), np.ones((2, 4))]
    )


# --- Parts of the heads ---


def test_initial_values_have_torch_s_spread(getkey):
    kernel_of = {
        common.kaiming_normal: (2 / 400) ** 0.5,
        common.kaiming_uniform: (2 / 400) ** 0.5,
        common.torch_default: (1 / 1200) ** 0.5,
    }
    for init, spread in kernel_of.items():
        assert np.std(init(getkey(), (400, 300))) == pytest.approx(spread, rel=0.02)
    assert np.std(common.kaiming_normal_fan_out(getkey(), (3, 3, 40, 60))) == pytest.approx((2 / 540) ** 0.5, rel=0.02)
    bias = common.torch_default_bias(25)(getkey(), (10000,))
    assert np.abs(bias).max() <= 0.2 and np.std(bias) == pytest.approx(0.2 / 3**0.5, rel=0.03)


def test_dropout_keeps_the_mean_and_is_off_in_evaluation(getkey):
    x = jnp.ones((200, 50))
    module = common.Dropout(0.3)
    y = np.asarray(module.apply({}, x, train=True, rngs={"dropout": getkey()}))
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.7], rtol=1e-6)
    assert y.mean() == pytest.approx(1.0, abs=0.03) and y.mean(axis=1).std() > 0.05
    np.testing.assert_array_equal(module.apply({}, x, train=False), x)


def test_dropout_does_not_depend_on_the_number_of_devices(getkey):
    x, key = jax.random.normal(getkey(), (6, 50)), getkey()
    expected = common.Dropout(0.5).apply({}, x, train=True, rngs={"dropout": key})
    spread = common.Dropout(0.5, axis_name="batch")
    y = on_two_devices(lambda x: spread.apply({}, x, train=True, rngs={"dropout": key}), x)
    np.testing.assert_array_equal(y.reshape(6, 50), expected)


def standardize(module, statistics, x):
    y, updated = module.apply({"batch_stats": statistics}, x, train=True, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def test_standardization_by_the_moments_of_the_first_batches_then_fixed():
    generator = np.random.default_rng(0)
    scale, shift = np.array([0.1, 30.0, 3.0, 1.0]), np.array([50.0, -1.0, 7.0, 0.0])
    batches = (generator.normal(size=(5, 16, 4)) * scale + shift).astype(np.float32)
    module = common.Standardization(batches=3)
    variables = module.init(jax.random.key(0), batches[0], train=False)
    np.testing.assert_allclose(module.apply(variables, batches[0], train=False), batches[0] / 2, rtol=1e-2)

    step = jax.jit(lambda statistics, x: standardize(module, statistics, x))
    statistics = variables["batch_stats"]
    first, statistics = step(statistics, batches[0])
    floor = 1e-3 * batches[0].var(0).mean()
    expected = (batches[0] - batches[0].mean(0)) / np.sqrt((batches[0].var(0) + floor) * 4)
    np.testing.assert_allclose(first, expected, rtol=1e-3, atol=1e-5)
    second, after_second = step(statistics, batches[1])  # by the statistics of the first
    expected = (batches[1] - batches[0].mean(0)) / np.sqrt((batches[0].var(0) + floor) * 4)
    np.testing.assert_allclose(second, expected, rtol=1e-3, atol=1e-4)

    _, statistics = step(after_second, batches[2])
    together = batches[:3].reshape(-1, 4)
    np.testing.assert_allclose(statistics["mean"], together.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(statistics["variance"], together.var(0), rtol=1e-3)
    assert statistics["count"] == 3
    _, later = step(statistics, batches[3])
    jax.tree.map(np.testing.assert_array_equal, later, statistics)


def test_standardization_survives_dead_features_and_a_batch_of_one():
    x = jnp.zeros((4, 3)).at[:, 0].set(jnp.arange(4.0))
    module = common.Standardization()
    statistics = module.init(jax.random.key(0), x, train=False)["batch_stats"]
    y, statistics = standardize(module, statistics, x)
    assert np.isfinite(y).all() and np.abs(y).max() < 2
    revived = module.apply({"batch_stats": statistics}, x.at[:, 1].set(1.0), train=False)
    assert np.abs(revived).max() < 40
    y, _ = standardize(module, module.init(jax.random.key(0), x, train=False)["batch_stats"], x[:1])
    np.testing.assert_array_equal(y, 0.0)


@pytest.mark.slow
def test_standardization_does_not_depend_on_the_number_of_devices(getkey):
    x = 3.0 + jax.random.normal(getkey(), (6, 5))
    alone, spread = common.Standardization(), common.Standardization(axis_name="batch")
    statistics = alone.init(getkey(), x, train=False)["batch_stats"]
    expected, expected_statistics = standardize(alone, statistics, x)
    y, updated = on_two_devices(lambda x: standardize(spread, statistics, x), x)
    np.testing.assert_allclose(y.reshape(6, 5), expected, rtol=1e-5, atol=1e-6)
    for index in range(2):
        jax.tree.map(lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-5), updated, expected_statistics)


# --- Patches ---


def test_grid_patches_are_slices_from_the_top_left_corner(getkey):
    images = jax.random.uniform(getkey(), (2, 9, 13, 3))
    patches = common.grid_patches(images, 4)
    assert patches.shape == (2, 6, 4, 4, 3)
    for number, (row, column) in enumerate((r, c) for r in (0, 4) for c in (0, 4, 8)):
        np.testing.assert_array_equal(patches[:, number], images[:, row : row + 4, column : column + 4])
    with pytest.raises(ValueError, match="a patch has 10x10 pixels, the images have 9x13"):
        common.grid_patches(images, 10)
