"""Crops on the devices: exactly the pixels of the host, and the choice between the two."""

import dataclasses
import itertools
import logging
import threading
import time

import jax
import numpy as np
import pytest

from cprl_jax.data import device_images
from cprl_jax.data.crops import pad
from cprl_jax.data.decoded_file import DecodedImages
from cprl_jax.data.pipeline import training_batches
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError

CROP = 16
OPTIONS = {"batch_size": 8, "crop_size": CROP, "seed": 3}
SIZES = [(16, 16), (20, 33), (40, 17), (9, 30), (5, 4), (25, 12), (16, 40)]  # some lower or narrower than a crop


@pytest.fixture
def dataset(make_dataset):
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    return dataclasses.replace(make_dataset(len(SIZES)), images=images)


def first(feed, start_step, count):
    iterator = feed(start_step)
    batches = [jax.tree.map(np.asarray, batch) for batch in itertools.islice(iterator, count)]
    iterator.close()
    return batches


@pytest.mark.parametrize("crop_on", ["host", "device", "auto"])
@pytest.mark.parametrize("start_step", [0, 5])
def test_feed_gives_the_batches_of_the_pipeline(dataset, crop_on, start_step):
    rows = [1, 2, 3, 4, 5, 6]
    feed = device_images.training_feed(dataset, rows, **OPTIONS, crop_on=crop_on, workers=2)
    expected = training_batches(dataset, rows, **OPTIONS)
    for step, batch in enumerate(first(feed, start_step, 4), start=start_step):
        assert batch.keys() == {"image", "mos"}
        assert batch["image"].shape == (2, 4, CROP, CROP, 3) and batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(batch["image"].reshape(8, CROP, CROP, 3), expected[step]["image"])
        np.testing.assert_array_equal(batch["mos"].reshape(8), expected[step]["mos"])
        assert batch["mos"].dtype == np.float32


def test_blocks_of_any_length_store_the_same(dataset, monkeypatch):
    """7 images of 40 x 40 at 2 a block: the last block overlaps the one before."""
    sizes = np.array(SIZES, np.int32)
    whole = device_images.DeviceImages(dataset.images, range(7), sizes, crop_size=CROP)
    monkeypatch.setattr(device_images, "_BLOCK_BYTES", 2 * 3 * 40 * 40)
    blocks = device_images.DeviceImages(dataset.images, range(7), sizes, crop_size=CROP)
    np.testing.assert_array_equal(blocks._pixels, whole._pixels)
    # As `parallel` wants it: it would copy anything else at every step.
    assert blocks._pixels.sharding == whole._pixels.sharding == parallel.replicate(np.zeros(1)).sharding


def test_every_corner_of_every_image_can_be_cut(dataset):
    sizes = np.array(SIZES, np.int32)
    stored = device_images.DeviceImages(dataset.images, [4, 1, 0, 1, 2, 3, 5, 6], sizes, crop_size=CROP)
    places = []
    for row, image in enumerate(dataset.images):
        bottom, right = np.array(pad(image, CROP).shape[:2]) - CROP
        places += [(row, (top, left), flip) for top in (0, bottom) for left in (0, right) for flip in (False, True)]
    rows, offsets, flips = (np.array(column) for column in zip(*places, strict=True))
    crops = parallel.unshard(stored.cut(*parallel.shard((rows, offsets.astype(np.int32), flips))))
    for crop, (row, (top, left), flip) in zip(crops, places, strict=True):
        expected = pad(dataset.images[row], CROP)[top : top + CROP, left : left + CROP]
        np.testing.assert_array_equal(crop, expected[:, ::-1] if flip else expected)


def test_images_of_a_decoded_file(dataset, tmp_path):
    images = DecodedImages(lambda i: dataset.images[i], len(SIZES), path=tmp_path / "pixels")
    stored = dataclasses.replace(dataset, images=images)
    expected = training_batches(dataset, range(7), **OPTIONS)[0]["image"]
    for crop_on in ("host", "device"):
        feed = device_images.training_feed(stored, range(7), **OPTIONS, crop_on=crop_on)
        np.testing.assert_array_equal(first(feed, 0, 1)[0]["image"].reshape(expected.shape), expected)


