"""What all distortions have in common: the registry, `distort`, and array functions on NumPy and JAX arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.data import scenes
from cprl_jax.data.distortions import DISTORTIONS, FAMILIES, LEVELS, SMALLEST_SIDE, distort

NAMES = sorted(name for name, distortion in DISTORTIONS.items() if distortion.family in ("embedded", "kadid"))
ARRAY_NAMES = [name for name in NAMES if DISTORTIONS[name].differentiable]
RANDOM = {
    *("white-noise", "color-noise", "kadid/motion-blur", "kadid/color-shift", "kadid/white-noise", "kadid/jitter"),
    *("kadid/white-noise-color-component", "kadid/impulse-noise", "kadid/multiplicative-noise", "kadid/denoise"),
    *("kadid/non-eccentricity-patch", "kadid/color-block"),
}
COMPILE_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(scope="module")
def image():
    return scenes.make_views("coffee", seed=0, image_size=64)[0].image


def test_registry():
    assert LEVELS == (1, 2, 3, 4, 5)
    # The lists of sets that were made from photographs are in this order, and a set is continued in its order.
    assert FAMILIES == ("embedded", "kadid", "tid2013", "mlive")
    assert list(DISTORTIONS) == sorted(DISTORTIONS, key=lambda name: FAMILIES.index(DISTORTIONS[name].family))
    for name, distortion in DISTORTIONS.items():
        assert len(distortion.parameters) == 5 and distortion.unit and distortion.source, name
        assert distortion.apply.__doc__, name
        assert name == name.lower() and "_" not in name  # '_' separates view, distortion and level in image names
        assert distortion.family in FAMILIES
        assert name.rpartition("/")[0] == ("" if distortion.family == "embedded" else distortion.family)


@pytest.mark.parametrize("name", NAMES)
def test_any_shape(name, image):
    for shape in [(17, 33, 3), (SMALLEST_SIDE, SMALLEST_SIDE, 3), *([(1, 1, 3)] if "/" not in name else [])]:
        picture = np.resize(image, shape)
        before = picture.copy()
        for level in (1, 5):
            result = distort(picture, name, level=level, key=0)
            assert result.dtype == np.uint8 and result.shape == shape
        np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("name", NAMES)
def test_same_key_same_image(name, image):
    first, again, other = (distort(image, name, level=4, key=key) for key in ([7], (7,), [8]))
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) == (name not in RANDOM)


def test_kinds_of_keys(image):
    image = image[:16, :16]
    same = [distort(image, "white-noise", level=1, key=key) for key in (3, [3], np.int64(3), np.array([3]))]
    assert all(np.array_equal(result, same[0]) for result in same)
    from_jax = [distort(image, "white-noise", level=1, key=jax.random.key(seed)) for seed in (3, 3, 4)]
    assert np.array_equal(*from_jax[:2]) and not np.array_equal(*from_jax[1:])
    patches = [distort(image, "kadid/color-block", level=5, key=jax.random.key(seed)) for seed in (3, 3, 4)]
    assert np.array_equal(*patches[:2]) and not np.array_equal(*patches[1:])


@pytest.mark.parametrize("name", NAMES)
def test_flat_images(name):
    """Blurs, codecs and displaced pixels leave grey alone; nothing else makes NaN of it."""
    for value in (0, 128, 255):
        flat = np.full((24, 25, 3), value, np.uint8)
        result = distort(flat, name, level=5, key=1).astype(int)
        moved = (
            "blur",
            "jpeg",
            "jpeg2000",
            "pixelation",
            "contrast",
            "shift",
            "patch",
            "jitter",
            "pixelate",
            "sharpen",
        )
        colored = ("saturation-1", "saturation-2", "diffusion", "kadid/quantization", "kadid/color-quantization")
        if name.endswith((*moved, *colored)) and name != "kadid/mean-shift":
            assert np.abs(result - value).max() <= (3 if "jpeg" in name else 1)


@pytest.mark.sampled
@pytest.mark.parametrize("name", ARRAY_NAMES)
def test_jax_arrays(name, image):
    """Compiled, mapped and differentiated, against NumPy with the same noise."""
    distortion = DISTORTIONS[name]
    parameter = distortion.parameters[3]
    rows = np.random.default_rng(2).uniform(20, 235, (2, 16, 16, 3)).astype(np.float32)
    rows[1] = image[:16, :16]
    rows[1, :4] = 128  # grey: hues and gradients of nothing

    def weighted(picture):
        result = distortion.apply(picture, parameter, 5)
        return (result * jnp.arange(result.size).reshape(result.shape) % 7).sum(), result

    both = jax.jit(jax.vmap(jax.grad(weighted, has_aux=True))).lower(jnp.asarray(rows))
    slopes, results = both.compile(compiler_options=COMPILE_QUICKLY)(jnp.asarray(rows))
    expected = np.stack([distortion.apply(picture.astype(np.float64), parameter, 5) for picture in rows])
    np.testing.assert_allclose(results, expected, atol=0.06)
    assert results.dtype == jnp.float32
    assert np.isfinite(slopes).all() and np.abs(slopes).max() > 0


@pytest.mark.parametrize("name", ARRAY_NAMES)
def test_batches(name, image):
    """A batch of NumPy images, without random numbers: the same as one by one."""
    if name in RANDOM:
        batch = np.stack([image, image[::-1]]).astype(np.float64)
        assert DISTORTIONS[name].apply(batch, DISTORTIONS[name].parameters[3], 0).shape == batch.shape
        return
    batch = np.stack([image, image[::-1]]).astype(np.float64)
    result = DISTORTIONS[name].apply(batch, DISTORTIONS[name].parameters[3], 0)
    for row, picture in zip(result, batch, strict=True):
        alone = DISTORTIONS[name].apply(picture, DISTORTIONS[name].parameters[3], 0)
        np.testing.assert_allclose(row, alone, atol=1e-9)


@pytest.mark.parametrize("name", ["kadid/motion-blur", "kadid/color-shift"])
def test_keys_are_mapped_over(name, image):
    keys = jax.random.split(jax.random.key(0), 3)
    picture = jnp.asarray(image[:16, :16], jnp.float32)
    parameter = DISTORTIONS[name].parameters[4]
    mapped = jax.jit(jax.vmap(lambda key: DISTORTIONS[name].apply(picture, parameter, key))).lower(keys)
    results = mapped.compile(compiler_options=COMPILE_QUICKLY)(keys)
    assert len(np.unique(np.asarray(results), axis=0)) > 1


@pytest.mark.parametrize("level", [0, 6, -1, 1.5, None])
def test_unknown_level(level, image):
    with pytest.raises(ValueError, match="levels are 1 to 5"):
        distort(image, "jpeg", level=level, key=0)


def test_unknown_name(image):
    with pytest.raises(ValueError, match="'blurr'.*allowed are.*gaussian-blur.*kadid/lens-blur"):
        distort(image, "blurr", level=1, key=0)


@pytest.mark.parametrize("key", [None, -1, "seed", 0.5, np.random.default_rng(0)])
def test_wrong_keys(key, image):
    with pytest.raises(ValueError, match="key=.*whole numbers from 0.*JAX key"):
        distort(image, "white-noise", level=1, key=key)


@pytest.mark.parametrize("wrong", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)])
def test_wrong_images(wrong):
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\]"):
        distort(wrong, "jpeg", level=1, key=0)


def test_too_small():
    with pytest.raises(ValueError, match="15 x 40: kadid/jpeg needs 16 x 16"):
        distort(np.zeros((15, 40, 3), np.uint8), "kadid/jpeg", level=1, key=0)
