"""Convolution and its gradients against XLA's, in each of the implementations that the shapes select."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from cprl_jax.layers.convolution import conv_general_dilated, convolve

# height, width, channels, features, kernel, strides, padding; together they use every implementation.
SHAPES = {
    "rows and columns": (11, 10, 32, 8, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "small map": (6, 5, 4, 70, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "stride": (13, 16, 3, 8, (7, 7), (2, 2), ((3, 3), (3, 3))),
    "unequal strides of an image": (11, 17, 3, 4, (4, 5), (1, 3), ((2, 0), (0, 1))),
    "stride without padding": (13, 16, 3, 8, (3, 3), (2, 2), ((0, 0), (0, 0))),
    "few channels": (12, 9, 4, 66, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "unequal kernel": (10, 12, 9, 5, (2, 5), (1, 1), ((0, 2), (3, 1))),
    "unequal strides": (10, 12, 32, 5, (2, 5), (1, 3), ((0, 2), (3, 1))),
}


def library(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.sampled
@pytest.mark.parametrize("case", SHAPES)
def test_values_and_gradients_in_float64(case):
    height, width, channels, features, size, strides, padding = SHAPES[case]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(2, height, width, channels)))
        kernel = jnp.asarray(rng.normal(size=(*size, channels, features)))

        @jax.jit
        def both(x, kernel, tangents):
            ours, pull = jax.vjp(lambda x, k: convolve(x, k, strides=strides, padding=padding), x, kernel)
            theirs, their_pull = jax.vjp(lambda x, k: library(x, k, strides, padding), x, kernel)
            push = jax.jvp(lambda x, k: convolve(x, k, strides=strides, padding=padding), (x, kernel), tangents)[1]
            their_push = jax.jvp(lambda x, k: library(x, k, strides, padding), (x, kernel), tangents)[1]
            return (ours, pull(jnp.sin(ours)), push), (theirs, their_pull(jnp.sin(theirs)), their_push)

        ours, theirs = both(x, kernel, (jnp.cos(x), jnp.cos(kernel)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), ours, theirs)


@pytest.mark.slow
def test_second_derivatives(getkey):
    """Gradient-norm penalties differentiate twice."""
    x, kernel = jax.random.normal(getkey(), (1, 5, 5, 2)), jax.random.normal(getkey(), (3, 3, 2, 3))

    def penalty(apply):
        return jax.grad(lambda k: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(apply(x, k))))(x) ** 2))

    ours = penalty(lambda x, k: convolve(x, k))(kernel)
    theirs = penalty(lambda x, k: library(x, k, (1, 1), "VALID"))(kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_in_a_flax_convolution(getkey):
    x = jax.random.normal(getkey(), (2, 9, 9, 3))
    options = dict(strides=(2, 2), padding=((1, 1), (1, 1)))
    plain, ours = (
        nn.Conv(4, (3, 3), **options),
        nn.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated, **options),
    )
    variables = plain.init(getkey(), x)
    np.testing.assert_allclose(ours.apply(variables, x), plain.apply(variables, x), rtol=1e-5, atol=1e-5)
    assert plain.apply(variables, x).dtype == ours.apply(variables, x.astype(jnp.bfloat16)).dtype


def test_in_a_depthwise_flax_convolution(getkey):
    x = jax.random.normal(getkey(), (2, 9, 9, 4))
    options = dict(feature_group_count=4, padding="SAME")
    plain, ours = (
        nn.Conv(4, (3, 3), **options),
        nn.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated, **options),
    )
    variables = plain.init(getkey(), x)
    np.testing.assert_allclose(ours.apply(variables, x), plain.apply(variables, x), rtol=1e-5, atol=1e-5)
    for wrong in (dict(feature_group_count=2), dict(kernel_dilation=2), dict(precision="highest")):
        with pytest.raises(ValueError, match="no dilation, no precision and no group"):
            nn.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated, **wrong).init(getkey(), x)


@pytest.mark.sampled
@pytest.mark.parametrize("case", ["rows and columns", "stride"])
def test_the_platform_of_the_program_decides(case, getkey):
    """Not the process's default one: programs are exported, and run under `jax.default_device`."""
    height, width, channels, features, size, strides, padding = SHAPES[case]
    arguments = (
        jax.random.normal(getkey(), (2, height, width, channels)),
        jax.random.normal(getkey(), (*size, channels, features)),
    )

    def program(apply):
        return jax.jit(jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(apply(x, k))), (0, 1)))

    ours = program(lambda x, k: convolve(x, k, strides=strides, padding=padding))
    theirs = program(lambda x, k: library(x, k, strides, padding))

    def products(platform):
        text = export.export(ours, platforms=[platform])(*arguments).mlir_module()
        return re.findall(r"stablehlo\.(convolution|dot_general)\b", text)

    for platform in ("cuda", "tpu"):
        assert products(platform) == 3 * ["convolution"]
    assert "dot_general" in products("cpu")
    assert "conditional(" not in ours.lower(*arguments).compile().as_text()
    with jax.default_device(jax.local_devices(backend="cpu")[-1]):
        under_another_default = ours(*arguments)
    jax.tree.map(np.testing.assert_array_equal, under_another_default, ours(*arguments))
    either = export.export(ours, platforms=["cpu", "cuda"])
    for result in (either(*arguments).call(*arguments), theirs(*arguments)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), result, ours(*arguments))


def test_half_precision_stays(getkey):
    x = jax.random.normal(getkey(), (1, 6, 6, 4), jnp.bfloat16)
    assert convolve(x, jnp.ones((3, 3, 4, 2), jnp.bfloat16)).dtype == jnp.bfloat16
