"""NIQE against the steps of its MATLAB code, written out in float64 NumPy for one block after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from scipy import ndimage
from scipy.special import gamma as Gamma
from skimage import data

from cprl_jax import models
from cprl_jax.models import niqe
from cprl_jax.runtime.errors import UserError

SHAPES = np.arange(0.2, 10.0005, 0.001)


def literal_aggd(x):
    left, right = np.sqrt(np.mean(x[x < 0] ** 2)), np.sqrt(np.mean(x[x > 0] ** 2))
    quotient = left / right
    ratio = np.mean(np.abs(x)) ** 2 / np.mean(x**2)
    ratio *= (quotient**3 + 1) * (quotient + 1) / (quotient**2 + 1) ** 2
    ratios = Gamma(2 / SHAPES) ** 2 / (Gamma(1 / SHAPES) * Gamma(3 / SHAPES))
    a = SHAPES[np.argmin((ratios - ratio) ** 2)]
    scale = np.sqrt(Gamma(1 / a) / Gamma(3 / a))
    return a, left * scale, right * scale


def literal_block(block):
    a, left, right = literal_aggd(block)
    found = [a, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a, left, right = literal_aggd(block * np.roll(block, shift, (0, 1)))
        found += [a, (right - left) * Gamma(2 / a) / Gamma(1 / a), left, right]
    return found


def cubic(x):
    x = np.abs(x)
    inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0))


def literal_half(image, axis):
    """imresize(image, 0.5) along an axis: a bicubic kernel of twice the width, mirrored at the border."""
    image = np.moveaxis(image, axis, 0)
    size = len(image)
    rows = []
    for output in range(size // 2):
        center = 2 * output + 0.5
        taps = np.arange(int(center) - 4, int(center) + 6)
        weights = cubic((center - taps) / 2) / cubic((center - taps) / 2).sum()
        mirrored = np.where(taps < 0, -1 - taps, np.where(taps >= size, 2 * size - 1 - taps, taps))
        rows.append(np.tensordot(weights, image[mirrored], 1))
    return np.moveaxis(np.stack(rows), 0, axis)


def literal_features(image):
    """[blocks, 36] and the sharpness of the blocks, of uint8 RGB."""
    gray = np.floor(image @ np.array([0.298936021293775, 0.587043074451121, 0.114020904255103]) + 0.5)
    gray = gray[: gray.shape[0] // 96 * 96, : gray.shape[1] // 96 * 96]
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    scales = []
    for side in (96, 48):
        mean = ndimage.correlate(gray, window, mode="nearest")
        deviation = np.sqrt(np.abs(ndimage.correlate(gray * gray, window, mode="nearest") - mean * mean))
        coefficients = (gray - mean) / (deviation + 1)
        places = [(i, j) for i in range(0, len(gray), side) for j in range(0, gray.shape[1], side)]
        scales.append([literal_block(coefficients[i : i + side, j : j + side]) for i, j in places])
        if side == 96:
            sharpness = [deviation[i : i + side, j : j + side].mean() for i, j in places]
            gray = literal_half(literal_half(gray, 0), 1)
    return np.concatenate(scales, axis=1), np.array(sharpness)


def literal_distance(found, mean, covariance):
    difference = found.mean(axis=0) - mean
    own = np.cov(found, rowvar=False) if len(found) > 1 else 0
    return np.sqrt(difference @ np.linalg.pinv((own + covariance) / 2) @ difference)


@pytest.fixture(scope="module")
def photographs():
    return [data.astronaut()[:200, :300], data.coffee()[100:300, 150:450]]


@pytest.fixture(scope="module")
def found(photographs):
    """Of the two photographs: ours, and the literal ones."""
    images = jnp.asarray(np.stack(photographs), jnp.float32) / 255
    features, sharpness = jax.jit(niqe.block_features)(images)
    literal = [literal_features(image.astype(np.float64)) for image in photographs]
    return np.asarray(features), np.asarray(sharpness), literal


def test_block_features_are_those_of_the_published_steps(found):
    features, sharpness, literal = found
    assert features.shape == (2, 6, 36)
    is_shape = np.isin(np.arange(36) % 18, [0, 2, 6, 10, 14])
    for ours, ours_sharp, (expected, sharp) in zip(features, sharpness, literal, strict=True):
        np.testing.assert_allclose(ours_sharp, sharp, rtol=1e-4)
        np.testing.assert_allclose(ours[:, is_shape], expected[:, is_shape], atol=2.1e-3)  # two steps of the search
        np.testing.assert_allclose(ours[:, ~is_shape], expected[:, ~is_shape], rtol=4e-3, atol=1e-4)


def pristine_statistics():
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(36, 36)) * 0.05 + np.eye(36)
    units = np.geomspace(1e-2, 3, 36)
    return np.linspace(0.1, 1, 36), (mixed @ mixed.T) * units[:, None] * units[None, :]


def test_distance_is_the_formula(found):
    features, _, _ = found
    mean, covariance = pristine_statistics()
    for count in (6, 1):
        ours = jax.jit(niqe.distance)(features[:, :count], *(jnp.asarray(x, jnp.float32) for x in (mean, covariance)))
        expected = [literal_distance(rows[:count].astype(np.float64), mean, covariance) for rows in features]
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_a_published_file_gives_minus_niqe(config_model, photographs, tmp_path):
    mean, covariance = pristine_statistics()
    scipy.io.savemat(tmp_path / "model.mat", {"mu_prisparam": mean[None], "cov_prisparam": covariance})
    config = config_model("niqe", backbone="")
    module = models.create(config)
    unfitted = models.initialize(module, jax.random.key(0), 96)
    variables = models.load_weights(unfitted, tmp_path / "model.mat", config_model=config)
    images = jnp.asarray(np.stack(photographs), jnp.float32) / 255
    scores = jax.jit(models.score_fn(module, variables))(images)
    expected = [literal_distance(literal_features(image.astype(float))[0], mean, covariance) for image in photographs]
    np.testing.assert_allclose(scores, -np.array(expected), rtol=2e-3)
    scipy.io.savemat(tmp_path / "other.mat", {"mu_prisparam": mean[None]})
    with pytest.raises(UserError, match="other.mat: no .mat file with NIQE's mu_prisparam and cov_prisparam"):
        models.load_weights(unfitted, tmp_path / "other.mat", config_model=config)


def test_a_fit_takes_the_sharp_blocks_alone(config_model):
    module = models.create(config_model("niqe", backbone=""))
    photograph = np.tile(data.astronaut()[:480, :480], (1, 2, 1))
    blocks, sharpness = literal_features(photograph.astype(np.float64))
    sharp = blocks[sharpness > 0.75 * sharpness.max()]
    needed = -(-72 // len(sharp))
    variables, numbers = niqe.fit(module, None, None, pristine=lambda: [photograph] * needed, seed=0)
    assert numbers["blocks"] == needed * len(sharp)
    np.testing.assert_allclose(variables["params"]["mean"], sharp.mean(axis=0), rtol=5e-3, atol=2e-3)
    small = np.zeros((95, 500, 3), np.uint8)
    with pytest.raises(
        UserError, match="needs 72 sharp blocks .* have 0; give more or larger ones by config.train.pri"
    ):
        niqe.fit(module, None, None, pristine=lambda: [small], seed=0)


def test_images_that_are_too_small_are_refused(config_model):
    module = models.create(config_model("niqe", backbone=""))
    with pytest.raises(ValueError, match="at least 96x96 pixels"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 95, 200, 3))))
