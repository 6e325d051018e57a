import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

from cprl_jax import fidelity


def photograph(height, width):
    """A photograph against eight levels of itself."""
    reference = data.astronaut()[None, :height, :width] / 255
    return np.floor(8 * reference) / 8, reference


def small_pairs(height=24, width=23, seed=0):
    """Noise on noise, on a ramp, on a flat image, no change, and the reference turned over (negative structure)."""
    rng = np.random.default_rng(seed)
    references = rng.random((5, height, width, 3))
    references[1] = np.linspace(0, 1, width).reshape(1, width, 1)
    references[2] = 0.4
    images = np.clip(references + 0.1 * rng.normal(size=references.shape), 0, 1)
    images[3] = references[3]
    images[4] = 1 - references[4]
    return images.astype(np.float32), references.astype(np.float32)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("size", "preset", "published"),
    [
        ((400, 400), "piq", 0.9445291071364097),
        ((203, 236), "piq", 0.9338926120569093),
        ((301, 187), "piq", 0.9362823363958146),
        ((400, 400), "torchmetrics", 0.9441536667922458),
        ((203, 236), "torchmetrics", 0.9333549839310352),
        ((301, 187), "torchmetrics", 0.9349208948572674),
    ],
)
def test_values_of_other_libraries(size, preset, published):
    """Computed once in float64 by piq 0.8.0 and torchmetrics 1.9.0; also with one odd side, and with both."""
    images, references = (values.astype(np.float32) for values in photograph(*size))
    score = fidelity.ms_ssim(images, references, **fidelity.MS_SSIM_PRESETS[preset])
    np.testing.assert_allclose(score, [published], atol=3e-6)


def test_presets_equal_the_libraries():
    torch = pytest.importorskip("torch")
    piq = pytest.importorskip("piq")
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    rng = np.random.default_rng(0)
    references = np.concatenate([photograph(181, 190)[1], rng.random((1, 181, 190, 3))])
    images = np.clip(references + 0.2 * rng.normal(size=references.shape), 0, 1)
    pair = [torch.tensor(values.transpose(0, 3, 1, 2)) for values in (images, references)]
    expected = {
        "piq": piq.multi_scale_ssim(*pair, reduction="none"),
        "torchmetrics": torchmetrics.multiscale_structural_similarity_index_measure(
            *pair, reduction="none", data_range=1.0
        ),
    }
    assert expected.keys() == fidelity.MS_SSIM_PRESETS.keys()
    for preset, options in fidelity.MS_SSIM_PRESETS.items():
        score = fidelity.ms_ssim(images.astype(np.float32), references.astype(np.float32), **options)
        np.testing.assert_allclose(score, expected[preset].numpy(), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"border": "reflect"}, {"gray": "float"}])
def test_one_scale_is_ssim(options):
    images, references = (values[:4] for values in small_pairs())
    one_scale = fidelity.ms_ssim(images, references, exponents=(1,), **options)
    np.testing.assert_allclose(one_scale, fidelity.ssim(images, references, **options), atol=1e-6)


def test_equal_images_score_one_and_order_does_not_matter():
    images, references = small_pairs()
    for options in ({"channels": "pooled"}, {"odd_sides": "drop"}, {"gray": "uint8"}):
        options = {"border": "replicate", "exponents": (0.5, 0.3, 0.2), **options}
        np.testing.assert_allclose(fidelity.ms_ssim(images, images, **options), np.ones(5), atol=2e-6)
        scores = fidelity.ms_ssim(images, references, **options)
        np.testing.assert_allclose(scores, fidelity.ms_ssim(references, images, **options), atol=1e-6)
        assert np.all((scores >= 0) & (scores <= 1 + 1e-6))


