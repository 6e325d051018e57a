import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax import fidelity

SIMPLE = ("chebyshev", "mse", "psnr", "ssim", "ms_ssim", "gmsd")
OPTIONS = {"ms_ssim": {"border": "replicate"}}


def pairs(seed=0):
    rng = np.random.default_rng(seed)
    references = rng.random((3, 20, 22, 3))
    images = np.clip(
        references + np.array([0, 0.02, 0.2]).reshape(3, 1, 1, 1) * rng.normal(size=references.shape), 0, 1
    )
    return images.astype(np.float32), references.astype(np.float32)


@pytest.fixture(scope="module")
def parameters():
    backbone = fidelity.random_backbone(jax.random.key(0), network="squeezenet")
    return fidelity.lpips_parameters(backbone, network="squeezenet")


@pytest.mark.sampled
@pytest.mark.parametrize("name", SIMPLE)
def test_zero_for_equal_images_and_growing_with_noise(name):
    images, references = pairs()
    measure = fidelity.distance(name, **OPTIONS.get(name, {}))
    values = measure(images, references)
    np.testing.assert_allclose(values[0], 0, atol=2e-6)
    assert 1e-6 < values[1] < values[2] <= 1
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(measure(x, references)))(images))
    assert np.all(np.isfinite(gradient)) and np.abs(gradient[0]).max() < 1e-5


def test_values():
    images, references = pairs()
    similarity = fidelity.ssim(images, references, gray="float")
    np.testing.assert_array_equal(fidelity.distance("ssim", gray="float")(images, references), 1 - similarity)
    np.testing.assert_array_equal(fidelity.distance("gmsd")(images, references), fidelity.gmsd(images, references))
    ratio = fidelity.psnr(images, references)
    np.testing.assert_allclose(fidelity.distance("psnr")(images, references), 10 ** (-ratio / 20), rtol=1e-5)
    exponents = fidelity.distance("ms_ssim", border="replicate", exponents=[0.5, 0.5])(images, references)
    expected = 1 - fidelity.ms_ssim(images, references, border="replicate", exponents=(0.5, 0.5))
    np.testing.assert_array_equal(exponents, expected)


@pytest.mark.parametrize("name", SIMPLE)
def test_the_function_stands_for_its_name(name):
    images, references = pairs()
    options = OPTIONS.get(name, {})
    by_function = fidelity.distance(getattr(fidelity, name), **options)
    np.testing.assert_array_equal(
        by_function(images, references), fidelity.distance(name, **options)(images, references)
    )


def test_passes_through_jit_and_is_compiled_once():
    images, references = pairs()
    traces = []

    @jax.jit
    def measure(distance, x):
        traces.append(1)
        return distance(x, references)

    for _ in range(2):
        value = measure(fidelity.distance("ssim", border="reflect"), images)
    np.testing.assert_allclose(value, 1 - fidelity.ssim(images, references, border="reflect"), atol=1e-6)
    assert len(traces) == 1
    measure(fidelity.distance("ssim"), images)
    assert len(traces) == 2


def test_learned_measures_take_parameters(parameters):
    images, references = pairs()
    expected = fidelity.lpips(parameters)(images, references)
    np.testing.assert_array_equal(fidelity.distance("lpips", parameters=parameters)(images, references), expected)
    with pytest.raises(ValueError, match=r"parameters=lpips_parameters\(...\) and nothing else, got no options"):
        fidelity.distance("lpips")
    with pytest.raises(ValueError, match="got 'parameters', 'border'"):
        fidelity.distance(fidelity.dists, parameters=parameters, border="valid")
    measure = fidelity.lpips(parameters)
    assert fidelity.distance(measure) is measure
    with pytest.raises(ValueError, match="bind the options 'border'"):
        fidelity.distance(measure, border="valid")


def test_own_functions_and_their_options():
    images, references = pairs()

    def weighted(images, references, *, weights, power=2):
        return jnp.mean(jnp.abs(images - references) ** power * weights.reshape(1, 1, 1, 3), axis=(1, 2, 3))

    weights = np.array([1, 2, 3], np.float32)
    measure = fidelity.distance(weighted, weights=weights, power=1)
    assert isinstance(measure, Partial) and len(jax.tree.leaves(measure)) == 1
    value = jax.jit(lambda measure, x: measure(x, references))(measure, images)
    np.testing.assert_allclose(value, np.mean(np.abs(images - references) * weights, axis=(1, 2, 3)), rtol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown measure 'SSIMM'; known: 'chebyshev'.*Did you mean 'ssim'"):
        fidelity.distance("SSIMM")
    with pytest.raises(ValueError, match="Did you mean 'ms_ssim'"):
        fidelity.distance("MS-SSIM")
    with pytest.raises(ValueError, match="unknown measure 'xyz'; known: .*'dists'.*'ssim'.$"):
        fidelity.distance("xyz")
    with pytest.raises(ValueError, match="ssim has no option 'size': its options are 'border', 'downsample', 'gray'"):
        fidelity.distance("ssim", size=3)
    with pytest.raises(ValueError, match="mse has no option 'size': it has none"):
        fidelity.distance("mse", size=3)
    with pytest.raises(ValueError, match="name of a measure or a function, got 3"):
        fidelity.distance(3)
    with pytest.raises(ValueError, match="'levels' is a set, which is neither an array nor hashable"):
        fidelity.distance(lambda images, references, levels: 0, levels={1})
