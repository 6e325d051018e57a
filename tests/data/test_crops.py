"""Crops: fixed by seed and size of image, kept in a file, cut from the right place."""

import json

import numpy as np
import pytest

from cprl_jax.data import crops as crops_lib
from cprl_jax.runtime.errors import UserError


def test_crops_show_what_their_offsets_say(make_dataset):
    dataset = make_dataset(5, size=(40, 50))
    crops = crops_lib.draw_crops(dataset, [4, 1], crops=6, crop_size=16, seed=0)
    assert crops.names == ("image004.png", "image001.png")
    assert crops.offsets.shape == (2, 6, 2) and crops.offsets.dtype == np.int32
    cut = crops_lib.extract(crops, dataset, 4)
    assert cut.shape == (2, 4, 16, 16, 3) and cut.dtype == np.uint8
    for i, row in enumerate([4, 1]):
        for j in range(4):
            top, left = crops.offsets[i, j]
            assert (cut[i, j, ..., 0] == row).all()  # the pixels of `make_dataset` tell image, row and column
            np.testing.assert_array_equal(cut[i, j, :, 0, 1], np.arange(top, top + 16))
            np.testing.assert_array_equal(cut[i, j, 0, :, 2], np.arange(left, left + 16))


def test_crops_of_an_image_depend_on_seed_and_size_alone(make_dataset):
    dataset = make_dataset(6)
    all_crops = crops_lib.draw_crops(dataset, range(6), crops=8, crop_size=16, seed=3)
    some = crops_lib.draw_crops(dataset, [5, 2], crops=3, crop_size=16, seed=3)
    np.testing.assert_array_equal(some.offsets, all_crops.offsets[[5, 2], :3])
    np.testing.assert_array_equal(all_crops.offsets, np.broadcast_to(all_crops.offsets[:1], all_crops.offsets.shape))
    for other in (
        crops_lib.draw_crops(dataset, range(6), crops=8, crop_size=16, seed=4),
        crops_lib.draw_crops(make_dataset(6, size=(40, 90)), range(6), crops=8, crop_size=16, seed=3),
    ):
        assert (other.offsets != all_crops.offsets).any()


def test_places_are_the_same_on_every_machine(make_dataset):
    crops = crops_lib.draw_crops(make_dataset(2), [0, 1], crops=2, crop_size=16, seed=0)
    assert crops.offsets.tolist() == 2 * [GOLDEN]


GOLDEN = [[15, 9], [9, 29]]


