"""Results that are computed once, kept in a file each, and recognised by a stamp of everything they depend on."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from cprl_jax.runtime import parallel
from cprl_jax.runtime.files import Arrays, read_cache, write_cache
from cprl_jax.runtime.stamps import stamp

_LONG = 10.0  # seconds: what took less is not worth a file of its own


def compute(
    cells: Sequence[Any],
    compute_one: Callable[[Any], Mapping[str, np.ndarray]],
    *,
    job: str,
    describe: Callable[[Any], str],
    shared: bool,
    without: Collection[str] = (),
) -> list[Arrays]:
    """Computes the cells that are not there yet, writes each as soon as it is done, and reads all of them back.

    Args:
      cells: all results of the job, the same in every process; each has a `path`, its file, and a `stamp`.
      compute_one: cell -> arrays.
      job: name for the log and the progress bar.
      describe: cell -> a few words for the progress bar.
      shared: all processes work on each cell together, and the main one writes it; else each computes and writes its
        share of the cells.
      without: names of large arrays to leave in the files.

    Returns:
      the arrays of each cell, in the order of `cells`.
    """
    share = cells if shared else cells[parallel.process_index() :: parallel.process_count()]
    missing = [cell for cell in share if read_cache(cell.path, cell.stamp, without=without) is None]
    outdated = sum(cell.path.exists() for cell in missing)
    parallel.barrier("cells looked at")  # before any of them is written
    present = len(share) - len(missing)
    if present or outdated:
        again = f"; {outdated} of other settings are computed anew" if outdated else ""
        logging.info("%s: %d of %d cells are there already%s", job, present, len(share), again)
    hidden = not parallel.is_main_process()
    with tqdm(total=len(share), initial=present, desc=job, unit="cell", dynamic_ncols=True, disable=hidden) as progress:
        for cell in missing:
            progress.set_postfix_str(describe(cell))
            arrays = compute_one(cell)
            if not shared or parallel.is_main_process():
                write_cache(cell.path, cell.stamp, arrays)
                Parts(cell.path, cell.stamp).remove()
            progress.update()
    parallel.barrier("cells computed")
    return [read_cache(cell.path, cell.stamp, without=without) for cell in cells]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is done of a cell that takes long, in a folder beside its file until the cell is whole.

    Attributes:
      path, stamp: of the cell.
    """

    path: Path
    stamp: str

    @property
    def folder(self) -> Path:
        return self.path.with_suffix(".parts")

    def compute(self, place: Any, compute_one: Callable[[], Arrays]) -> Arrays:
        """One part, read back or computed; a process by itself.

        Args:
          place: what tells the part from the cell's other parts, of the kinds that `stamp` takes.
          compute_one: () -> arrays.
        """
        part = stamp(cell=self.stamp, place=place)
        path = self.folder / f"{part[:16]}.npz"
        arrays = read_cache(path, part)
        if arrays is None:
            start = time.monotonic()
            arrays = compute_one()
            if time.monotonic() - start > _LONG:
                write_cache(path, part, arrays)
        return arrays

    def remove(self) -> None:
        """Removes the parts, also those of other stamps, once the cell itself is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def cached(path: Path, stamp: str, compute_one: Callable[[], Arrays]) -> Arrays:
    """One result: read back, or computed by all processes together and written by the main one."""
    arrays = read_cache(path, stamp)
    parallel.barrier("result looked at")  # before it is written
    if arrays is None:
        arrays = compute_one()
        if parallel.is_main_process():
            write_cache(path, stamp, arrays)
    return arrays
