import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage import data, metrics

from cprl_jax import fidelity


def pairs(height=24, width=20, seed=0):
    """Noise on noise, on a ramp, on a flat bright image, on a flat black one, and no change at all."""
    rng = np.random.default_rng(seed)
    references = rng.random((5, height, width, 3))
    references[1] = np.linspace(0, 1, width).reshape(1, width, 1)
    references[2], references[3] = 0.97, 0
    images = np.clip(references + 0.03 * rng.normal(size=references.shape), 0, 1)
    images[4] = references[4]
    return images.astype(np.float32), references.astype(np.float32)


def literal_map(image, reference, padding):
    """Wang et al., Eq. 13, for one channel in float64, by SciPy's correlation with the two-dimensional window."""
    image, reference = image.astype(np.float64), reference.astype(np.float64)
    rows, columns = np.mgrid[-5:6, -5:6]
    window = np.exp(-(rows**2 + columns**2) / (2 * 1.5**2))
    window /= window.sum()
    if padding:
        image, reference = np.pad(image, 5, mode=padding), np.pad(reference, 5, mode=padding)

    def mean(x):
        return ndimage.correlate(x, window, mode="constant")[5:-5, 5:-5]

    mean1, mean2 = mean(image), mean(reference)
    variance1, variance2 = mean(image**2) - mean1**2, mean(reference**2) - mean2**2
    covariance = mean(image * reference) - mean1 * mean2
    luminance = (2 * mean1 * mean2 + 1e-4) / (mean1**2 + mean2**2 + 1e-4)
    return luminance * (2 * covariance + 9e-4) / (variance1 + variance2 + 9e-4)


def literal(image, reference, padding=None):
    return np.mean([literal_map(image[..., c], reference[..., c], padding) for c in range(image.shape[-1])])


@pytest.mark.parametrize("size", [(24, 20), (11, 11), (42, 43), (11, 107)])  # blocks of 32 outputs: full, begun
def test_default_equals_scikit_image(size):
    images, references = pairs(*size)
    expected = [
        metrics.structural_similarity(
            image.astype(np.float64),
            reference.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        for image, reference in zip(images, references, strict=True)
    ]
    np.testing.assert_allclose(fidelity.ssim(images, references), expected, atol=2e-6)
    np.testing.assert_allclose(jax.jit(fidelity.ssim)(images, references), expected, atol=2e-6)


@pytest.mark.parametrize(("border", "padding"), [("valid", None), ("reflect", "reflect"), ("replicate", "edge")])
def test_borders_equal_the_literal_formula(border, padding):
    images, references = pairs()
    expected = [literal(*pair, padding) for pair in zip(images, references, strict=True)]
    np.testing.assert_allclose(fidelity.ssim(images, references, border=border), expected, atol=2e-6)


def test_downsampling_averages_squares():
    images, references = pairs(392, 386)  # round(386 / 256) is 2
    halves = [values.astype(np.float64).reshape(5, 196, 2, 193, 2, 3).mean((2, 4)) for values in (images, references)]
    expected = [literal(*pair) for pair in zip(*halves, strict=True)]
    np.testing.assert_allclose(fidelity.ssim(images, references, downsample=True), expected, atol=2e-6)
    odd = (np.pad(values, ((0, 0), (0, 1), (0, 1), (0, 0))) for values in (images, references))
    np.testing.assert_allclose(fidelity.ssim(*odd, downsample=True), expected, atol=2e-6)  # leftovers are dropped
    small = pairs(300, 280)  # round(280 / 256) is 1
    np.testing.assert_array_equal(fidelity.ssim(*small, downsample=True), fidelity.ssim(*small))


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"downsample": True}, 0.8519808154890547),  # piq.ssim
        ({}, 0.7645386675080537),  # piq.ssim(downsample=False)
        (
            {"border": "reflect"},
            0.7653990004227009,
        ),  # torchmetrics' structural_similarity_index_measure(data_range=1.0)
    ],
)
def test_values_of_other_libraries(options, published):
    """Computed once in float64 by piq 0.8.0 and torchmetrics 1.9.0: a photograph against eight levels of itself."""
    photograph = data.astronaut()[None, :400, :400] / 255
    score = fidelity.ssim(np.floor(8 * photograph) / 8, photograph, **options)
    np.testing.assert_allclose(score, [published], atol=2e-6)


