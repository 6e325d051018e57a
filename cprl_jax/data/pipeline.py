"""Training batches: a pure function of the seed and the step, wherever a run resumes.

`training_batches` cuts the crops here, on the host; `training_plans` only says where they lie, for
`device_images.DeviceImages` to cut the same ones on an accelerator.
"""

import functools
import os
import sys
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8

from cprl_jax.data.crops import pad, place
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.runtime.errors import UserError

Batch = dict[str, np.ndarray]

_ORDER, _CROPS = 0, 1  # keep the two streams of random numbers apart


def training_batches(
    dataset: QualityDataset,
    rows: Sequence[int],
    *,
    batch_size: int,
    crop_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset[Batch]:
    """Endless batches of random crops, each mirrored left to right with probability one half.

    `batches[step]` depends on the arguments and `step` alone. Every epoch visits each row once in an order of its own;
    a batch that the end of an epoch leaves unfilled is filled from the next one. The global batch is formed first and
    then cut into equal shares, so any number of processes trains on the same images and pixels.

    Args:
      dataset: where the images come from. Those smaller than the crop are padded as `crops.pad` says.
      rows: the rows to train on.
      batch_size: images per step, over all processes.
      crop_size: height and width of the crops in pixels.
      seed: non-negative integer.
      process_index: whose share to give.
      process_count: number of equal shares.

    Returns:
      a dataset of batches `{'image': uint8 [share, crop_size, crop_size, 3], 'mos': float32 [share],
      'row': int32 [share]}` with share = batch_size / process_count.

    Raises:
      UserError: an option out of its range, a batch that cannot be shared equally, no rows or rows out of range.
    """

    def cut(draw: tuple[np.ndarray, np.ndarray]) -> Batch:
        batch_rows, uniform = draw
        images = cut_crops(dataset.images, batch_rows, uniform, crop_size=crop_size)
        return {"image": images, "mos": dataset.mos[batch_rows], "row": batch_rows}

    return _draws(
        len(dataset),
        rows,
        batch_size=batch_size,
        crop_size=crop_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    ).map(cut)


def cut_crops(
    images: Sequence, rows: Sequence[int], uniform: Float64[np.ndarray, "crops 3"], *, crop_size: int
) -> UInt8[np.ndarray, "crops size size 3"]:
    """A crop of each image, placed and mirrored (with probability one half) by three numbers in [0, 1)."""
    cut = np.empty((len(rows), crop_size, crop_size, 3), np.uint8)
    for i, row in enumerate(rows):
        image = images[row]
        top, left = place(uniform[i, :2], image.shape, crop_size)
        crop = pad(image, crop_size)[top : top + crop_size, left : left + crop_size]
        if _mirrored(uniform[i]):
            for channel in range(3):  # NumPy reverses one channel at a time several times faster than all three
                cut[i, :, :, channel] = crop[:, ::-1, channel]
        else:
            cut[i] = crop
    return cut


def training_plans(
    dataset: QualityDataset,
    rows: Sequence[int],
    *,
    sizes: Int32[np.ndarray, "images 2"],
    batch_size: int,
    crop_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset[Batch]:
    """Where the crops of `training_batches` with the same arguments lie, without their pixels.

    Args:
      sizes: height and width of every image of the dataset; only those of `rows` are read.

    Returns:
      a dataset of plans `{'row': int32 [share], 'offset': int32 [share, 2], 'flip': bool [share],
      'mos': float32 [share]}`; `offset` is (top, left) in the image, padded if it is smaller than the crop, and `flip`
      says which crops are mirrored.

    Raises:
      UserError: as `training_batches`.
    """

    def plan(draw: tuple[np.ndarray, np.ndarray]) -> Batch:
        batch_rows, uniform = draw
        offsets = [place(uniform[i, :2], sizes[row], crop_size) for i, row in enumerate(batch_rows)]
        return {
            "row": batch_rows,
            "offset": np.stack(offsets),
            "flip": _mirrored(uniform),
            "mos": dataset.mos[batch_rows],
        }

    return _draws(
        len(dataset),
        rows,
        batch_size=batch_size,
        crop_size=crop_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    ).map(plan)


def _mirrored(uniform: Float64[np.ndarray, "*crops 3"]) -> Bool[np.ndarray, "*crops"]:
    return uniform[..., 2] < 0.5


def _draws(
    images: int,
    rows: Sequence[int],
    *,
    batch_size: int,
    crop_size: int,
    seed: int,
    process_index: int,
    process_count: int,
) -> grain.MapDataset[tuple[np.ndarray, np.ndarray]]:
    """The random part of every step: the rows [share] of its images and three numbers in [0, 1) [share, 3] for each."""
    rows = np.array(rows, np.int32)
    if rows.ndim != 1 or not len(rows) or rows.min() < 0 or rows.max() >= images:
        raise UserError(f"training needs at least one row, all within 0..{images - 1}; got {rows}")
    if batch_size < 1 or crop_size < 1:
        raise UserError(f"batch_size={batch_size} and crop_size={crop_size} must both be 1 or larger")
    if seed < 0:
        raise UserError(f"seed={seed} is not allowed; it is 0 or larger")
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index={process_index} is not allowed; it is 0 to {process_count - 1}")
    if batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} cannot be shared equally by {process_count} processes; choose a multiple of "
            f"{process_count}"
        )
    share_size = batch_size // process_count
    share = slice(process_index * share_size, (process_index + 1) * share_size)

    @functools.lru_cache(maxsize=8)
    def epoch_order(epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64([seed, _ORDER, epoch])).permutation(rows)

    def draw(step: int) -> tuple[np.ndarray, np.ndarray]:
        epochs, places = np.divmod(step * batch_size + np.arange(batch_size), len(rows))
        orders = [epoch_order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
        # Drawn for the global batch: the pixels of a share do not depend on how many shares there are.
        uniform = np.random.Generator(np.random.PCG64([seed, _CROPS, step])).random((batch_size, 3))[share]
        return np.concatenate(orders)[share], uniform

    # One element is one whole batch: shuffling and batching row by row in Grain costs more than cutting the crops.
    return grain.MapDataset.range(sys.maxsize // batch_size).map(draw)


def prefetch(
    batches: grain.MapDataset[Batch], start_step: int = 0, *, threads: int = 0
) -> grain.DatasetIterator[Batch]:
    """Iterates over `batches[start_step], batches[start_step + 1], ...`, made ahead of time by background threads.

    Args:
      batches: what `training_batches` or `training_plans` returns.
      start_step: the step to begin or resume at.
      threads: how many batches are made at a time (config.train.workers); 0 is one per core, at most 16. Twice as many
        are kept ready. The batches and their order are the same for any number.

    Returns:
      an iterator that never ends; `close()` stops its threads.
    """
    threads = threads or min(os.cpu_count() or 1, 16)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(batches[start_step:].to_iter_dataset(options))