def test_places_cover_the_whole_image_evenly(make_dataset):
    crops = crops_lib.draw_crops(make_dataset(3, size=(18, 16)), [0, 1, 2], crops=3000, crop_size=16, seed=0)
    assert set(crops.offsets[..., 1].ravel()) == {0}
    counts = np.bincount(crops.offsets[..., 0].ravel())
    np.testing.assert_allclose(counts, 3000, rtol=0.01)
    for seed in range(20):  # a few crops as well: in every third of both axes lies a fourth of them at least
        (few,) = crops_lib.draw_crops(make_dataset(1, size=(316, 316)), [0], crops=25, crop_size=16, seed=seed).offsets
        for axis in range(2):
            assert np.bincount(few[:, axis] * 3 // 301, minlength=3).min() >= 25 // 4


def test_lazy_crops_are_indexed_like_the_array_of_all(make_dataset):
    dataset = make_dataset(5, size=(40, 50))
    crops = crops_lib.draw_crops(dataset, [4, 1, 2], crops=6, crop_size=16, seed=0)
    everything = crops_lib.extract(crops, dataset, 4)
    lazy = crops_lib.LazyCrops(crops, dataset, 4)
    assert lazy.shape == everything.shape and len(lazy) == 3
    for rows in (slice(None), [2, 0, 2], np.array([1]), 1, -1, []):
        np.testing.assert_array_equal(lazy[rows], everything[rows])


def test_the_stamp_of_lazy_crops_is_that_of_their_pixels(make_dataset):
    def stamp(rows=(0, 1), size=(20, 20), count=2, crop_size=16, seed=0, rename=False, change=False):
        dataset = make_dataset(3, size=size)
        if change:
            dataset.images[rows[1]][0, 0, 0] ^= 1
        if rename:
            object.__setattr__(dataset, "names", np.array(["a", "b", "c"]))
        drawn = crops_lib.draw_crops(dataset, rows, crops=count + 1, crop_size=crop_size, seed=seed)
        return crops_lib.LazyCrops(drawn, dataset, count).stamp

    assert stamp() == stamp() == stamp(rename=True)
    others = [stamp(rows=(0, 2)), stamp(count=1), stamp(crop_size=15), stamp(seed=1), stamp(change=True)]
    assert len({stamp(), *others}) == 6


def test_image_as_large_as_the_crop(make_dataset):
    dataset = make_dataset(1, size=(16, 16))
    crops = crops_lib.draw_crops(dataset, [0], crops=3, crop_size=16, seed=0)
    np.testing.assert_array_equal(crops_lib.extract(crops, dataset, 3)[0], np.stack([dataset.images[0]] * 3))


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
    crops = crops_lib.draw_crops(dataset, [0], crops=4, crop_size=16, seed=0)
    assert crops_lib.extract(crops, dataset, 4).shape == (1, 4, 16, 16, 3)


def test_large_images_are_not_copied(make_dataset):
    image = make_dataset(1).images[0]
    assert crops_lib.pad(image, 16) is image


def test_place_stays_inside():
    offsets = crops_lib.place(np.array([[0.0, 0.0], [1 - 2**-53, 1 - 2**-53]]), (32, 48, 3), 16)
    assert offsets.tolist() == [[0, 0], [16, 32]]


def test_saved_crops_read_back(make_dataset, tmp_path):
    dataset = make_dataset(3)
    crops = crops_lib.draw_crops(dataset, [2, 0], crops=5, crop_size=16, seed=0)
    path = tmp_path / "run" / "crops.json"
    crops_lib.save_crops(crops, path)
    loaded = crops_lib.load_crops(path)
    assert loaded.names == crops.names and loaded.crop_size == 16
    np.testing.assert_array_equal(loaded.offsets, crops.offsets)
    assert loaded.offsets.dtype == np.int32
    assert list(path.parent.iterdir()) == [path]
    content = json.loads(path.read_text())
    assert content["top_left"]["image002.png"] == crops.offsets[0].tolist()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"crop_size": 16}',
        '{"crop_size": 16, "top_left": {}}',
        '{"crop_size": 16, "top_left": {"a": [[0, 0]], "b": [[0, 0], [1, 1]]}}',
        '{"crop_size": 16, "top_left": {"a": [[0, 0, 0]]}}',
        '{"crop_size": 16, "top_left": {"a": [[0, -1]]}}',
        '{"crop_size": 0, "top_left": {"a": [[0, 1]]}}',
        '{"crop_size": 16, "top_left": {"a": [[0, "x"]]}}',
        '{"crop_size": 16, "top_left": {"a": [[0, 1e99]]}}',
        '{"crop_size": 16, "top_left": [1]}',
    ],
)
def test_damaged_file(tmp_path, content):
    path = tmp_path / "crops.json"
    path.write_text(content)
    with pytest.raises(UserError, match="crops file .*crops.json is damaged"):
        crops_lib.load_crops(path)


def test_absent_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        crops_lib.load_crops(tmp_path / "crops.json")


def test_crops_of_other_images_are_refused(make_dataset):
    crops = crops_lib.draw_crops(make_dataset(3), [2, 0], crops=5, crop_size=16, seed=0)
    with pytest.raises(UserError, match="image002.png"):
        crops_lib.extract(crops, make_dataset(1), 5)
    with pytest.raises(UserError, match="reaches outside"):
        crops_lib.extract(crops, make_dataset(3, size=(16, 16)), 5)
    with pytest.raises(UserError, match="count=6.*1 to 5"):
        crops_lib.extract(crops, make_dataset(3), 6)


@pytest.mark.parametrize("option", ["crops", "crop_size", "seed"])
def test_options_out_of_range(make_dataset, option):
    with pytest.raises(UserError, match=f"{option}=-1"):
        crops_lib.draw_crops(make_dataset(1), [0], **({"crops": 2, "crop_size": 16, "seed": 0} | {option: -1}))
