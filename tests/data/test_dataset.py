"""What a dataset promises: checked columns, RGB images decoded once."""

import io
import threading

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data.dataset import CachedImages, NamedImages, QualityDataset, decode_rgb

COLUMNS = {
    "names": ["a", "b"],
    "mos": [0, 100],
    "mos_raw": [1, 5],
    "mos_std": [np.nan, 1],
    "references": ["a", "b"],
    "distortions": ["", ""],
    "levels": [0, 0],
}


def make(**changes):
    return QualityDataset(name="toy", images=[np.zeros((2, 2, 3), np.uint8)] * 2, **(COLUMNS | changes))


def test_columns_become_read_only_arrays():
    dataset = make()
    assert len(dataset) == 2
    assert dataset.mos.dtype == dataset.mos_raw.dtype == dataset.mos_std.dtype == np.float32
    assert dataset.levels.dtype == np.int32 and dataset.names.dtype.kind == "U"
    with pytest.raises(ValueError):
        dataset.mos[0] = 3


@pytest.mark.parametrize("column", list(COLUMNS))
def test_columns_of_unequal_length(column):
    with pytest.raises(ValueError, match=f"{column}.*2 images"):
        make(**{column: COLUMNS[column][:1]})


def test_names_must_be_unique():
    with pytest.raises(ValueError, match="more than once or are empty: a"):
        make(names=["a", "a"])
    with pytest.raises(ValueError, match="empty"):
        make(names=["a", ""])


@pytest.mark.parametrize("mos", [np.nan, -1, 100.1, np.inf])
def test_mos_must_lie_on_the_scale(mos):
    with pytest.raises(ValueError, match=r"within 0\.\.100, not b: "):
        make(mos=[3, mos])


def test_parts_and_pristine_images_may_be_left_out():
    dataset = make()
    assert dataset.parts.tolist() == ["", ""] and len(dataset.pristine) == 0
    dataset = make(parts=["train", "test"])
    assert dataset.parts.dtype.kind == "U" and not dataset.parts.flags.writeable
    with pytest.raises(ValueError, match="parts must be 'train', 'validation', 'test', '', not 'training'"):
        make(parts=["train", "training"])
    with pytest.raises(ValueError, match="parts.*2 images"):
        make(parts=["train"])


def test_images_by_name_are_decoded_when_asked_for():
    decoded = []

    def decode(index):
        decoded.append(index)
        return np.full((2, 2, 3), index, np.uint8)

    images = NamedImages(["roof", "sea"], CachedImages(decode, 2))
    assert list(images) == ["roof", "sea"] and len(images) == 2 and "sea" in images and "moon" not in images
    assert decoded == []
    assert images["sea"][0, 0, 0] == 1 and decoded == [1]
    assert images.get("moon") is None
    with pytest.raises(KeyError):
        images["moon"]


def encode(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_eight_bit_image_becomes_rgb(mode):
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(colours).convert(mode)
    decoded = decode_rgb(encode(image, format="PNG"))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("options", [{"format": "BMP"}, {"format": "JPEG", "quality": 90}, {"format": "TIFF"}])
def test_formats(options):
    smooth = np.mgrid[0:64:8, 0:64:8, 0:3][0].astype(np.uint8)
    np.testing.assert_allclose(decode_rgb(encode(Image.fromarray(smooth), **options)), smooth, atol=3)


def test_deep_images_are_refused():
    with pytest.raises(ValueError, match="8 bits"):
        decode_rgb(encode(Image.fromarray(np.full((4, 4), 40000, np.uint16)), format="PNG"))


def test_images_are_decoded_once_and_read_only():
    decoded = []

    def decode(index):
        decoded.append(index)
        return np.full((2, 2, 3), index, np.uint8)

    images = CachedImages(decode, 3)
    assert [int(image[0, 0, 0]) for image in images] == [0, 1, 2]
    assert images[-1] is images[2] and images[np.int32(1)] is images[1]
    assert decoded == [0, 1, 2]
    with pytest.raises(IndexError):
        images[3]
    with pytest.raises(ValueError):
        images[0][0, 0, 0] = 9


def test_cache_stops_growing_when_full():
    decoded = []

    def decode(index):
        decoded.append(index)
        return np.full((2, 2, 3), index, np.uint8)

    images = CachedImages(decode, 3, cache_bytes=25)  # two images of 12 bytes
    for _ in range(2):
        assert [int(image[0, 0, 0]) for image in images] == [0, 1, 2]
    assert decoded == [0, 1, 2, 2]


def test_cache_serves_threads():
    images = CachedImages(lambda i: np.full((8, 8, 3), i, np.uint8), 20, cache_bytes=10 * 192)
    wrong = []

    def read():
        for i in np.random.default_rng().integers(0, 20, 500):
            if (images[i] != i).any():
                wrong.append(i)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(image.nbytes for image in images._images.values()) <= 10 * 192