def test_presets_equal_the_libraries():
    torch = pytest.importorskip("torch")
    piq = pytest.importorskip("piq")
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    for size in ((24, 20), (394, 387)):  # the larger one is downsampled by piq
        images, references = (values[:2] for values in pairs(*size))
        pair = [torch.tensor(values.astype(np.float64).transpose(0, 3, 1, 2)) for values in (images, references)]
        expected = {
            "piq": piq.ssim(*pair, reduction="none"),
            "torchmetrics": torchmetrics.structural_similarity_index_measure(*pair, reduction="none", data_range=1.0),
        }
        for preset, scores in expected.items():
            actual = fidelity.ssim(images, references, **fidelity.SSIM_PRESETS[preset])
            np.testing.assert_allclose(actual, scores.numpy(), atol=1e-5)


@pytest.mark.parametrize("preset", fidelity.SSIM_PRESETS)
def test_presets_are_options_of_ssim(preset):
    images, _ = pairs()
    scores = fidelity.ssim(images, images, **fidelity.SSIM_PRESETS[preset])
    np.testing.assert_allclose(scores, np.ones(5), atol=2e-6)


def test_gray_as_floats():
    images, references = pairs()
    weights = np.array([0.299, 0.587, 0.114])
    expected = [
        literal((a @ weights)[..., None], (b @ weights)[..., None]) for a, b in zip(images, references, strict=True)
    ]
    np.testing.assert_allclose(fidelity.ssim(images, references, gray="float"), expected, atol=2e-6)


