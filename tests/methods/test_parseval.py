"""Parseval training: tight layers cost nothing, others what the paper's formula says, and the penalty falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cprl_jax.config import defaults as config_lib
from cprl_jax.methods import METHODS, title
from cprl_jax.methods.parseval import penalty, tightness


def orthonormal(rows, columns):
    """Rows, or columns where there are fewer, that are orthonormal."""
    tall = np.linalg.qr(np.random.default_rng(0).normal(size=(max(rows, columns), min(rows, columns))))[0]
    return (tall if rows >= columns else tall.T).astype(np.float32)


@pytest.mark.sampled
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 1, 6, 4), (3, 3, 2, 7), (3, 3, 1, 40)])
def test_a_tight_layer_costs_nothing_and_has_the_gradient_zero(shape):
    *window, inputs, outputs = shape
    places = int(np.prod(window))
    kernel = orthonormal(places * inputs, outputs) / np.sqrt(places)
    if window and inputs == 1:  # depthwise: every channel by itself
        kernel = kernel / np.linalg.norm(kernel, axis=0) / np.sqrt(places)
    value, gradient = jax.value_and_grad(tightness)(jnp.asarray(kernel.reshape(shape)))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 3), (3, 3, 2, 4), (2, 2, 1, 3)])
def test_the_gradient_is_that_of_finite_differences(shape):
    kernel = np.random.default_rng(1).normal(size=shape, scale=0.4).astype(np.float32)
    check_grads(tightness, (kernel,), 1, modes=("rev",), rtol=0.02)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_it_is_the_distance_of_the_singular_values_from_one(shape):
    kernel = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    expected = ((np.linalg.svd(kernel, compute_uv=False) ** 2 - 1) ** 2).sum() / 2
    np.testing.assert_allclose(tightness(jnp.asarray(kernel)), expected, rtol=1e-4)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_tight_convolution_lengthens_no_image(kernel_size):
    kernel = orthonormal(4, kernel_size**2 * 3).T.reshape(kernel_size, kernel_size, 3, 4) / kernel_size
    images = np.random.default_rng(3).normal(size=(20, 9, 9, 3)).astype(np.float32)
    smooth = np.ones_like(images)
    for x in (images, smooth):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        lengths = [np.sqrt((np.asarray(values) ** 2).sum((1, 2, 3))) for values in (y, x)]
        assert np.all(lengths[0] <= 1.0001 * lengths[1])


def test_kernels_count_but_neither_the_layer_of_the_score_nor_biases():
    kernel = jnp.ones((2, 3))
    params = {"backbone": {"a": {"kernel": kernel, "bias": jnp.ones(3)}}, "head": {"kernel": jnp.ones((9, 1))}}
    np.testing.assert_allclose(penalty(params), tightness(kernel), rtol=1e-6)
    assert penalty({"scale": jnp.ones(3)}) == 0


@pytest.mark.slow
def test_a_step_on_the_compact_network_lowers_the_penalty(one_step):
    before, after, metrics = one_step("parseval", weight=1.0)
    np.testing.assert_allclose(metrics["parseval_loss"], penalty(before.params), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], metrics["mos_loss"] + metrics["parseval_loss"], rtol=1e-5)
    assert penalty(after.params) < penalty(before.params)


def test_a_row_says_what_ran():
    assert title("parseval", config_lib.default().parseval) == "Parseval training (beta 0.0001)"
    assert METHODS["parseval"].gradients(None) == 1
