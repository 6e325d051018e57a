"""BRISQUE against its published steps written out in float64 NumPy, and its parts against torch and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from jax.test_util import check_grads
from scipy import ndimage, stats
from scipy.special import gamma as Gamma
from skimage import data

from cprl_jax import models
from cprl_jax.models import brisque
from cprl_jax.runtime.errors import UserError

SHAPES = np.arange(0.2, 10.0005, 0.001)


def photograph(height, width):
    return data.astronaut()[60 : 60 + height, 120 : 120 + width].astype(np.float64) / 255


@pytest.fixture(scope="module")
def images():
    """A photograph, noise, and a photograph whose left half is almost flat."""
    generator = np.random.default_rng(0)
    half_flat = photograph(48, 41).copy()
    half_flat[:, :20] = generator.normal(0.75, 0.01, (48, 20, 3))
    return np.stack([photograph(48, 41), generator.uniform(size=(48, 41, 3)), half_flat])


# --- The published steps, one after the other, for one image ---


def literal_mscn(gray):
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = ndimage.correlate(gray, window, mode="constant")
    square = ndimage.correlate(gray * gray, window, mode="constant")
    return (gray - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1)


def literal_ggd(x):
    ratios = Gamma(1 / SHAPES) * Gamma(3 / SHAPES) / Gamma(2 / SHAPES) ** 2
    shape = SHAPES[np.argmin(np.abs(np.mean(x**2) / np.mean(np.abs(x)) ** 2 - ratios))]
    return [shape, np.mean(x**2)]


def literal_aggd(x):
    left, right = np.sqrt(np.mean(x[x < 0] ** 2)), np.sqrt(np.mean(x[x > 0] ** 2))
    quotient = left / right
    ratio = np.mean(np.abs(x)) ** 2 / np.mean(x**2)
    ratio *= (quotient**3 + 1) * (quotient + 1) / (quotient**2 + 1) ** 2
    ratios = Gamma(2 / SHAPES) ** 2 / (Gamma(1 / SHAPES) * Gamma(3 / SHAPES))
    a = SHAPES[np.argmin((ratios - ratio) ** 2)]
    mean = (right - left) * Gamma(2 / a) / Gamma(1 / a) * np.sqrt(Gamma(1 / a)) / np.sqrt(Gamma(3 / a))
    return [a, mean, left**2, right**2]


def literal_half(gray):
    torch = pytest.importorskip("torch")
    size = (gray.shape[0] // 2, gray.shape[1] // 2)
    half = torch.nn.functional.interpolate(torch.tensor(gray)[None, None], size, mode="bicubic", align_corners=True)
    return half[0, 0].numpy()


def literal_features(image):
    gray = 255 * (0.2989 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2])
    found = []
    for scale in (gray, literal_half(gray)):
        x = literal_mscn(scale)
        found += literal_ggd(x)
        for rows, columns in ((0, 1), (1, 0), (1, 1), (-1, 1)):
            found += literal_aggd(x * np.roll(x, (rows, columns), (0, 1)))
    return np.array(found)


IS_SHAPE = np.isin(np.arange(36) % 18, [0, 2, 6, 10, 14])


def test_features_are_those_of_the_published_steps(images):
    expected = np.stack([literal_features(image) for image in images])
    with jax.enable_x64(True):
        found = brisque.features(jnp.asarray(images))
        assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    found = np.asarray(brisque.features(images.astype(np.float32)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, IS_SHAPE], expected[:, IS_SHAPE], atol=0.0021)  # two steps of the search
    np.testing.assert_allclose(found[:, ~IS_SHAPE], expected[:, ~IS_SHAPE], rtol=2e-3, atol=1e-5)


def test_jit_vmap_and_half_precision(images):
    images = jnp.asarray(images, jnp.float32)
    found = brisque.features(images)
    # A shape may move by a step where rounding differs.
    np.testing.assert_allclose(jax.jit(brisque.features)(images), found, rtol=1e-3, atol=1e-3)
    vmapped = jax.vmap(lambda image: brisque.features(image[None])[0])(images)
    np.testing.assert_allclose(vmapped, found, rtol=1e-3, atol=1e-3)
    assert jax.eval_shape(brisque.features, images.astype(jnp.bfloat16)).dtype == jnp.float32


def test_flat_regions_are_exact_in_float32():
    """Bright and almost flat: squares of grey levels have no digits left for such a variance."""
    gray = 230 + 1e-2 * np.random.default_rng(0).normal(size=(1, 24, 24))
    found = np.asarray(brisque.mscn(jnp.asarray(gray, jnp.float32)))[0, 5:-5, 5:-5]
    expected = literal_mscn(gray[0])[5:-5, 5:-5]
    np.testing.assert_allclose(found, expected, atol=1e-4)  # of about 1e-2; by squares the error is near 1e-2


def test_coefficients_of_a_flat_region_are_zero(images):
    for level in (0.0, 77.7, 255.0):
        gray = jnp.full((1, 20, 24), level, jnp.float32).at[:, :, :5].set(10.0)
        for found in (brisque.mscn(gray), jax.jit(brisque.mscn)(gray)):
            np.testing.assert_array_equal(found[:, 3:-3, 8:-3], 0)


# --- Fits ---


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("smooth", [False, True])
def test_shape_and_variance_of_samples(shape, smooth):
    x = 3 * stats.gennorm(shape).rvs((2, 200_000), random_state=np.random.default_rng(0))
    found, variance = brisque.generalized_gaussian(jnp.asarray(x, jnp.float32), smooth=smooth)
    np.testing.assert_allclose(found, [shape] * 2, rtol=0.03)
    np.testing.assert_allclose(variance, np.var(x, axis=1), rtol=1e-3)
    symmetric, mean, left, right = brisque.asymmetric_generalized_gaussian(jnp.asarray(x, jnp.float32), smooth=smooth)
    np.testing.assert_allclose(symmetric, found, rtol=0.01)
    np.testing.assert_allclose(mean, [0, 0], atol=0.02 * np.std(x))
    np.testing.assert_allclose([left, right], [np.var(x, axis=1)] * 2, rtol=0.03)


@pytest.mark.parametrize("smooth", [False, True])
def test_asymmetric_samples(smooth):
    """Left of 0 a Laplacian of scale 1, right of it one of scale 3, joined continuously."""
    generator = np.random.default_rng(0)
    right = generator.uniform(size=200_000) < 3 / 4
    x = generator.exponential(size=200_000) * np.where(right, 3.0, -1.0)
    found = brisque.asymmetric_generalized_gaussian(jnp.asarray(x[None], jnp.float32), smooth=smooth)
    shape, mean, left_variance, right_variance = (float(value[0]) for value in found)
    np.testing.assert_allclose(shape, 1.0, rtol=0.03)
    np.testing.assert_allclose([left_variance, right_variance], [2.0, 18.0], rtol=0.03)
    np.testing.assert_allclose(mean, (18**0.5 - 2**0.5) / 2**0.5, rtol=0.03)


def test_smooth_shapes_are_near_those_of_the_search(images):
    exact, smooth = (np.asarray(brisque.features(images.astype(np.float32), smooth=flag)) for flag in (False, True))
    low = exact < 5
    np.testing.assert_allclose(smooth[low], exact[low], atol=0.01)


@pytest.mark.slow
def test_degenerate_samples():
    x = jnp.stack([jnp.zeros(8), jnp.ones(8), -jnp.ones(8), jnp.linspace(0, 1e-20, 8)])
    for fit in (brisque.generalized_gaussian, brisque.asymmetric_generalized_gaussian):
        for smooth in (False, True):
            assert np.isfinite(fit(x, smooth=smooth)).all()
            gradient = jax.grad(
                lambda x, fit=fit, smooth=smooth: sum(jnp.sum(value) for value in fit(x, smooth=smooth))
            )
            assert np.isfinite(gradient(x)).all()
    assert brisque.generalized_gaussian(x)[0][0] == 10


# --- Half the size ---


@pytest.mark.parametrize("size", [(9, 12), (31, 2), (3, 5)])
def test_corner_aligned_half_is_torch_s(size):
    gray = np.random.default_rng(0).uniform(0, 255, size)
    found = brisque.half(jnp.asarray(gray[None], jnp.float32), "zhang2022")[0]
    np.testing.assert_allclose(found, literal_half(gray), rtol=1e-5, atol=1e-3)


def test_filtered_half_is_matlab_s():
    """torch's antialiasing has MATLAB's kernel and another border; a mirrored surround gives it MATLAB's."""
    torch = pytest.importorskip("torch")
    gray = np.random.default_rng(0).uniform(0, 255, (13, 20))
    surround = np.pad(gray, ((10, 11), (10, 10)), mode="symmetric")  # an even size, so that the half is exact
    half = torch.nn.functional.interpolate(
        torch.tensor(surround)[None, None], size=(17, 20), mode="bicubic", antialias=True
    )[0, 0, 5:12, 5:15]
    found = brisque.half(jnp.asarray(gray[None], jnp.float32), "mittal2012")[0]
    np.testing.assert_allclose(found, half.numpy(), rtol=1e-5, atol=1e-3)


