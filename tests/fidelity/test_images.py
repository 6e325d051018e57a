"""What all measures make of images that are none: NaN, infinite values, other ranges."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import attacks, fidelity

OPTIONS = {"ms_ssim": {"border": "replicate"}}
MEASURES = {
    **{name: fidelity.distance(name, **OPTIONS.get(name, {})) for name in ("chebyshev", "mse", "psnr", "ssim", "gmsd")},
    "ms_ssim": fidelity.distance("ms_ssim", border="replicate", exponents=(0.5, 0.5)),
    "PSNR in decibels": fidelity.psnr,
    "ssim downsampled": fidelity.distance("ssim", downsample=True, gray="uint8"),
}


def pairs(shape=(3, 12, 13, 3)):
    rng = np.random.default_rng(0)
    references = rng.random(shape).astype(np.float32)
    return np.clip(references + 0.05 * rng.normal(size=shape), 0, 1).astype(np.float32), references


def spoiled(which, value):
    pair = [values.copy() for values in pairs()]
    pair[which][1, -1, -1, 1] = value  # at the border, which some measures leave out
    return pair


@pytest.fixture(scope="module")
def learned():
    squeezenet = fidelity.random_backbone(jax.random.key(0), network="squeezenet")
    return {"lpips": fidelity.lpips(fidelity.lpips_parameters(squeezenet, network="squeezenet"))}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", [*MEASURES, pytest.param("lpips", marks=pytest.mark.slow)])
def test_a_value_that_is_not_finite_makes_the_measure_of_its_image_nan(name, which, learned):
    measure = (MEASURES | learned)[name]
    clean = np.asarray(measure(*pairs((3, 17, 18, 3)) if name == "lpips" else pairs()))
    for value in (np.nan, np.inf, -np.inf):
        pair = spoiled(which, value)
        if name == "lpips":
            pair = list(pairs((3, 17, 18, 3)))
            pair[which][1, -1, -1, 1] = value
        found = np.asarray(measure(*pair))
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])
        np.testing.assert_allclose(found[[0, 2]], clean[[0, 2]], rtol=1e-5, atol=1e-6)


def test_dists_marks_what_is_not_finite():
    """Without its network, whose features take long: a distance of 0 stands for any other."""
    from cprl_jax.fidelity._images import not_finite_is_nan

    for which in (0, 1):
        np.testing.assert_array_equal(not_finite_is_nan(jnp.zeros(3), *spoiled(which, np.inf)), [0, np.nan, 0])


def test_the_gradient_of_other_images_stays():
    images, references = spoiled(0, np.nan)
    for name in ("chebyshev", "mse", "psnr", "gmsd", "ssim"):
        gradient = np.asarray(jax.grad(lambda x, f=MEASURES[name]: jnp.sum(f(x, references)))(images))
        expected = np.asarray(jax.grad(lambda x, f=MEASURES[name]: jnp.sum(f(x, references)))(pairs()[0]))
        np.testing.assert_allclose(gradient[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.any(np.isnan(gradient[1])), name


RANGES = {
    "0 to 255": (lambda x: 255 * x, r"images must be in \[0, 1\], found values from 0.* to 25\d.*images / 255"),
    "-1 to 1": (lambda x: 2 * x - 1, r"images must be in \[0, 1\], found values from -.* to .*: .*\(images \+ 1\) / 2"),
    "overshoot": (lambda x: 1.2 * x - 0.1, r"images must be in \[0, 1\], found values from -0.* to 1.*: clip"),
}


@pytest.mark.parametrize("name", RANGES)
def test_other_ranges_are_refused_with_the_remedy_and_as_attacks_refuse_them(name):
    change, message = RANGES[name]
    images, references = pairs()
    for measure in MEASURES.values():
        with pytest.raises(ValueError, match=message) as caught:
            measure(change(images), references)
    with pytest.raises(ValueError, match=message.replace("images", "references")):
        fidelity.mse(images, change(references))
    with pytest.raises(ValueError, match=message) as by_attacks:
        attacks.fgsm(lambda x: jnp.mean(x, axis=(1, 2, 3)), change(images), radius=0.1, direction=attacks.up())
    assert str(by_attacks.value) == str(caught.value)


def test_range_is_checked_of_known_values_alone_and_with_a_tolerance():
    images, references = pairs()
    np.testing.assert_allclose(fidelity.mse(images + 1 - images.max() + 5e-4, references) >= 0, np.ones(3, bool))
    assert np.all(jax.jit(fidelity.mse)(255 * images, 255 * references) > 1)
    constant = 255 * jnp.asarray(references)
    with pytest.raises(ValueError, match="references must be in"):
        jax.jit(lambda x: fidelity.mse(x, constant))(images)
    traced = jax.vmap(fidelity.mse)(255 * images[None], references[None])
    assert np.all(traced > 1)
    assert fidelity.mse(images[:0], references[:0]).shape == (0,)


@pytest.mark.sampled
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 11])
@pytest.mark.parametrize("name", MEASURES)
def test_black_and_white_are_never_equal(name, size):
    """However small: else the image is refused with the smallest side that the measure can judge."""
    for shape in ((size, size), (size, 16)):
        black, white = np.zeros((1, *shape, 3), np.float32), np.ones((1, *shape, 3), np.float32)
        try:
            equal, value = MEASURES[name](black, black), MEASURES[name](black, white)
        except ValueError as error:
            assert re.search(rf"at least \d+ pixels on each side, got {shape[0]}x{shape[1]}", str(error))
        else:
            assert abs(float(value[0] - equal[0])) > 0.1


@pytest.mark.parametrize("name", MEASURES)
def test_no_images_have_no_distances(name):
    assert MEASURES[name](*(batch[:0] for batch in pairs())).shape == (0,)
