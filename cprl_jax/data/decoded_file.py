"""Decoded images in one memory-mapped file, for sets that are too large to keep in memory."""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
from absl import logging
from jaxtyping import Int32, UInt8
from tqdm import tqdm

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import read_cache, write_cache, writing

_FORMAT = 1  # version of the index; files of another version are written again
_SAMPLE = 16  # images whose mean size predicts how much room is needed


class DecodedImages(Sequence):
    """Images that are decoded once, into a file that later runs and other processes share.

    The file holds the bytes of all images one after another; the index beside it (`<path>.index.npz`) their heights
    and widths. A crop reads the pages that it covers, and the system keeps in memory what fits. The arrays are
    read-only views. Safe to use from several threads and, on a file system with locks, from several processes: one of
    them makes the file, the others wait for it.

    A file that is incomplete or that belongs to other images (another number of them, another `stamp`) is written
    again. Whether its pixels are those that were written is not checked.

    Attributes:
      sizes: height and width of every image.
    """

    sizes: Int32[np.ndarray, "images 2"]

    def __init__(
        self,
        decode: Callable[[int], UInt8[np.ndarray, "height width 3"]],
        length: int,
        *,
        path: str | os.PathLike,
        stamp: str = "",
    ):
        """Opens the file, after making it if need be (a second for some hundred photographs on one core).

        Args:
          decode: gives image 0..length-1; called from several threads.
          length: number of images, 1 or more.
          path: path of the file; its folder is made if need be.
          stamp: tells these images from others that may have been stored under the same path.

        Raises:
          UserError: not enough room for the file, or its folder cannot be written.
          ValueError: `length` below 1, or `decode` gives anything but uint8 [height, width, 3].
        """
        if length < 1:
            raise ValueError(f"length={length} is not allowed; it is 1 or larger")
        path = Path(path)
        stamp = f"{_FORMAT} {length} {stamp}"
        sizes = _read_index(path, stamp)
        if sizes is None:
            sizes = _make_once(path, decode, length, stamp)
        self.sizes = sizes
        self._starts = np.concatenate([[0], np.cumsum(3 * sizes.astype(np.int64).prod(axis=1))]).tolist()
        # A plain array over the mapping: slices of np.memmap itself take ten times as long to make.
        self._bytes = np.asarray(np.memmap(path, np.uint8, mode="r"))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        index = range(len(self))[int(index)]  # negative indices, and the usual IndexError
        return self._bytes[self._starts[index] : self._starts[index + 1]].reshape(*self.sizes[index].tolist(), 3)


def _index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.npz")


def _read_index(path: Path, stamp: str) -> np.ndarray | None:
    """The sizes of the stored images; None if there is no whole file of these images."""
    index = read_cache(_index_of(path), stamp)
    if index is None:
        return None
    if path.exists() and path.stat().st_size == 3 * index["sizes"].astype(np.int64).prod(axis=1).sum():
        return index["sizes"]
    logging.warning("the decoded images in %s are incomplete and are decoded again", path)
    return None


def _make_once(path: Path, decode: Callable, length: int, stamp: str) -> np.ndarray:
    """Makes the file unless another process has just done so; returns the sizes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f"{path.name}.lock")):
            sizes = _read_index(path, stamp)
            return _make(path, decode, length, stamp) if sizes is None else sizes
    except OSError as error:
        raise UserError(
            f"the decoded images could not be stored in {path} ({' '.join(str(error).split())}); choose another folder "
            "with --config.dataset.data_dir=FOLDER, or keep them in memory with --config.dataset.cache=memory"
        ) from error


def _make(path: Path, decode: Callable, length: int, stamp: str) -> np.ndarray:
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # left by processes that were killed
        leftover.unlink()
    _index_of(path).unlink(missing_ok=True)  # it comes last: with it, the file is whole
    threads = os.cpu_count() or 1
    sizes = np.zeros((length, 2), np.int32)
    with ThreadPoolExecutor(threads) as pool:
        sample = np.unique(np.linspace(0, length - 1, min(_SAMPLE, length)).astype(int)).tolist()
        needed = int(np.mean([image.nbytes for image in pool.map(decode, sample)]) * length)
        if needed > shutil.disk_usage(path.parent).free:
            raise _no_room(path, needed)
        try:
            with (
                writing(path) as file,
                tqdm(total=length, desc="decode images", unit="image", dynamic_ncols=True) as progress,
            ):
                block = 8 * threads  # at a time: a disk that is slower than the decoder must not fill the memory
                for start in range(0, length, block):
                    rows = range(start, min(start + block, length))
                    for row, image in zip(rows, pool.map(decode, rows), strict=True):
                        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                            raise ValueError(
                                f"image {row} is {image.dtype} {image.shape}, but decode must give uint8 "
                                "[height, width, 3]"
                            )
                        file.write(np.ascontiguousarray(image).data)
                        sizes[row] = image.shape[:2]
                        progress.update()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(path, needed) from error
            raise
    write_cache(_index_of(path), stamp, {"sizes": sizes})
    return sizes


def _no_room(path: Path, needed: int) -> UserError:
    free = shutil.disk_usage(path.parent).free
    return UserError(
        f"the decoded images need about {needed} bytes ({needed / 2**30:.1f} GiB) in {path}, where {free / 2**30:.1f} "
        "GiB are free; make room there, choose another folder with --config.dataset.data_dir=FOLDER, or decode images "
        "each time with --config.dataset.cache=memory"
    )