def test_original_conventions_round_grey_levels(images):
    eight_bit = np.round(255 * images).astype(np.float32)
    found = np.asarray(brisque.features(eight_bit / 255, conventions="mittal2012"))
    gray = np.floor(eight_bit.astype(np.float64) @ np.array(brisque.MATLAB_LUMA) + 0.5)
    for index in range(len(images)):
        expected = literal_ggd(literal_mscn(gray[index]))
        np.testing.assert_allclose(found[index, :2], expected, rtol=2e-3)
    assert not np.allclose(found[:, 18:], brisque.features(eight_bit / 255)[:, 18:], rtol=0.05)


# --- Gradients ---


@pytest.mark.slow
@pytest.mark.parametrize("smooth", [False, True])
def test_gradients_are_those_of_finite_differences(images, smooth):
    """Small steps, in which no shape of the search moves: no gradient passes through those."""
    weights = np.random.default_rng(0).normal(size=36)
    if not smooth:
        weights[IS_SHAPE] = 0
    small = np.array(images[:1, :16, :16])
    with jax.enable_x64(True):
        check_grads(
            lambda x: brisque.features(x, smooth=smooth) @ weights,
            (jnp.asarray(small),),
            order=1,
            modes=["rev"],
            eps=1e-9,
            rtol=1e-3,
            atol=1e-3,
        )


