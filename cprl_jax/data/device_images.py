"""Training images in the memory of the devices, where the crops are cut, and the choice between there and the host.

A host of few cores that feeds a fast accelerator is what training waits for. The images of most quality sets fit into
an accelerator's memory in 8 bits: they are sent there once, and a step then only sends where its crops lie.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import lax
from jaxtyping import Array, Bool, Int32, UInt8
from tqdm import tqdm

from cprl_jax.data.crops import pad
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.pipeline import prefetch, training_batches, training_plans
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError

DEVICE_SHARE = 0.4
"""The part of a device's memory that training images may take unless crops are asked for there."""

_BLOCK_BYTES = 2**28  # sent to the devices at once


def training_feed(
    dataset: QualityDataset,
    rows: Sequence[int],
    *,
    batch_size: int,
    crop_size: int,
    seed: int,
    crop_on: str = "auto",
    workers: int = 0,
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """The batches of `pipeline.training_batches` for the devices of this process, wherever the crops are cut.

    With `crop_on='auto'` they are cut on the devices if these are accelerators and `rows`, padded to one shape, take
    at most `DEVICE_SHARE` of a device's memory; otherwise on the host, by threads. The pixels are the same. Every
    device of every process gets all images, because an epoch's order gives any of them to any device.

    Args:
      dataset, rows, batch_size, crop_size, seed: as for `training_batches`; batch_size counts all processes.
      crop_on: 'auto', 'host' or 'device' (config.train.crop_on).
      workers: threads that make batches on the host, 0 = one per core (config.train.workers).

    Returns:
      `feed(start_step)`: an endless iterator over the batches of steps start_step, start_step + 1, ..., divided as by
      `parallel.shard`: `{'image': uint8 [devices, b, crop_size, crop_size, 3], 'mos': float32 [devices, b]}`.

    Raises:
      UserError: as `training_batches`, another `crop_on`, or 'device' with images that the devices cannot hold.
    """
    if crop_on not in ("auto", "host", "device"):
        raise UserError(f"config.train.crop_on is {crop_on!r}; allowed: auto, host, device")
    options = {
        "batch_size": batch_size,
        "crop_size": crop_size,
        "seed": seed,
        "process_index": parallel.process_index(),
        "process_count": parallel.process_count(),
    }
    batches = training_batches(dataset, rows, **options)  # checks the options, too
    stored = None
    if crop_on != "host":
        stored = _store(dataset.images, rows, crop_size=crop_size, demanded=crop_on == "device")

    if stored is None:

        def prepare(batch):
            return parallel.shard({"image": batch["image"], "mos": batch["mos"]})
    else:
        batches, workers = training_plans(dataset, rows, sizes=stored.sizes, **options), 1

        def prepare(plan):
            images = stored.cut(*parallel.shard((plan["row"], plan["offset"], plan["flip"])))
            return {"image": images, "mos": parallel.shard(plan["mos"])}

    def feed(start_step: int) -> Iterator[dict[str, Any]]:
        iterator = prefetch(batches, start_step, threads=workers)
        try:
            for batch in iterator:
                yield prepare(batch)
        finally:
            iterator.close()  # its threads end with the loop that reads the feed

    return feed


class DeviceImages:
    """Images in the memory of every local device, padded to a common shape.

    An image smaller than the crop is first padded as `crops.pad` says; what is added beyond that, for the common
    shape, no crop reaches.

    Attributes:
      sizes: height and width of each image that is stored, before any padding; zeros for the others.
    """

    sizes: Int32[np.ndarray, "images 2"]

    def __init__(self, images: Sequence, rows: Sequence[int], sizes: Int32[np.ndarray, "images 2"], *, crop_size: int):
        """Sends the images to the devices, block by block.

        Args:
          images: uint8 [height, width, 3] each.
          rows: the rows of `images` to store.
          sizes: height and width of all `images`; only those of `rows` are read.
          crop_size: height and width of the crops in pixels.
        """
        rows = np.unique(np.asarray(rows))
        self.sizes = sizes
        self._slots = np.full(len(images), -1, np.int32)
        self._slots[rows] = np.arange(len(rows))
        self._pixels = _upload(images, rows, *_common_size(sizes[rows], crop_size), crop_size)
        self._cut = parallel.map_batch(lambda pixels, places: _cut(pixels, *places, crop_size=crop_size))

    def cut(
        self,
        rows: Int32[np.ndarray, "devices b"],
        offsets: Int32[np.ndarray, "devices b 2"],
        flips: Bool[np.ndarray, "devices b"],
    ) -> UInt8[Array, "devices b crop crop 3"]:
        """Cuts a crop at each of the `offsets` (top, left), on every device, and mirrors those that `flips` marks.

        The arguments are what `training_plans` gives, divided by `parallel.shard`; they are not checked.
        """
        return self._cut(self._pixels, (self._slots[rows], offsets, flips))


def _store(images: Sequence, rows: Sequence[int], *, crop_size: int, demanded: bool) -> DeviceImages | None:
    """The images on the devices, or None (and a line in the log) where they stay on the host."""
    memory = _device_memory()
    if not demanded and (memory is None or parallel.platform(mapped=True) == "cpu"):
        return None
    most = math.inf if memory is None else memory * (1 if demanded else DEVICE_SHARE)
    sizes, needed = _read_sizes(images, rows, crop_size, most)
    # All processes or none: they run the same programs.
    if parallel.gather(np.array([needed <= most])).all():
        return DeviceImages(images, rows, sizes, crop_size=crop_size)
    message = (
        f"the training images, padded to one shape, take {needed / 2**30:.1f} GiB or more, and the device has "
        f"{memory / 2**30:.1f} GiB"
    )
    if demanded:
        raise UserError(f"config.train.crop_on is 'device', but {message}; set it to 'auto' or 'host'")
    logging.info("crops are cut on the host: %s, of which %d %% are for images", message, 100 * DEVICE_SHARE)
    return None


def _device_memory() -> int | None:
    """Bytes that this process may use on each of its devices; None where the backend does not say (a CPU)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [device_stats.get("bytes_limit") for device_stats in stats]
    return None if None in limits else min(limits)


def _read_sizes(
    images: Sequence, rows: Sequence[int], crop_size: int, most_bytes: float
) -> tuple[Int32[np.ndarray, "images 2"], int]:
    """Reads the images' sizes, and the bytes they take padded to one shape; stops as soon as that is too much."""
    rows = np.unique(np.asarray(rows))
    sizes = np.zeros((len(images), 2), np.int32)
    height = width = needed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shapes = pool.map(lambda row: images[row].shape, rows)
        bar = tqdm(
            shapes,
            total=len(rows),
            desc="read images",
            unit="image",
            dynamic_ncols=True,
            leave=False,
            disable=not parallel.is_main_process(),
        )
        for row, shape in zip(rows, bar, strict=True):
            sizes[row] = shape[:2]
            height, width = np.maximum((height, width), _common_size(sizes[row : row + 1], crop_size)).tolist()
            needed = 3 * height * width * len(rows)
            if needed > most_bytes:
                pool.shutdown(cancel_futures=True)
                break
    return sizes, needed


def _common_size(sizes: Int32[np.ndarray, "some 2"], crop_size: int) -> tuple[int, int]:
    """Height and width that hold every image and every crop."""
    height, width = np.maximum(sizes.max(axis=0), crop_size).tolist()
    return height, width


def _upload(
    images: Sequence, rows: np.ndarray, height: int, width: int, crop_size: int
) -> UInt8[Array, "rows height values"]:
    """The images on every local device, the three values of a pixel side by side in the last axis.

    A separate axis for them would cost a TPU 128 bytes per pixel: it pads the last axis to a multiple of that.
    """
    count = len(rows)
    at_once = min(max(1, _BLOCK_BYTES // (3 * height * width)), count)
    pixels = None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(
            range(0, count, at_once),
            desc="images to devices",
            unit="block",
            dynamic_ncols=True,
            leave=False,
            disable=not parallel.is_main_process(),
        )
        for start in bar:
            start = min(start, count - at_once)  # the last block may overlap: all have one shape, for one compilation
            block = np.zeros((at_once, height, width, 3), np.uint8)

            def fill(i, start=start, block=block):
                image = pad(images[rows[start + i]], crop_size)
                block[i, : image.shape[0], : image.shape[1]] = image

            list(pool.map(fill, range(at_once)))
            sent = parallel.replicate(block.reshape(at_once, height, 3 * width))
            if at_once == count:
                return sent
            if pixels is None:
                pixels = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sent.sharding)(
                    (count, height, 3 * width), jnp.uint8
                )
                insert = jax.jit(_insert, donate_argnums=0, out_shardings=sent.sharding)
            pixels = insert(pixels, sent, start)
    return pixels


def _insert(pixels, block, start):
    return lax.dynamic_update_slice(pixels, block, (start, 0, 0))


def _cut(
    pixels: UInt8[Array, "rows height values"],
    slots: Int32[Array, " b"],
    offsets: Int32[Array, "b 2"],
    flips: Bool[Array, " b"],
    *,
    crop_size: int,
) -> UInt8[Array, "b crop crop 3"]:
    def one(slot, offset, flip):
        crop = lax.dynamic_slice(pixels, (slot, offset[0], 3 * offset[1]), (1, crop_size, 3 * crop_size))
        crop = crop.reshape(crop_size, crop_size, 3)
        return jnp.where(flip, crop[:, ::-1], crop)

    return jax.vmap(one)(slots, offsets, flips)
