"""Codecs: sizes and formats."""

import io

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data import scenes
from cprl_jax.data.distortions import compression


@pytest.fixture(scope="module")
def image():
    return scenes.make_views("coffee", seed=0, image_size=128)[0].image


def test_jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=24, subsampling=2)
    np.testing.assert_array_equal(compression.jpeg(image.astype(float), 24, 0), np.asarray(Image.open(file)))


@pytest.mark.parametrize("ratio", [16, 120])
def test_jpeg2000_reaches_its_ratio(image, ratio, monkeypatch):
    sizes = []
    save = Image.Image.save

    def counted(self, file, *arguments, **options):
        save(self, file, *arguments, **options)
        sizes.append(len(file.getvalue()))

    monkeypatch.setattr(Image.Image, "save", counted)
    compression.jpeg2000(image.astype(float), ratio, 0)
    assert 0.7 * image.size / ratio < sizes[0] <= 1.05 * image.size / ratio


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (31, 200)])
@pytest.mark.parametrize("ratio", [16, 400])
def test_jpeg2000_of_small_images(image, shape, ratio):
    small = np.resize(image, (*shape, 3))
    assert compression.jpeg2000(small.astype(float), ratio, 0).shape == small.shape
    flat = np.full((*shape, 3), 90.0)
    assert np.abs(compression.jpeg2000(flat, 16, 0).astype(float) - 90).max() <= 2
