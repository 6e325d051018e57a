"""Crops: fixed by seed and size of image, cut from the right place."""

import numpy as np
import pytest

from cprl_jax.data import crops as crops_lib
from cprl_jax.data.crops import Crops
from cprl_jax.runtime.errors import UserError


def places(crops):
    """(top, left) of every crop of images of `make_dataset`, whose pixels tell image, row and column."""
    return crops[:][:, :, 0, 0, 1:]


def test_crops_are_pieces_of_their_images(make_dataset):
    crops = Crops(make_dataset(5, size=(40, 50)), [4, 1], crops=6, crop_size=16, seed=0)
    assert crops.shape == (2, 6, 16, 16, 3) and len(crops) == 2
    cut = crops[:]
    assert cut.shape == crops.shape and cut.dtype == np.uint8
    for i, row in enumerate([4, 1]):
        for j in range(6):
            top, left = places(crops)[i, j]
            assert (cut[i, j, ..., 0] == row).all()
            np.testing.assert_array_equal(cut[i, j, :, 0, 1], np.arange(top, top + 16))
            np.testing.assert_array_equal(cut[i, j, 0, :, 2], np.arange(left, left + 16))


def test_crops_of_an_image_depend_on_seed_and_size_alone(make_dataset):
    dataset = make_dataset(6)
    all_crops = places(Crops(dataset, range(6), crops=8, crop_size=16, seed=3))
    some = places(Crops(dataset, [5, 2], crops=3, crop_size=16, seed=3))
    np.testing.assert_array_equal(some, all_crops[[5, 2], :3])
    np.testing.assert_array_equal(all_crops, np.broadcast_to(all_crops[:1], all_crops.shape))
    for other in (
        Crops(dataset, range(6), crops=8, crop_size=16, seed=4),
        Crops(make_dataset(6, size=(40, 90)), range(6), crops=8, crop_size=16, seed=3),
    ):
        assert (places(other) != all_crops).any()


def test_places_are_the_same_on_every_machine(make_dataset):
    crops = Crops(make_dataset(2), [0, 1], crops=2, crop_size=16, seed=0)
    assert places(crops).tolist() == 2 * [[[15, 9], [9, 29]]]


def test_places_cover_the_whole_image_evenly(make_dataset):
    many = places(Crops(make_dataset(3, size=(18, 16)), [0, 1, 2], crops=3000, crop_size=16, seed=0))
    assert set(many[..., 1].ravel()) == {0}
    np.testing.assert_allclose(np.bincount(many[..., 0].ravel()), 3000, rtol=0.01)
    for seed in range(20):  # a few crops as well: in every third of both axes lies a fourth of them at least
        (few,) = places(Crops(make_dataset(1, size=(216, 216)), [0], crops=25, crop_size=16, seed=seed))
        for axis in range(2):
            assert np.bincount(few[:, axis].astype(int) * 3 // 201, minlength=3).min() >= 25 // 4


def test_crops_are_indexed_like_the_array_of_all(make_dataset):
    crops = Crops(make_dataset(5, size=(40, 50)), [4, 1, 2], crops=4, crop_size=16, seed=0)
    everything = crops[:]
    for rows in (slice(None), [2, 0, 2], np.array([1]), 1, -1, []):
        np.testing.assert_array_equal(crops[rows], everything[rows])
    with pytest.raises(IndexError):
        crops[3]


def test_the_stamp_is_that_of_the_pixels(make_dataset):
    def stamp(rows=(0, 1), size=(20, 20), crops=2, crop_size=16, seed=0, rename=False, change=False):
        dataset = make_dataset(3, size=size)
        if change:
            dataset.images[rows[1]][0, 0, 0] ^= 1
        if rename:
            object.__setattr__(dataset, "names", np.array(["a", "b", "c"]))
        return Crops(dataset, rows, crops=crops, crop_size=crop_size, seed=seed).stamp

    assert stamp() == stamp() == stamp(rename=True)
    others = [stamp(rows=(0, 2)), stamp(crops=1), stamp(crop_size=15), stamp(seed=1), stamp(change=True)]
    assert len({stamp(), *others}) == 6


def test_image_as_large_as_the_crop(make_dataset):
    dataset = make_dataset(1, size=(16, 16))
    crops = Crops(dataset, [0], crops=3, crop_size=16, seed=0)
    np.testing.assert_array_equal(crops[0], np.stack([dataset.images[0]] * 3))


@pytest.mark.parametrize("size", [(15, 40), (10, 9), (5, 3), (1, 1), (1, 30)])
def test_small_images_are_mirrored(make_dataset, size):
    dataset = make_dataset(1, size=size)
    padded = crops_lib.pad(dataset.images[0], 16)
    assert padded.shape == (max(size[0], 16), max(size[1], 16), 3)
    for axis in (0, 1):
        length, missing = size[axis], max(16 - size[axis], 0)
        # Independent of NumPy's padding: walk to and fro between the first and the last pixel.
        period = max(2 * (length - 1), 1)
        walk = [
            abs((p + length - 1) % period - (length - 1)) if length > 1 else 0
            for p in range(-(missing // 2), length + missing - missing // 2)
        ]
        found = padded[:, 0, 1] if axis == 0 else padded[0, :, 2]
        np.testing.assert_array_equal(found, walk)
    assert Crops(dataset, [0], crops=4, crop_size=16, seed=0)[:].shape == (1, 4, 16, 16, 3)


def test_large_images_are_not_copied(make_dataset):
    image = make_dataset(1).images[0]
    assert crops_lib.pad(image, 16) is image


def test_place_stays_inside():
    offsets = crops_lib.place(np.array([[0.0, 0.0], [1 - 2**-53, 1 - 2**-53]]), (32, 48, 3), 16)
    assert offsets.tolist() == [[0, 0], [16, 32]]


@pytest.mark.parametrize("option", ["crops", "crop_size", "seed"])
def test_options_out_of_range(make_dataset, option):
    with pytest.raises(UserError, match=f"{option}=-1"):
        Crops(make_dataset(1), [0], **({"crops": 2, "crop_size": 16, "seed": 0} | {option: -1}))


@pytest.mark.parametrize(("height", "width"), [(40, 50), (16, 16), (16, 30), (7, 40), (1, 1)])
def test_crops_as_numbers_of_pixels(make_dataset, height, width):
    dataset = make_dataset(1, size=(height, width))
    numbers, counts = crops_lib.pixels(crops_lib.points(9, seed=3), (height, width), 16)
    found = dataset.images[0].reshape(-1, 3)[numbers]
    cut = Crops(dataset, [0], crops=9, crop_size=16, seed=3)[0]
    expected, repeated = np.unique(cut.reshape(9, -1), axis=0, return_counts=True)
    order = np.lexsort(found.reshape(len(found), -1).T[::-1])
    np.testing.assert_array_equal(found.reshape(len(found), -1)[order], expected)
    np.testing.assert_array_equal(counts[order], repeated)
