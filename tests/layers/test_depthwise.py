"""Depthwise convolution and its gradients against XLA's grouped convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from cprl_jax.layers.depthwise import depthwise

# height, width, channels, kernel, strides, padding
SHAPES = {
    "3x3": (7, 6, 5, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "5x5": (9, 8, 4, (5, 5), (1, 1), ((2, 2), (2, 2))),
    "3x3, stride 2": (8, 7, 5, (3, 3), (2, 2), ((0, 1), (1, 1))),
    "5x5, stride 2": (10, 9, 3, (5, 5), (2, 2), ((1, 2), (2, 2))),
    "stride without padding": (9, 10, 2, (3, 3), (2, 2), ((0, 0), (0, 0))),
    "all unequal": (11, 13, 3, (2, 4), (3, 2), ((0, 2), (3, 1))),
    "a kernel shorter than its strides": (9, 11, 2, (1, 2), (2, 3), ((0, 0), (1, 0))),
    "a map smaller than the kernel": (2, 3, 6, (5, 5), (1, 1), ((2, 2), (2, 2))),
}


def library(x, kernel, strides=(1, 1), padding=((0, 0), (0, 0))):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


@pytest.mark.sampled
@pytest.mark.parametrize("case", SHAPES)
def test_values_and_gradients_in_float64(case):
    height, width, channels, size, strides, padding = SHAPES[case]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(2, height, width, channels)))
        kernel = jnp.asarray(rng.normal(size=(*size, 1, channels)))

        def all_of(apply):
            values, pull = jax.vjp(apply, x, kernel)
            push = jax.jvp(apply, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))[1]
            return values, pull(jnp.sin(values)), push

        ours = jax.jit(lambda: all_of(lambda x, k: depthwise(x, k, strides=strides, padding=padding)))()
        theirs = jax.jit(lambda: all_of(lambda x, k: library(x, k, strides, padding)))()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), ours, theirs)


def test_second_derivatives(getkey):
    """Gradient-norm penalties differentiate twice."""
    x, kernel = jax.random.normal(getkey(), (1, 5, 6, 2)), jax.random.normal(getkey(), (3, 3, 1, 2))

    def penalty(apply):
        return jax.grad(lambda k: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(apply(x, k))))(x) ** 2))

    ours = jax.jit(penalty(lambda x, k: depthwise(x, k, strides=(2, 2))))(kernel)
    theirs = jax.jit(penalty(lambda x, k: library(x, k, (2, 2))))(kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_half_precision_is_added_up_in_float32(getkey):
    x = jax.random.uniform(getkey(), (1, 9, 9, 4), jnp.bfloat16)
    kernel = jax.random.uniform(getkey(), (5, 5, 1, 4), jnp.bfloat16)
    values = depthwise(x, kernel)
    assert values.dtype == jnp.bfloat16
    exact = library(x.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_array_equal(values, exact.astype(jnp.bfloat16))


def test_the_platform_of_the_program_decides():
    arguments = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32)
    program = jax.jit(jax.value_and_grad(lambda x, kernel: jnp.sum(depthwise(x, kernel) ** 2), (0, 1)))
    for platform, grouped in (("cpu", False), ("cuda", True), ("tpu", True)):
        text = export.export(program, platforms=[platform])(*arguments).mlir_module()
        assert ("stablehlo.convolution" in text) == grouped, platform