def pretend(monkeypatch, *, backend="gpu", memory=None):
    monkeypatch.setattr(device_images.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(device_images, "_device_memory", lambda: memory)


def stores(dataset, monkeypatch, **options) -> bool:
    """Whether the feed would cut crops on the devices, without sending them anything."""
    made = []
    monkeypatch.setattr(device_images, "DeviceImages", lambda *_, **__: made.append(1) or _Nothing())
    device_images.training_feed(dataset, range(7), **OPTIONS, **options)
    return bool(made)


class _Nothing:
    sizes = np.array(SIZES)


PADDED = 7 * 40 * 40 * 3


@pytest.mark.parametrize(
    "backend, memory, crop_on, expected",
    [
        ("cpu", 10**12, "auto", False),
        ("gpu", 10**12, "auto", True),
        ("gpu", 10**12, "host", False),
        ("gpu", PADDED / device_images.DEVICE_SHARE + 10, "auto", True),
        ("gpu", PADDED / device_images.DEVICE_SHARE - 10, "auto", False),
        ("gpu", None, "auto", False),
        ("gpu", PADDED, "device", True),
        ("cpu", None, "device", True),
    ],
)
def test_where_crops_are_cut(dataset, monkeypatch, backend, memory, crop_on, expected):
    pretend(monkeypatch, backend=backend, memory=memory)
    assert stores(dataset, monkeypatch, crop_on=crop_on) == expected


def test_one_huge_image_does_not_pad_all_of_them(dataset, monkeypatch, caplog):
    images = list(dataset.images)
    images[0] = np.broadcast_to(np.uint8(0), (4000, 3000, 3))
    read = []

    class Images:
        def __len__(self):
            return len(images)

        def __getitem__(self, row):
            read.append(row)
            return images[row]

    pretend(monkeypatch, memory=10 * PADDED)
    with caplog.at_level(logging.INFO, logger="absl"):
        assert not stores(dataclasses.replace(dataset, images=Images()), monkeypatch)
    assert "cut on the host" in caplog.text and "40 %" in caplog.text
    assert 0 in read


def test_refuses_images_that_the_device_cannot_hold(dataset, monkeypatch):
    pretend(monkeypatch, memory=PADDED - 1)
    with pytest.raises(UserError, match="'device', but .* GiB.*'auto' or 'host'"):
        device_images.training_feed(dataset, range(7), **OPTIONS, crop_on="device")


def test_refuses_another_place(dataset):
    with pytest.raises(UserError, match="'gpu'; allowed: auto, host, device"):
        device_images.training_feed(dataset, range(7), **OPTIONS, crop_on="gpu")


def test_memory_of_a_cpu_is_unknown():
    assert device_images._device_memory() is None


@pytest.mark.parametrize("crop_on", ["host", "device"])
def test_training_step_takes_the_batches_and_is_compiled_once(dataset, crop_on):
    traces = []

    def step(state, batch):
        traces.append(1)
        return state + 1, {"sum": jax.lax.psum(batch["image"].astype(np.int32).sum(), parallel.AXIS)}

    mapped, state = parallel.map_step(step), parallel.replicate(np.int32(0))
    iterator = device_images.training_feed(dataset, range(7), **OPTIONS, crop_on=crop_on)(0)
    expected = training_batches(dataset, range(7), **OPTIONS)
    for number in range(3):
        state, metrics = mapped(state, next(iterator))
        assert int(metrics["sum"]) == expected[number]["image"].astype(np.int32).sum()
    iterator.close()
    assert len(traces) == 1


def test_threads_end_with_the_loop(dataset):
    before = threading.active_count()
    for _ in device_images.training_feed(dataset, range(7), **OPTIONS, crop_on="host", workers=4)(0):
        break
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
