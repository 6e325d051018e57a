"""Every attack gives the same inside jit(vmap), pmap and shard_map as called plainly."""

import warnings
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from cprl_jax import attacks

RNG = np.random.default_rng(0)
IMAGES = RNG.random((4, 8, 8, 3), dtype=np.float32)
IMAGES[:, 0, 0], IMAGES[:, -1, -1] = 0, 1
MOS = np.array([10.0, 90.0, 60.0, 20.0], np.float32)
KEYS = jax.random.split(jax.random.key(7), 4)  # one per image, so that it does not matter where an image is computed
WEIGHTS = {"kernel": RNG.normal(size=(3, 3, 3, 4)).astype(np.float32), "head": RNG.normal(size=4).astype(np.float32)}


def features(weights, images):
    hidden = jax.lax.conv_general_dilated(
        images - 0.5, weights["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(hidden)


def score(weights, images):
    """A small convolutional network with scores around 50."""
    return 50 + jnp.einsum("bhwc,c->b", features(weights, images), weights["head"])


def energy(images):
    return jnp.sum(jnp.square(images - 0.4), axis=(1, 2, 3))


def mean_square(images, references):
    return jnp.mean(jnp.square(images - references), axis=(1, 2, 3))


def attack_of(name):
    """The function, wherever in the package it is."""
    file = {"pattern": "universal"}.get(name, name)
    return getattr(import_module(f"cprl_jax.attacks.{file}"), file)


def pattern(score_fn, images):
    """What a pattern does that was made from the images of the same call."""
    pattern = attack_of("universal")(score_fn, [images], radius=0.05, epochs=2)
    return pattern, pattern.attack(score_fn, images)


# Each as a function of weights, images, labels and keys.
ATTACKS = {
    "fgsm": lambda w, x, mos, keys: attacks.fgsm(
        Partial(score, w), x, radius=[0.01, 0.02], direction=attacks.reflect(mos)
    ),
    "pgd linf": lambda w, x, mos, keys: attacks.pgd(
        Partial(score, w), x, radius=0.02, steps=2, direction=attacks.reflect(mos), key=keys
    ),
    "pgd loop": lambda w, x, mos, keys: attacks.pgd(
        Partial(score, w), x, radius=0.02, steps=17, direction=attacks.target_free()
    ),
    "pgd l2": lambda w, x, mos, keys: attacks.pgd(
        Partial(score, w), x, radius=0.3, norm="l2", steps=2, direction=attacks.up(), key=keys
    ),
    "pgd momentum": lambda w, x, mos, keys: attacks.pgd(
        Partial(score, w), x, radius=0.02, steps=2, momentum=1.0, direction=attacks.away()
    ),
    "pgd restarts": lambda w, x, mos, keys: attacks.pgd(
        Partial(score, w), x, radius=0.02, steps=2, restarts=2, direction=attacks.towards(mos), key=keys
    ),
    "score_reflection": lambda w, x, mos, keys: attacks.score_reflection(Partial(score, w), x, radius=0.02, steps=2),
    "ascent": lambda w, x, mos, keys: attacks.ascent(
        Partial(score, w), x, radius=0.02, iterations=3, starts=2, direction=attacks.reflect(mos), key=keys
    ),
    "square": lambda w, x, mos, keys: attacks.square(
        Partial(score, w), x, radius=0.05, queries=5, direction=attacks.reflect(mos), key=keys
    ),
    "perceptual": lambda w, x, mos, keys: attack_of("perceptual")(
        Partial(score, w), x, mean_square, multipliers=[0.0, 1.0, np.inf], steps=2, step_size=0.01, key=keys
    ),
    "enhance": lambda w, x, mos, keys: attack_of("enhance")(Partial(score, w), x, steps=2, step_size=0.01),
    "carlini_wagner": lambda w, x, mos, keys: attack_of("carlini_wagner")(
        Partial(score, w), x, required_change=0.5, direction=attacks.reflect(mos), steps=2, searches=2
    ),
    "maximum_differentiation": lambda w, x, mos, keys: attack_of("maximum_differentiation")(
        energy, Partial(score, w), x, steps=2
    ),
    "eigen_distortion": lambda w, x, mos, keys: attack_of("eigen_distortion")(
        Partial(features, w), x, steps=4, key=keys
    ),
    "universal": lambda w, x, mos, keys: pattern(Partial(score, w), x),
    "straight_through": lambda w, x, mos, keys: attacks.fgsm(
        import_module("cprl_jax.attacks.adaptive").straight_through(
            lambda x: score(w, jnp.round(15 * x) / 15), Partial(score, w)
        ),
        x,
        radius=0.02,
        direction=attacks.up(),
    ),
    "expectation": lambda w, x, mos, keys: attacks.fgsm(
        import_module("cprl_jax.attacks.adaptive").expectation(
            Partial(gated_score, w), jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32)), 3
        ),
        x,
        radius=0.02,
        direction=attacks.up(),
    ),
}


