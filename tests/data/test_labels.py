"""The full-reference rule: its parts against other implementations, and what it promises."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from cprl_jax.data import labels, scenes


@pytest.fixture(scope="module")
def reference():
    return scenes.make_views("coffee", seed=0, image_size=64)[0].image


@pytest.fixture(scope="module")
def versions(reference):
    """The picture itself, two noisy ones, its negative, a constant."""
    noise = np.random.default_rng(0).normal(size=reference.shape)
    noisy = [np.clip(reference + sigma * noise, 0, 255).astype(np.uint8) for sigma in (8, 30)]
    return np.stack([reference, *noisy, 255 - reference, np.full_like(reference, 128)])


def test_ssim_map_against_scikit_image(versions):
    planes = versions[..., 1].astype(np.float64)
    ours, _ = labels.ssim_map(planes, planes[:1])
    for plane, similarity in zip(planes, ours, strict=True):
        _, theirs = structural_similarity(
            planes[0],
            plane,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            K2=0.06,
            full=True,
        )
        np.testing.assert_allclose(similarity, theirs, atol=1e-6)


def literal_gradient_deviation(image, reference):
    """GMSD at all positions of the half-resolution grid, pixel by pixel."""

    def magnitude(plane):
        height, width = plane.shape[0] - 1, plane.shape[1] - 1
        mean = np.array([[plane[y : y + 2, x : x + 2].mean() for x in range(width)] for y in range(height)])
        padded = np.pad(mean, 2, mode="edge")
        result = np.zeros_like(mean)
        for y in range(height):
            for x in range(width):
                patch = padded[y : y + 5 : 2, x : x + 5 : 2]
                down, across = (patch[2] - patch[0]).sum() / 3, (patch[:, 2] - patch[:, 0]).sum() / 3
                result[y, x] = np.hypot(down, across)
        return result

    one, other = magnitude(image), magnitude(reference)
    return np.std((2 * one * other + 170) / (one**2 + other**2 + 170))


def test_gradient_deviation_literally():
    planes = np.random.default_rng(1).uniform(0, 255, (2, 18, 21))
    ours = labels.gradient_deviation(planes, planes[:1])
    np.testing.assert_allclose(ours, [0, literal_gradient_deviation(planes[1], planes[0])], atol=1e-12)


def test_distance_is_the_sum_of_its_parts(versions):
    image, original = versions[1:2], versions[0]
    y_image, y_original = labels.luma(image.astype(np.float64)), labels.luma(original[None].astype(np.float64))
    edges = labels.gradient_deviation(y_image, y_original)
    similarity, activity = labels.ssim_map(y_image, y_original)
    structure = 1 - np.average(similarity[0], weights=np.sqrt(activity[0] + 100))

    def chroma(picture):
        pixels = picture.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        y = pixels @ [0.299, 0.587, 0.114]
        return np.stack([0.713 * (pixels[..., 0] - y), 0.564 * (pixels[..., 2] - y)])

    colour = np.mean(1 - labels.ssim_map(chroma(image[0]), chroma(original))[0])
    np.testing.assert_allclose(labels.distance(image, original), structure + 1.5 * edges + 0.5 * colour, rtol=1e-9)


def test_quality_of_distance(versions):
    distance, quality = labels.distance(versions, versions[0]), labels.quality(versions, versions[0])
    assert quality.dtype == np.float32 and quality.shape == (5,)
    assert distance[0] == 0 and quality[0] == 100
    np.testing.assert_allclose(quality, 100 / (1 + (distance / 0.36) ** 2), rtol=1e-6)
    assert np.all((quality >= 0) & (quality <= 100)) and np.all(quality[3:] < 15)
    assert quality[0] > quality[1] > quality[2]


def test_symmetric_and_independent_of_the_batch(versions):
    together = labels.distance(versions, versions[0])
    for index, version in enumerate(versions):
        assert labels.distance(version[None], versions[0])[0] == together[index]
        np.testing.assert_allclose(labels.distance(versions[:1], version)[0], together[index], atol=1e-9)


@pytest.mark.parametrize("scene", ["coffee", "hubble", "leaves-01", "text-01", "shapes-01"])
def test_what_cannot_be_seen_costs_nothing(scene):
    picture = scenes.make_views(scene, seed=0, image_size=64)[0].image.astype(np.int64)
    signs = np.random.default_rng(2).choice([-2, 2], (3, *picture.shape))
    signs[1] = 2  # brighter
    signs[2] = np.where(np.indices(picture.shape).sum(axis=0) // 4 % 2, 2, -2)  # stripes
    changed = np.clip(picture + signs, 0, 255).astype(np.uint8)
    assert labels.quality(changed, picture.astype(np.uint8)).min() > 99


def test_flat_and_small_images():
    flat = np.full((1, 16, 17, 3), 90, np.uint8)
    assert labels.quality(flat, flat[0])[0] == 100
    assert np.isfinite(labels.quality(flat, np.zeros((16, 17, 3), np.uint8))).all()


@pytest.mark.parametrize(
    ("images", "reference", "message"),
    [
        (np.zeros((1, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8), "allowed is uint8"),
        (np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8), r"\[batch, height, width, 3\]"),
        (np.zeros((1, 32, 32, 3), np.uint8), np.zeros((32, 33, 3), np.uint8), r"\[batch, height, width, 3\]"),
        (np.zeros((1, 32, 32, 1), np.uint8), np.zeros((32, 32, 1), np.uint8), r"\[batch, height, width, 3\]"),
        (np.zeros((1, 15, 32, 3), np.uint8), np.zeros((15, 32, 3), np.uint8), "16 pixels"),
    ],
)
def test_refusals(images, reference, message):
    with pytest.raises(ValueError, match=message):
        labels.distance(images, reference)