@pytest.mark.slow
def test_shapes_pass_no_gradient_unless_smooth(images):
    shapes = np.flatnonzero(IS_SHAPE)
    small = jnp.asarray(images[:1, :16, :16], jnp.float32)
    for smooth in (False, True):
        gradient = jax.grad(lambda x, smooth=smooth: jnp.sum(brisque.features(x, smooth=smooth)[:, shapes]))(small)
        assert np.isfinite(gradient).all() and np.any(gradient != 0) == smooth


@pytest.mark.slow
@pytest.mark.parametrize(("conventions", "smooth"), [("zhang2022", False), ("zhang2022", True), ("mittal2012", False)])
def test_gradients_are_finite_also_at_flat_images(images, conventions, smooth):
    flat = np.stack([np.zeros((18, 15, 3)), np.full((18, 15, 3), 0.5), np.ones((18, 15, 3)), images[0, :18, :15]])

    def total(x):
        found = brisque.features(x, conventions=conventions, smooth=smooth)
        return jnp.sum(found), found

    gradient, found = jax.tree.map(np.asarray, jax.grad(total, has_aux=True)(jnp.asarray(flat, jnp.float32)))
    assert np.isfinite(found).all() and np.isfinite(gradient).all()
    np.testing.assert_array_equal(found[0][~IS_SHAPE], 0)
    np.testing.assert_array_equal(found[0][[0, 18]], 10)
    assert np.abs(gradient[-1]).max() > 0


# --- The regression ---


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    lowest = generator.uniform(-1, 0, 36)
    return {
        "SVs": generator.uniform(-1, 1, (50, 36)),
        "sv_coef": generator.uniform(-100, 100, (50, 1)),
        "rho": 30.0,
        "gamma": 0.08,
        "scale": np.stack([lowest, lowest + generator.uniform(1, 3, 36)]),
    }


def literal_prediction(arrays, features):
    low, high = arrays["scale"]
    scaled = [-1 + 2 * (f - lo) / (hi - lo) for f, lo, hi in zip(features, low, high, strict=True)]
    kernel = [np.exp(-arrays["gamma"] * np.sum((scaled - v) ** 2)) for v in arrays["SVs"]]
    return np.dot(kernel, arrays["sv_coef"][:, 0]) - arrays["rho"]


