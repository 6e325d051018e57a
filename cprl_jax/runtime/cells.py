"""Jobs of many cells: each is computed once, kept in a file of its own, and known by a stamp of all it depends on."""

import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from absl import logging
from tqdm import tqdm

from cprl_jax.runtime import parallel
from cprl_jax.runtime.files import read_cache, write_cache


class Cell(Protocol):
    """What a job needs to know of a cell, whatever else it holds."""

    path: Path
    stamp: str


C = TypeVar("C", bound=Cell)


def compute(
    cells: Sequence[C],
    compute_one: Callable[[C], Mapping[str, np.ndarray]],
    *,
    job: str,
    describe: Callable[[C], str],
    shared: bool,
    without: Collection[str] = (),
) -> None:
    """Computes the cells that are not there yet, and writes each as soon as it is done.

    Args:
      cells: of this process.
      compute_one: the arrays of a cell.
      job: its name, for the log and the progress bar.
      describe: a cell in a few words, for the progress bar.
      shared: all processes work on each cell together, and the main one writes it; else each has cells of its own.
      without: names of large arrays that need not be read to see whether a cell is there.
    """
    missing = [cell for cell in cells if read_cache(cell.path, cell.stamp, without=without) is None]
    outdated = sum(cell.path.exists() for cell in missing)
    parallel.barrier("cells looked at")  # before any of them is written
    if len(missing) < len(cells) or outdated:
        logging.info(
            "%s: %d of %d cells are there already%s",
            job,
            len(cells) - len(missing),
            len(cells),
            f"; {outdated} of other settings are computed anew" if outdated else "",
        )
    with tqdm(
        total=len(cells),
        initial=len(cells) - len(missing),
        desc=job,
        unit="cell",
        dynamic_ncols=True,
        disable=not parallel.is_main_process(),
    ) as progress:
        for cell in missing:
            progress.set_postfix_str(describe(cell))
            arrays = compute_one(cell)
            if not shared or parallel.is_main_process():
                write_cache(cell.path, cell.stamp, arrays)
            progress.update()


def file_name(name: str) -> str:
    """A name as a file name; one that had to be changed gets a checksum, so that two never meet."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"