def gated_score(weights, key, images):
    return score(weights, images * jax.random.bernoulli(key, 0.5, images.shape[1:])[None].astype(images.dtype))


@pytest.fixture(scope="module")
def plain():
    """The results of the plain calls for the two halves of the images, made once for each attack."""
    results = {}

    def get(name):
        if name not in results:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                halves = [ATTACKS[name](WEIGHTS, IMAGES[i : i + 2], MOS[i : i + 2], KEYS[i : i + 2]) for i in (0, 2)]
            results[name] = jax.tree.map(lambda *leaves: np.stack(leaves), *halves)
        return results[name]

    return get


def halved(leaf):
    return leaf.reshape(2, 2, *leaf.shape[1:])


def assert_same(name, actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True)
    for (path, one), other in leaves:
        assert one.shape == other.shape and one.dtype == other.dtype, path
        tolerance = 1e-3 if name in ("eigen_distortion", "carlini_wagner") else 2e-5
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


def attacks_by_name(*, quick):
    """All attacks; those that are not quick are slow tests."""
    return [pytest.param(name, marks=() if quick(name) else pytest.mark.slow) for name in ATTACKS]


_COSTLY = ("eigen_distortion", "maximum_differentiation", "perceptual", "square", "expectation")


@pytest.mark.sampled
@pytest.mark.parametrize("name", attacks_by_name(quick=lambda name: name not in _COSTLY))
def test_jit_of_vmap(name, plain):
    mapped = jax.jit(jax.vmap(ATTACKS[name], in_axes=(None, 0, 0, 0)))
    assert_same(name, mapped(WEIGHTS, *map(halved, (IMAGES, MOS, KEYS))), plain(name))


two_devices = pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two devices")


# pmap compiles what shard_map compiles; a few will do where time is short.
QUICK = ("fgsm", "square", "universal")


@two_devices
@pytest.mark.parametrize("name", attacks_by_name(quick=lambda name: name in QUICK))
def test_pmap(name, plain):
    mapped = jax.pmap(ATTACKS[name], in_axes=(None, 0, 0, 0), axis_name="batch", devices=jax.local_devices()[:2])
    assert_same(name, mapped(WEIGHTS, *map(halved, (IMAGES, MOS, KEYS))), plain(name))


@two_devices
@pytest.mark.parametrize("name", attacks_by_name(quick=lambda name: "pgd" in name))
def test_shard_map(name, plain):
    def on_one_device(*arguments):  # with a first axis for the devices, whatever form the result has
        return jax.tree.map(lambda leaf: leaf[None], ATTACKS[name](*arguments))

    mesh = Mesh(np.array(jax.local_devices()[:2]), ("batch",))
    specs = (P(), P("batch"), P("batch"), P("batch"))
    mapped = jax.jit(jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=P("batch")))
    assert_same(name, mapped(WEIGHTS, IMAGES, MOS, KEYS), plain(name))


@pytest.mark.parametrize("name", attacks_by_name(quick=lambda name: name not in _COSTLY[:3]))
def test_strict_types_and_no_nan_on_the_way(name, plain):
    images = (IMAGES[:2], MOS[:2], KEYS[:2])
    with jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        found = ATTACKS[name](WEIGHTS, *images)
    assert_same(name, found, jax.tree.map(lambda leaf: leaf[0], plain(name)))


@pytest.mark.parametrize("name", attacks_by_name(quick=lambda name: name in ("fgsm", "pgd l2", "carlini_wagner")))
def test_all_of_an_image_with_nan_is_nan_in_a_compiled_attack(name, plain):
    images = IMAGES[:2].copy()
    images[1, 2, 3, 0] = np.nan
    result = jax.jit(ATTACKS[name])(WEIGHTS, images, MOS[:2], KEYS[:2])
    expected = jax.tree.map(lambda leaf: leaf[0], plain(name))
    if name == "universal":
        assert np.all(np.isfinite(result[0].pattern))
        result, expected = result[1], expected[1]
    for field, values in result._asdict().items():
        if field in ("multipliers",) or values is None:
            continue
        of_image = np.moveaxis(np.asarray(values), -4 if values.ndim >= 4 else -1, 0)
        assert not np.any(of_image[1]) if field == "success" else np.all(np.isnan(of_image[1])), field
        if name != "universal":  # which is one pattern for both
            same = np.moveaxis(getattr(expected, field), -4 if values.ndim >= 4 else -1, 0)[0]
            tolerance = 1e-3 if name in ("eigen_distortion", "carlini_wagner") else 2e-5
            np.testing.assert_allclose(of_image[0], same, rtol=tolerance, atol=tolerance, err_msg=field)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(value):
    images = IMAGES.copy()
    images[1, 2, 3, 0] = value
    with pytest.raises(ValueError, match="not finite numbers.* in 1 of 4 images"):
        attacks.fgsm(Partial(score, WEIGHTS), images, radius=0.1, direction=attacks.up())
