import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from cprl_jax import fidelity


def pairs(height=15, width=18, seed=0):
    """Noise on noise, on a ramp, on a flat image, and no change, once of noise and once of a flat image."""
    rng = np.random.default_rng(seed)
    references = rng.random((5, height, width, 3))
    references[1] = np.linspace(0, 1, width).reshape(1, width, 1)
    references[2], references[4] = 0.4, 0.7
    images = np.clip(references + 0.1 * rng.normal(size=references.shape), 0, 1)
    images[3:] = references[3:]
    return images.astype(np.float32), references.astype(np.float32)


def literal(image, reference):
    """Xue et al., Eqs. 1-6, in float64 by SciPy, for one RGB image of even sides."""
    magnitudes = []
    for rgb in (image, reference):
        gray = rgb.astype(np.float64) @ [0.299, 0.587, 0.114]
        half = gray.reshape(gray.shape[0] // 2, 2, gray.shape[1] // 2, 2).mean((1, 3))
        prewitt = np.array([[1, 0, -1]] * 3) / 3
        across, down = (ndimage.correlate(half, kernel, mode="constant") for kernel in (prewitt, prewitt.T))
        magnitudes.append(np.hypot(across, down))
    constant = 170 / 255**2
    similarity = (2 * magnitudes[0] * magnitudes[1] + constant) / (magnitudes[0] ** 2 + magnitudes[1] ** 2 + constant)
    return similarity.std()


def test_equals_the_literal_formula():
    images, references = pairs(14, 18)
    expected = [literal(*pair) for pair in zip(images, references, strict=True)]
    np.testing.assert_allclose(fidelity.gmsd(images, references), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(fidelity.gmsd)(images, references), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "published"),
    [((400, 400), 0.06989555809906534), ((203, 236), 0.07775176688531799), ((301, 187), 0.07586776739856457)],
)
def test_values_of_piq(size, published):
    """Computed once in float64 by piq 0.8.0: a photograph against eight levels of itself."""
    photograph = (data.astronaut()[None, : size[0], : size[1]] / 255).astype(np.float32)
    np.testing.assert_allclose(fidelity.gmsd(np.floor(8 * photograph) / 8, photograph), [published], atol=2e-6)


@pytest.mark.parametrize("channels", [3, 1])
def test_equals_piq(channels):
    torch, piq = pytest.importorskip("torch"), pytest.importorskip("piq")
    images, references = (values[..., :channels] for values in pairs())
    pair = [torch.tensor(values.transpose(0, 3, 1, 2)) for values in (images, references)]
    expected = piq.gmsd(*pair, reduction="none")
    np.testing.assert_allclose(fidelity.gmsd(images, references), expected.numpy(), atol=1e-5)


def test_equal_images_have_exactly_zero_and_order_does_not_matter():
    images, references = pairs()
    np.testing.assert_array_equal(fidelity.gmsd(images, images), np.zeros(5))
    np.testing.assert_allclose(fidelity.gmsd(images, references), fidelity.gmsd(references, images), atol=1e-7)


def test_images_of_a_batch_do_not_influence_each_other():
    images, references = pairs()
    alone = [fidelity.gmsd(images[i : i + 1], references[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(fidelity.gmsd(images, references), alone, atol=1e-7)


def test_gradients_are_finite_on_flat_images_and_zero_at_the_reference():
    images, references = pairs()

    def total(images):
        return jnp.sum(fidelity.gmsd(images, references))

    gradient = np.asarray(jax.grad(total)(images))
    assert np.all(np.isfinite(gradient)) and np.all(np.abs(gradient[:3]).max(axis=(1, 2, 3)) > 0)
    np.testing.assert_array_equal(jax.grad(total)(references), np.zeros_like(references))
    flat = jax.grad(lambda x: jnp.sum(fidelity.gmsd(x, references)))(np.full_like(references, 0.5))
    assert np.all(np.isfinite(flat))


def test_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        images, references = (jnp.asarray(values[:3].astype(np.float64)) for values in pairs())
        along = np.random.default_rng(2).normal(size=images.shape)

        @jax.jit
        def total(x):
            return jnp.sum(fidelity.gmsd(x, references))

        numeric = (total(images + 1e-6 * along) - total(images - 1e-6 * along)) / 2e-6
        np.testing.assert_allclose(jnp.sum(jax.grad(total)(images) * along), numeric, rtol=1e-5)
        assert total(images).dtype == jnp.float64


def test_vmap_and_half_precision():
    images, references = pairs()
    mapped = jax.vmap(fidelity.gmsd, in_axes=(0, None))(np.stack([images, references]), references)
    np.testing.assert_allclose(mapped[0], fidelity.gmsd(images, references), atol=1e-7)
    np.testing.assert_array_equal(mapped[1], np.zeros(5))
    assert fidelity.gmsd(jnp.asarray(images, jnp.bfloat16), references).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (4, 4), (3, 3), (5, 40), (40, 5)])
def test_images_that_are_too_small_and_mistakes(shape):
    pixels = np.full((1, *shape, 3), 0.5, np.float32)
    with pytest.raises(ValueError, match=rf"at least 6 pixels on each side, got {shape[0]}x{shape[1]}"):
        fidelity.gmsd(pixels, pixels)
    with pytest.raises(ValueError, match=r"3 channels \(RGB\) or 1 channel, got 2"):
        fidelity.gmsd(pixels[..., :2], pixels[..., :2])
