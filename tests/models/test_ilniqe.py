"""IL-NIQE against the steps of its MATLAB code, written out in float64 NumPy for one block after the other."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy import ndimage, optimize, stats
from scipy.special import gamma as Gamma
from skimage import data

from cprl_jax import models
from cprl_jax.data import scenes
from cprl_jax.models import ilniqe
from cprl_jax.runtime.errors import UserError

SHAPES = np.arange(0.2, 10.0005, 0.001)
RATIOS = Gamma(2 / SHAPES) ** 2 / (Gamma(1 / SHAPES) * Gamma(3 / SHAPES))


def literal_gaussian(x):
    """Shape, mean, left and right scale."""
    left, right = np.sqrt(np.mean(x[x < 0] ** 2)), np.sqrt(np.mean(x[x > 0] ** 2))
    quotient = left / right
    ratio = np.mean(np.abs(x)) ** 2 / np.mean(x**2)
    ratio *= (quotient**3 + 1) * (quotient + 1) / (quotient**2 + 1) ** 2
    a = SHAPES[np.argmin(np.abs(RATIOS - ratio))]
    left, right = np.array([left, right]) * np.sqrt(Gamma(1 / a) / Gamma(3 / a))
    return a, (right - left) * Gamma(2 / a) / Gamma(1 / a), left, right


def literal_weibull(x):
    """Scale and shape."""

    def slope(shape):
        powers = (x / x.max()) ** shape
        return np.sum(powers * np.log(x)) / np.sum(powers) - 1 / shape - np.mean(np.log(x))

    shape = optimize.brentq(slope, 1e-3, 100)
    return np.mean(x**shape) ** (1 / shape), shape


def literal_log_gabor(luminance, wavelength):
    """The complex responses by (scale, orientation), each filter set to 0 at frequency 0."""
    y, x = np.meshgrid(*(np.fft.fftfreq(size) for size in luminance.shape), indexing="ij")
    radius, theta = np.hypot(x, y), np.arctan2(-y, x)
    radius[0, 0] = 1
    responses = []
    for center in 1 / (wavelength * 1.31 ** np.arange(3)):
        for angle in np.arange(4) * np.pi / 4:
            difference = np.abs(np.angle(np.exp(1j * (theta - angle))))
            gain = np.exp(-(np.log(radius / center) ** 2) / (2 * np.log(0.55) ** 2))
            gain = gain * np.exp(-(difference**2) / (2 * (np.pi / 4 / 1.1) ** 2))
            gain[0, 0] = 0
            responses.append(np.fft.ifft2(gain * np.fft.fft2(luminance)))
    return np.array(responses)


def literal_gradient(x, sigma):
    """Both derivatives, and the magnitude, at least 1e-4."""
    at = np.arange(-5, 6)
    kernel = at[None] * np.exp(-(at[None] ** 2 + at[:, None] ** 2) / (2 * sigma**2))
    derivatives = [ndimage.convolve(x, weights, mode="constant") for weights in (kernel, kernel.T)]
    return *derivatives, np.sqrt(derivatives[0] ** 2 + derivatives[1] ** 2 + 1e-8)


def gaussian_window(size, sigma):
    at = np.arange(size) - (size - 1) / 2
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * sigma**2))
    return window / window.sum()


def literal_features(image):
    """[blocks, 468] and the sharpness of the blocks, of RGB in 0..255 whose sides are multiples of 84."""
    scales, rgb = [], np.moveaxis(image.astype(np.float64), -1, 0)
    for scale in (1, 2):
        side, sigma = 84 // scale, 1.66 / scale**0.28
        opponent = np.tensordot([[0.3, 0.04, -0.35], [0.34, -0.6, 0.17], [0.06, 0.63, 0.27]], rgb, 1)
        window = gaussian_window(5, 5 / 6)
        mean = ndimage.correlate(opponent[2], window, mode="nearest")
        square = ndimage.correlate(opponent[2] ** 2, window, mode="nearest")
        deviation = np.sqrt(np.abs(square - mean**2))
        responses = literal_log_gabor(opponent[2], 2.4 / scale**0.87)
        parts = [part for response in responses for part in (response.real, response.imag)]
        of_opponent = [literal_gradient(x, sigma) for x in opponent]
        of_parts = [literal_gradient(x, sigma) for x in parts]
        red, green, blue = (x - x.mean() for x in np.log(rgb + 1e-5))
        colors = [(red + green + blue) / 3**0.5, (red + green - 2 * blue) / 6**0.5, (red - green) / 2**0.5]
        rows = []
        for top in range(0, rgb.shape[1], side):
            for start in range(0, rgb.shape[2], side):

                def cut(x, top=top, start=start, side=side):
                    return x[top : top + side, start : start + side]

                block = cut((opponent[2] - mean) / (deviation + 1))
                a, _, left, right = literal_gaussian(block)
                row = [a, (left + right) / 2]
                for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    row += literal_gaussian(block * np.roll(block, shift, (0, 1)))
                for *_, magnitude in of_opponent:
                    row += literal_weibull(cut(magnitude).ravel())
                for color in colors:
                    row += [cut(color).mean(), cut(color).var(ddof=1)]
                derivatives = ([x for found in every for x in found[:2]] for every in (of_opponent, of_parts))
                first, last = derivatives
                for x in (*first, *parts, *last):
                    a, _, left, right = literal_gaussian(cut(x))
                    row += [a, (left + right) / 2]
                for *_, magnitude in of_parts:
                    row += literal_weibull(cut(magnitude).ravel())
                rows.append(row)
        scales.append(rows)
        if scale == 1:
            places = [(top, start) for top in range(0, len(mean), side) for start in range(0, len(mean[0]), side)]
            sharpness = [deviation[top : top + side, start : start + side].mean() for top, start in places]
            padded = np.pad(rgb, ((0, 0), (2, 3), (2, 3)), mode="edge")
            windows = np.lib.stride_tricks.sliding_window_view(padded, (6, 6), axis=(1, 2))[:, ::2, ::2]
            rgb = np.sum(windows * gaussian_window(6, 0.9), axis=(3, 4))
    return np.concatenate(scales, axis=1), np.array(sharpness)


def literal_distance(found, center, covariance, mean, components):
    coefficients = (found - mean) @ components
    own = np.cov(coefficients, rowvar=False) if len(found) > 1 else np.zeros_like(covariance)
    inverse = np.linalg.pinv((covariance + own) / 2)
    return np.mean([np.sqrt((x - center) @ inverse @ (x - center)) for x in coefficients])


@pytest.fixture(scope="module")
def published():
    """Center and covariance of components, mean of the features, components: as in the published file, but fewer."""
    generator = np.random.default_rng(0)
    components = np.linalg.qr(generator.normal(size=(468, 40)))[0]
    mixed = np.diag(np.geomspace(1e-3, 30, 40)) @ (np.eye(40) + 0.05 * generator.normal(size=(40, 40)))
    return generator.normal(size=40), mixed @ mixed.T, generator.uniform(0, 50, 468), components


def save(path, arrays):
    cells = np.empty((1, len(arrays)), object)
    cells[0, :] = [np.atleast_2d(array) for array in arrays]
    scipy.io.savemat(path, {"templateModel": cells})


@pytest.fixture(scope="module")
def computed():
    """Photographs; one beside a saturated one; grey. Their features, sharpness and distances, and a gradient.

    It is that of the sum of the distances of all but the first.
    """
    photographs = [data.astronaut()[60:144, 180:348], data.coffee()[200:284, 200:368]]
    natural, other = (photograph / 255 for photograph in photographs)
    saturated = np.where(np.arange(168)[:, None] < 84, other, np.clip(6 * other - 2.5, 0, 1))
    images = jnp.asarray(np.stack([natural, saturated, np.full_like(natural, 0.4)]), jnp.float32)
    whitening = np.random.default_rng(1).normal(size=(468, 20)).astype(np.float32) / 100

    @jax.jit
    def compute(images):
        def total(images):
            found, sharpness = ilniqe.block_features(255 * images)
            distances = ilniqe.distance(found, jnp.ones(468), whitening)
            return jnp.sum(distances[1:]), (found, sharpness, distances)

        gradient, values = jax.grad(total, has_aux=True)(images)
        return *values, gradient

    return images, *(np.asarray(values) for values in compute(images))


def test_block_features_are_those_of_the_published_steps(computed):
    images, features, sharpness, *_ = computed
    assert features.shape == (3, 2, 468)
    place = np.arange(468) % 234
    is_shape = np.isin(place, [0, 2, 6, 10, 14]) | ((place >= 30) & (place < 186) & (place % 2 == 0))
    expected, sharp = literal_features(255 * np.asarray(images[0], np.float64))
    np.testing.assert_allclose(sharpness[0], sharp, rtol=1e-4)
    np.testing.assert_allclose(features[0][:, is_shape], expected[:, is_shape], rtol=1e-3, atol=2.1e-3)
    np.testing.assert_allclose(features[0][:, ~is_shape], expected[:, ~is_shape], rtol=4e-3, atol=2e-4)


def test_gradients_are_finite_and_images_do_not_influence_each_other(computed):
    _, *values, gradient = computed
    assert all(np.isfinite(value).all() for value in (*values, gradient))
    np.testing.assert_array_equal(gradient[0], 0)
    assert (np.abs(gradient[1]).reshape(84, 2, 84, 3).max(axis=(0, 2, 3)) > 0).all()


def test_a_flat_block_has_the_features_of_no_structure(computed):
    _, features, *_ = computed
    for start in (0, 234):
        np.testing.assert_array_equal(features[2, :, start : start + 18], [[10, 0, *(10, 0, 0, 0) * 4]] * 2)
        np.testing.assert_allclose(features[2, :, start + 24 : start + 30], 0, atol=1e-4)


def test_weibull_is_the_maximum_of_the_likelihood():
    generator = np.random.default_rng(2)
    samples = np.stack([generator.weibull(shape, 2000) for shape in (0.2, 0.7, 1.5, 4.0)])
    samples = np.concatenate([30 * samples, np.where(np.arange(2000) % 3, samples[:1], 1e-4)]).clip(1e-30)
    scale, shape = jax.jit(ilniqe.weibull)(jnp.asarray(samples, jnp.float32))
    expected = [stats.weibull_min.fit(row, floc=0) for row in samples]
    np.testing.assert_allclose(shape, [row[0] for row in expected], rtol=1e-4)
    np.testing.assert_allclose(scale, [row[2] for row in expected], rtol=1e-3)


def test_gradients_of_weibull_are_those_of_the_maximum():
    generator = np.random.default_rng(3)
    samples, direction = 5 * generator.weibull(0.8, 500) + 0.1, generator.normal(size=500)
    expected = [
        (above - below) / 2e-4
        for above, below in zip(
            literal_weibull(samples + 1e-4 * direction), literal_weibull(samples - 1e-4 * direction), strict=True
        )
    ]
    samples, direction = (jnp.asarray(x, jnp.float32) for x in (samples, direction))
    _, ours = jax.jit(lambda x, along: jax.jvp(ilniqe.weibull, (x,), (along,)))(samples, direction)
    np.testing.assert_allclose(ours, expected, rtol=1e-3)
    equal = jnp.full(50, 3.0)
    total, gradient = jax.jit(jax.value_and_grad(lambda x: sum(ilniqe.weibull(x))))(equal)
    np.testing.assert_allclose(total, 3 + 10, rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("wavelength", [2.4, 2.4 / 2**0.87])
def test_log_gabor_is_its_formula(wavelength):
    luminance = data.camera()[100:184, 200:326].astype(np.float64)
    ours = jax.jit(ilniqe.log_gabor, static_argnames="wavelength")(
        jnp.asarray(luminance, jnp.float32), wavelength=wavelength
    )
    expected = literal_log_gabor(luminance, wavelength)
    np.testing.assert_allclose(ours[::2], expected.real, atol=1e-3)
    np.testing.assert_allclose(ours[1::2], expected.imag, atol=1e-3)


def cubic(x):
    x = np.abs(x)
    inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0))


def literal_resize(image, axis):
    """To 524 along an axis, rounded: a bicubic kernel, wider where the image shrinks, mirrored at the border."""
    image = np.moveaxis(image, axis, 0)
    size, rows = len(image), []
    wider = max(1.0, size / 524)
    for output in range(524):
        center = (output + 0.5) * size / 524 - 0.5
        taps = np.arange(int(center - 2 * wider) - 2, int(center + 2 * wider) + 3)
        weights = cubic((center - taps) / wider)
        mirrored = np.where(taps < 0, -1 - taps, np.where(taps >= size, 2 * size - 1 - taps, taps))
        rows.append(np.tensordot(weights / weights.sum(), image[mirrored], 1))
    return np.moveaxis(np.floor(np.clip(rows, 0, 255) + 0.5), 0, axis)


def test_images_are_resized_as_published():
    image = np.tile(data.astronaut()[20:120, :300], (1, 3, 1))  # 100 x 900: columns first
    resize = jax.jit(ilniqe.resized)
    ours = np.asarray(resize(jnp.asarray(image[None], jnp.float32) / 255))[0]
    difference = np.abs(ours - literal_resize(literal_resize(image.astype(float), 1), 0))
    assert ours.shape == (524, 524, 3) and difference.max() <= 1 and difference.mean() < 1e-3  # ties, by the last bit
    same = np.tile(data.astronaut()[:262, :262], (1, 2, 2, 1))
    np.testing.assert_array_equal(resize(jnp.asarray(same, jnp.float32) / 255), same)


def test_distance_is_the_formula_with_the_parameters_of_a_published_file(config_model, published, tmp_path):
    save(tmp_path / "model.mat", published)
    config = config_model("ilniqe", backbone="")
    unfitted = {"params": {"mean": np.zeros(468), "whitening": np.zeros((468, 430))}}
    params = models.load_weights(unfitted, tmp_path / "model.mat", config_model=config)["params"]
    center, covariance, mean, components = published
    generator = np.random.default_rng(4)
    coefficients = center + generator.normal(size=(2, 36, 40)) @ np.linalg.cholesky(covariance).T * 1.5
    coefficients[1, 3] += 1000  # a block without structure
    found = (mean + coefficients @ components.T).astype(np.float32)
    for count in (36, 1):
        ours = jax.jit(ilniqe.distance)(found[:, :count], params["mean"], params["whitening"])
        expected = [literal_distance(rows[:count].astype(float), *published) for rows in found]
        np.testing.assert_allclose(ours, expected, rtol=1e-3)


def test_another_file_is_refused(config_model, published, tmp_path):
    config = config_model("ilniqe", backbone="")
    unfitted = {"params": {"mean": np.zeros(468), "whitening": np.zeros((468, 430))}}
    scipy.io.savemat(tmp_path / "other.mat", {"mu_prisparam": np.zeros(36)})
    save(tmp_path / "three.mat", published[:3])
    (tmp_path / "text.mat").write_text("no arrays")
    for name in ("other", "three", "text"):
        with pytest.raises(UserError, match=f"{name}.mat: no .mat file with IL-NIQE's templateModel"):
            models.load_weights(unfitted, tmp_path / f"{name}.mat", config_model=config)


def test_a_fit_whitens_the_sharp_blocks_alone(config_model, monkeypatch):
    """With photographs that are tables themselves: of each block a row of features, and its sharpness."""
    monkeypatch.setattr(ilniqe, "resized", lambda images: 255 * images[..., 0])
    monkeypatch.setattr(ilniqe, "block_features", lambda tables: (tables[..., :468], tables[..., 468]))
    module = models.create(config_model("ilniqe", backbone=""))
    photographs = [np.random.default_rng(number).integers(0, 256, (36, 469, 3), np.uint8) for number in range(14)]
    rows = [table[table[:, 468, 0] > 0.78 * table[:, 468, 0].max(), :468, 0] for table in photographs]
    rows = np.concatenate(rows).astype(float)
    variables, numbers = ilniqe.fit(module, None, None, pristine=lambda: photographs, seed=0)
    assert numbers == {"blocks": len(rows), "components": int(0.92 * len(rows))}
    whitened = (rows - variables["params"]["mean"]) @ variables["params"]["whitening"]
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(whitened, rowvar=False), np.eye(numbers["components"]), atol=1e-4)
    for few in ([], photographs[:2]):
        with pytest.raises(UserError, match="IL-NIQE needs 72 sharp blocks, .*; give more of them by config.train.pri"):
            ilniqe.fit(module, None, None, pristine=lambda few=few: few, seed=0)


@pytest.mark.slow
def test_damage_makes_a_photograph_worse(config_model):
    """After a fit to photographs that come with the package: three have many sharp blocks."""
    names = ("gravel", "grass", "brick", "coffee")
    paths = [scenes.photograph_path(scenes.PHOTOGRAPHS[name][0]) for name in names]
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    module = models.create(config_model("ilniqe", backbone=""))
    variables, _ = ilniqe.fit(module, None, None, pristine=lambda: photographs, seed=0)
    original = photographs[-1]
    noisy = original + np.random.default_rng(5).normal(scale=20, size=original.shape)
    file = io.BytesIO()
    Image.fromarray(original).save(file, "JPEG", quality=8)
    damaged = [ndimage.gaussian_filter(original, (2, 2, 0)), noisy.clip(0, 255), np.asarray(Image.open(file))]
    images = jnp.asarray(np.stack([original, *damaged]), jnp.float32) / 255
    scores = jax.jit(models.score_fn(module, variables))(images)
    assert (scores[1:] < scores[0] - 2).all()