def test_gray_rounded_to_eight_bits():
    """On 8-bit images, in whole numbers: also luma half-way between two levels is rounded as stated, upwards."""
    images, references = (np.rint(255 * values).astype(np.int64) for values in pairs())
    images[0, :2], references[0, :2] = [0, 0, 250], [100, 100, 100]  # 28.5
    images[0, 2:4] = [250, 250, 0]  # 221.5

    def luma(levels):
        return ((299 * levels[..., :1] + 587 * levels[..., 1:2] + 114 * levels[..., 2:] + 500) // 1000) / 255

    expected = [literal(luma(a), luma(b)) for a, b in zip(images, references, strict=True)]
    for function in (fidelity.ssim, jax.jit(fidelity.ssim, static_argnames="gray")):
        actual = function((images / 255).astype(np.float32), (references / 255).astype(np.float32), gray="uint8")
        np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_gray_levels_are_exact_for_every_eight_bit_colour():
    from cprl_jax.fidelity._images import luma

    rng = np.random.default_rng(0)
    levels = np.concatenate([rng.integers(0, 256, (200_000, 3)), np.repeat(np.arange(256), 3).reshape(256, 3)])
    expected = (levels @ [299, 587, 114] + 500) // 1000
    assert np.sum(levels @ [299, 587, 114] % 1000 == 500) > 100  # so that halves are among them
    images = (levels / 255).astype(np.float32).reshape(1, 1, -1, 1, 3)
    rounded = jax.jit(lambda images: luma(images, rounded=True))(images)
    np.testing.assert_array_equal(np.rint(255 * np.asarray(rounded, np.float64)).ravel(), expected)


def test_equal_images_score_one_and_order_does_not_matter():
    images, references = pairs()
    for options in ({}, {"border": "reflect"}, {"gray": "float"}, {"gray": "uint8"}):
        np.testing.assert_allclose(fidelity.ssim(images, images, **options), np.ones(5), atol=2e-6)
        np.testing.assert_allclose(
            fidelity.ssim(images, references, **options), fidelity.ssim(references, images, **options), atol=1e-6
        )


def test_range_and_known_lowest_value():
    board = np.indices((16, 16)).sum(0)[None, :, :, None] % 2 * np.ones(3, np.float32)
    np.testing.assert_allclose(fidelity.ssim(board, 1 - board), [literal(board[0], 1 - board[0])], atol=2e-6)
    assert -1 <= fidelity.ssim(board, 1 - board)[0] < -0.99
    assert np.all(np.abs(fidelity.ssim(*pairs())) <= 1)


def test_falls_as_noise_grows():
    references = pairs()[1]
    noise = np.random.default_rng(1).normal(size=references.shape).astype(np.float32)
    scores = [fidelity.ssim(np.clip(references + level * noise, 0, 1), references) for level in (0.01, 0.05, 0.2)]
    assert np.all(scores[0] > scores[1]) and np.all(scores[1] > scores[2])


def test_images_of_a_batch_do_not_influence_each_other():
    images, references = pairs()
    together = fidelity.ssim(images, references)
    alone = [fidelity.ssim(images[i : i + 1], references[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("border", ["valid", "reflect", "replicate"])
def test_gradients_are_finite_everywhere_and_zero_at_the_reference(border):
    images, references = pairs()

    def total(images):
        return jnp.sum(fidelity.ssim(images, references, border=border))

    gradient = np.asarray(jax.grad(total)(images))
    assert np.all(np.isfinite(gradient)) and np.all(np.abs(gradient[:4]).max(axis=(1, 2, 3)) > 0)
    at_reference = np.asarray(jax.grad(total)(references))
    assert np.all(np.isfinite(at_reference)) and np.abs(at_reference).max() < 1e-5


def test_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        images, references = (jnp.asarray(values[:2].astype(np.float64)) for values in pairs(13, 12))

        def total(images):
            return jnp.sum(fidelity.ssim(images, references, border="replicate", gray="float"))

        along = np.random.default_rng(2).normal(size=images.shape)
        total = jax.jit(total)
        numeric = (total(images + 1e-6 * along) - total(images - 1e-6 * along)) / 2e-6
        np.testing.assert_allclose(jnp.sum(jax.grad(total)(images) * along), numeric, rtol=1e-6)
        assert fidelity.ssim(images, references).dtype == jnp.float64


def test_work_grows_with_the_pixels_and_not_with_the_sides():
    def work(side):
        shape = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
        return jax.jit(jax.grad(lambda x, y: jnp.sum(fidelity.ssim(x, y)))).lower(shape, shape).cost_analysis()["flops"]

    assert work(2058) < 4.1 * work(1034)


def test_vmap():
    images, references = pairs()
    mapped = jax.vmap(fidelity.ssim, in_axes=(0, None))(np.stack([images, references]), references)
    np.testing.assert_allclose(mapped[0], fidelity.ssim(images, references), atol=1e-6)
    np.testing.assert_allclose(mapped[1], np.ones(5), atol=2e-6)


def test_half_precision_is_computed_as_float32():
    images, references = (jnp.asarray(values, jnp.bfloat16) for values in pairs())
    scores = fidelity.ssim(images, references)
    assert scores.dtype == jnp.float32
    np.testing.assert_array_equal(scores, fidelity.ssim(images.astype(jnp.float32), references.astype(jnp.float32)))


def test_images_of_one_pixel_with_replicated_border():
    images, references = np.full((1, 1, 1, 3), 0.2, np.float32), np.full((1, 1, 1, 3), 0.8, np.float32)
    expected = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    np.testing.assert_allclose(fidelity.ssim(images, references, border="replicate"), [expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 10, 30, 3), {}, "11x11 window with border='valid' needs at least 11 pixels.*got 10x30"),
        ((1, 5, 30, 3), {"border": "reflect"}, "at least 6 pixels.*got 5x30"),
        ((24, 20, 3), {}, r"\[batch, height, width, channels\], got shape \(24, 20, 3\)"),
        ((1, 24, 20, 1), {"gray": "float"}, "3 channels"),
        ((1, 24, 20, 3), {"border": "zeros"}, "'valid', 'reflect', 'replicate', got 'zeros'"),
        ((1, 24, 20, 3), {"gray": "rgb"}, "'float' or 'uint8', got 'rgb'"),
    ],
)
def test_mistakes_are_named(shape, options, message):
    images = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        fidelity.ssim(images, images, **options)


def test_mistakes_in_pairs_are_named():
    images = np.zeros((1, 24, 20, 3), np.float32)
    with pytest.raises(ValueError, match=r"one shape.*\(1, 24, 20, 3\).*\(1, 20, 24, 3\)"):
        fidelity.ssim(images, images.transpose(0, 2, 1, 3))
    with pytest.raises(ValueError, match="uint8: divide"):
        fidelity.ssim(images.astype(np.uint8), images)