def test_images_of_a_batch_do_not_influence_each_other():
    images, references = small_pairs()
    options = {"border": "replicate"}
    together = fidelity.ms_ssim(images, references, **options)
    alone = [fidelity.ms_ssim(images[i : i + 1], references[i : i + 1], **options)[0] for i in range(5)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.sampled
@pytest.mark.parametrize("channels", ["separate", "pooled"])
def test_gradients_are_finite_where_terms_are_negative_and_at_the_reference(channels):
    images, references = small_pairs()

    def total(images):
        return jnp.sum(fidelity.ms_ssim(images, references, border="replicate", channels=channels))

    gradient = np.asarray(jax.grad(total)(images))
    assert np.all(np.isfinite(gradient)) and np.all(np.abs(gradient[:3]).max(axis=(1, 2, 3)) > 0)
    np.testing.assert_array_equal(fidelity.ms_ssim(images, references, border="replicate")[4], 0)
    np.testing.assert_array_equal(gradient[4], 0)
    at_reference = np.asarray(jax.grad(total)(references))
    assert np.all(np.isfinite(at_reference)) and np.abs(at_reference).max() < 1e-5


def test_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        images, references = (jnp.asarray(values[:2].astype(np.float64)) for values in small_pairs(21, 20))
        along = np.random.default_rng(2).normal(size=images.shape)

        @jax.jit
        def total(x):
            return jnp.sum(fidelity.ms_ssim(x, references, exponents=(0.3, 0.7), border="reflect"))

        numeric = (total(images + 1e-6 * along) - total(images - 1e-6 * along)) / 2e-6
        np.testing.assert_allclose(jnp.sum(jax.grad(total)(images) * along), numeric, rtol=1e-6)
        assert total(images).dtype == jnp.float64


def test_vmap_and_half_precision():
    images, references = small_pairs()
    measure = jax.tree_util.Partial(fidelity.ms_ssim)
    options = {"border": "replicate", "exponents": (0.5, 0.5)}
    mapped = jax.vmap(lambda x: measure(x, references, **options))(np.stack([images, references]))
    np.testing.assert_allclose(mapped[0], fidelity.ms_ssim(images, references, **options), atol=1e-6)
    halves = [jnp.asarray(values, jnp.bfloat16) for values in (images, references)]
    scores = fidelity.ms_ssim(*halves, **options)
    assert scores.dtype == jnp.float32
    np.testing.assert_array_equal(scores, fidelity.ms_ssim(*(x.astype(jnp.float32) for x in halves), **options))


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("smallest", "options"),
    [
        (161, {}),
        (176, {"odd_sides": "drop"}),
        (96, {"border": "reflect", "contrast_border": "valid", "odd_sides": "drop"}),
        (81, {"border": "reflect"}),
        (24, {"border": "reflect", "odd_sides": "drop", "contrast_border": "valid", "exponents": (0.3, 0.3, 0.4)}),
        (1, {"border": "replicate"}),
    ],
)
def test_smallest_image(smallest, options):
    images = np.zeros((1, smallest, smallest + 1, 1), np.float32)
    np.testing.assert_allclose(fidelity.ms_ssim(images, images, **options), [1], atol=1e-6)
    if smallest > 1:
        with pytest.raises(ValueError, match=f"at least {smallest} pixels on each side, got {smallest - 1}x"):
            fidelity.ms_ssim(images[:, 1:], images[:, 1:], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"border": "zeros"}, "border must be one of 'valid', 'reflect', 'replicate', got 'zeros'"),
        ({"contrast_border": "zeros"}, "contrast_border must be one of"),
        ({"odd_sides": "keep"}, "'repeat' or 'drop', got 'keep'"),
        ({"channels": "all"}, "'separate' or 'pooled', got 'all'"),
        ({"exponents": ()}, "one or more"),
        ({"exponents": (0.5, -0.5)}, "numbers >= 0"),
        ({"gray": "rgb"}, "'float' or 'uint8', got 'rgb'"),
    ],
)
def test_mistakes_are_named(options, message):
    images = np.zeros((1, 161, 161, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        fidelity.ms_ssim(images, images, **options)
