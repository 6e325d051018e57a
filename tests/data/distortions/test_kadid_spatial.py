"""Pixels in wrong places."""

import numpy as np
import pytest

from cprl_jax.data.distortions import kadid_spatial


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(0, 255, (60, 70, 3))


def test_bicubic_interpolation_of_cubics():
    """Keys's interpolation is exact for parabolas away from the edges, and at pixels themselves everywhere."""
    rows, columns = np.mgrid[:12, :15].astype(float)
    surface = np.stack([rows**2 - 3 * columns, rows * columns, columns**2 + rows], axis=-1)
    places = np.stack([rows, columns], axis=-1)
    np.testing.assert_allclose(kadid_spatial._bicubic(surface, places), surface)
    inner = np.stack([rows.clip(3, 8) + 0.3, columns.clip(3, 11) - 0.4], axis=-1)
    r, c = inner[..., 0], inner[..., 1]
    expected = np.stack([r**2 - 3 * c, r * c, c**2 + r], axis=-1)
    np.testing.assert_allclose(kadid_spatial._bicubic(surface, inner), expected)


def test_bicubic_interpolation_beyond_the_edges(image):
    places = np.full((60, 70, 2), -7.3)
    np.testing.assert_allclose(kadid_spatial._bicubic(image, places), np.broadcast_to(image[0, 0], image.shape))
    np.testing.assert_allclose(kadid_spatial._bicubic(image, 200 - places)[0, 0], image[-1, -1])


def test_jitter_displaces_by_its_amount():
    """On a slope, five displacements add up to sqrt(5) times the amount."""
    slope = np.repeat(np.mgrid[:128, :128][0][..., None], 3, axis=-1).astype(float)
    moved = (kadid_spatial.jitter(slope, 0.2, 0) - slope)[8:-8, 8:-8, 0]
    assert abs(moved.mean()) < 0.02
    # Later steps interpolate between values already displaced, which averages a part of it away.
    assert 0.7 * 0.2 * np.sqrt(5) < moved.std() <= 1.02 * 0.2 * np.sqrt(5)


@pytest.mark.parametrize("shape", [(60, 70), (16, 40), (17, 16)])
def test_patches_are_copies_from_nearby(shape, image):
    height, width = shape
    picture = np.arange(height * width * 3, dtype=float).reshape(height, width, 3)
    result = kadid_spatial.non_eccentricity_patch(picture, 1, 3)
    side = min(16, min(shape) // 3)
    changed = np.argwhere((result != picture).any(axis=-1))
    assert len(changed) == side * side
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    assert bottom - top == right - left == side - 1
    source_row, source_column = divmod(int(result[top, left, 0]) // 3, width)
    assert max(abs(source_row - top), abs(source_column - left)) <= side // 2
    np.testing.assert_array_equal(
        result[top : bottom + 1, left : right + 1],
        picture[source_row : source_row + side, source_column : source_column + side],
    )


def test_more_patches_start_with_the_same(image):
    few, many = (kadid_spatial.non_eccentricity_patch(image, count, 0) for count in (2, 40))
    assert (few != image).mean() < (many != image).mean()
    blocks_few, blocks_many = (kadid_spatial.color_block(image, count, 0) for count in (1, 2))
    changed = (blocks_few != image).any(axis=-1)
    assert 0 < changed.sum() < (blocks_many != image).any(axis=-1).sum()


@pytest.mark.parametrize(("shape", "side"), [((70, 90), 32), ((16, 40), 8)])
def test_color_blocks(shape, side):
    picture = np.full((*shape, 3), -1.0)
    result = kadid_spatial.color_block(picture, 1, 0)
    changed = np.argwhere((result != picture).any(axis=-1))
    assert len(changed) == side**2 and np.all(np.ptp(changed, axis=0) == side - 1)
    assert len(np.unique(result[result[..., 0] >= 0], axis=0)) == 1
    assert result.max() <= 255


@pytest.mark.parametrize(("strength", "scale"), [(0.5, 0.29025), (0.05, 0.78428)])
def test_pixelate(strength, scale, image):
    result = kadid_spatial.pixelate(image, strength, 0)
    for axis, side in enumerate(image.shape[:2]):
        lines = np.moveaxis(result, axis, 0).reshape(side, -1)
        assert len(np.unique(lines, axis=0)) == np.ceil(scale * side)
    assert np.isin(result, image).all()