@pytest.mark.slow
def test_regression_from_either_kind_of_file(arrays, images, tmp_path):
    np.savez(tmp_path / "svr.npz", **arrays)
    rest = {name: value for name, value in arrays.items() if name not in ("scale", "rho")}
    scipy.io.savemat(tmp_path / "svr.mat", {**rest, "SVs": scipy.sparse.csc_matrix(arrays["SVs"])})
    scipy.io.savemat(tmp_path / "scale.mat", {"scale": arrays["scale"]})
    svr = brisque.load_svr(tmp_path / "svr.npz")
    from_mat = brisque.load_svr(tmp_path / "svr.mat", ranges=tmp_path / "scale.mat", rho=30.0)
    jax.tree.map(np.testing.assert_array_equal, svr, from_mat)
    assert brisque.load_svr(tmp_path / "svr.npz", gamma=0.05).gamma == np.float32(0.05)

    images = images[:, :20, :20].astype(np.float32)
    features = np.asarray(brisque.features(images), np.float64)
    expected = [literal_prediction(arrays, row) for row in features]
    scores = jax.jit(brisque.score_fn(svr))(images)
    np.testing.assert_allclose(brisque.predict(svr, jnp.asarray(features, jnp.float32)), expected, rtol=1e-3, atol=0.01)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=0.05)
    np.testing.assert_allclose(brisque.score_fn(svr, negate=True)(images), -brisque.score_fn(svr)(images), rtol=1e-5)


def test_score_functions_go_through_jit_as_pytrees(arrays, images, tmp_path):
    np.savez(tmp_path / "svr.npz", **arrays)
    svr = brisque.load_svr(tmp_path / "svr.npz")
    images = jnp.asarray(images[:1, :16, :16], jnp.float32)
    traces = []

    @jax.jit
    def through_jit(score_fn, images):
        traces.append(1)
        return score_fn(images)

    first = through_jit(brisque.score_fn(svr), images)
    second = through_jit(brisque.score_fn(svr._replace(rho=svr.rho + 1)), images)
    assert len(traces) == 1
    np.testing.assert_allclose(second, first - 1, rtol=1e-4)
    assert jax.tree.structure(brisque.score_fn(svr)) != jax.tree.structure(brisque.score_fn(svr, smooth=True))


def test_files_that_do_not_fit(arrays, tmp_path):
    path = tmp_path / "svr.npz"

    def refused(message, path=path, without=(), **changes):
        kept = {name: value for name, value in {**arrays, **changes}.items() if name not in without}
        np.savez(tmp_path / "svr.npz", **kept)
        with pytest.raises(UserError, match=message):
            brisque.load_svr(path)

    refused("no variable 'rho' in it, but SVs, gamma, scale, sv_coef; give it as rho=", without=("rho",))
    refused("no variable 'scale'.*ranges=", without=("scale",))
    refused(r"SVs has shape \(50, 36\); by the length of sv_coef it must be \(49, 36\)", sv_coef=np.ones(49))
    refused(r"scale has shape \(36, 2\)", scale=np.ones((36, 2)))
    refused(r"for feature \d+ .* second row must be above", scale=arrays["scale"][::-1])
    refused("rho has shape", rho=np.ones(2))
    refused("SVs must hold finite numbers", SVs=np.full((50, 36), np.nan))
    refused("svr.txt: no such file", tmp_path / "svr.txt")
    refused("none.mat: no such file", tmp_path / "none.mat")
    (tmp_path / "broken.mat").write_bytes(b"broken")
    refused("broken.mat: not a .mat file", tmp_path / "broken.mat")


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((1, 8, 8, 1), np.float32), {}, r"RGB, \[batch, height, width, 3\], got shape \(1, 8, 8, 1\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), {}, "floats in .* divide 8-bit images by 255"),
        (np.zeros((1, 1, 8, 3), np.float32), {}, "at least 2x2 pixels, got 1x8"),
        (np.zeros((1, 8, 8, 3), np.float32), {"conventions": "opencv"}, "one of zhang2022, mittal2012, got 'opencv'"),
    ],
)
def test_refusals(images, options, message):
    with pytest.raises(ValueError, match=message):
        brisque.features(images, **options)


def test_the_network_scores_as_the_regression_of_a_published_file(arrays, images, config_model, tmp_path):
    """Whatever score_mean and score_std are, scores are those of the file."""
    np.savez(tmp_path / "svr.npz", **arrays)
    config = config_model("brisque", backbone="", score_mean=50.0, score_std=20.0)
    module = models.create(config)
    unfitted = models.initialize(module, jax.random.key(0), 16)
    variables = models.load_weights(unfitted, tmp_path / "svr.npz", config_model=config)
    images = jnp.asarray(images[:, :20, :20], jnp.float32)
    scores = jax.jit(models.score_fn(module, variables))(images)
    np.testing.assert_allclose(scores, brisque.score_fn(brisque.load_svr(tmp_path / "svr.npz"))(images), atol=0.02)
