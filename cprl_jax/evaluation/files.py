"""Scores of image files: threads decode them and cut crops ahead of the devices, which score many files at once."""

import contextlib
import functools
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import flax.linen as nn
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from cprl_jax.data import combined, photographs
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import CachedImages, QualityDataset
from cprl_jax.data.decode import decode_photograph
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError

_THREADS = min(8, os.cpu_count() or 1)
_LARGE = 2**25  # pixels; while it is decoded, such a photograph takes about 8 bytes a pixel
_ONE_LARGE = threading.Lock()

Cut = UInt8[np.ndarray, "crops size size 3"] | UserError


class FileScorer:
    """Scores image files with one model: `scorer(["photo.jpg"])` is an array of one score.

    A score is a function of the pixels and the model: other files do not change it, but for rounding (1e-5) in calls
    of another length, which may compute in batches of another size. Memory does not grow with the number of files.

    Args:
      module: the network.
      variables: its parameters and batch statistics.
      crops, crop_size, seed: of each image, as for `data.crops.Crops`.
      batch_size: crops at once, a device, at most.
      resize: height and width in pixels that images are brought to first; 0 = as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        variables: Mapping,
        *,
        crops: int,
        crop_size: int,
        seed: int,
        batch_size: int,
        resize: int = 0,
    ):
        self._module, self._variables, self._batch_size, self._resize = module, variables, batch_size, resize
        self._options = {"crops": crops, "crop_size": crop_size, "seed": seed}
        self._scorer = functools.cache(self._compiled)

    def __call__(self, files: Sequence[str | Path]) -> Float[np.ndarray, " files"]:
        """The score of each file.

        Raises:
          UserError: a file that cannot be read or is no image (the first such one is named).
        """
        scores = np.empty(len(files), np.float32)
        few = len(files) < 20
        for row, score in enumerate(tqdm(self.each(files), "score", len(files), unit="image", disable=few)):
            if isinstance(score, UserError):
                raise score
            scores[row] = score
        return scores

    def each(self, files: Sequence[str | Path]) -> Iterator[float | UserError]:
        """For each file its score, or a UserError that names it and says what is wrong; in their order.

        A result is given out as soon as those of its batch are known.

        Raises:
          UserError: `crops` or `crop_size` below 1, or a negative seed.
        """
        crops = Crops(_dataset(files, resize=self._resize), range(len(files)), **self._options)
        devices, programs = parallel.local_device_count(), parallel.programs_at_once()
        # Whole images make a batch: none waits for the next batch, and nothing but the last one is padded.
        most = max(1, self._batch_size // crops.shape[1])
        images = min(most, 1 << math.ceil(len(files) / devices - 1).bit_length())  # few sizes to compile for
        at_once = images * devices

        def cut(row: int) -> Cut:
            try:
                large = photographs.pixel_count(files[row]) > _LARGE
                with _ONE_LARGE if large else contextlib.nullcontext():
                    return crops[row]
            except (OSError, ValueError, MemoryError) as error:
                return photographs.unreadable(files[row], error)

        def scores(group: list[Cut]) -> list[float | UserError]:
            good = [crops_of_image for crops_of_image in group if not isinstance(crops_of_image, UserError)]
            found = iter(scorer.result().scores(self._variables, np.stack(good)).tolist() if good else ())
            return [entry if isinstance(entry, UserError) else next(found) for entry in group]

        rows, group, stalled = iter(range(len(files))), [], False
        decoding: deque[Future] = deque()  # of files, then, in groups of them, `computing`; oldest first
        computing: deque[Future] = deque()
        decoders, computers = ThreadPoolExecutor(_THREADS), ThreadPoolExecutor(programs)
        try:
            scorer = computers.submit(self._scorer, images)
            while True:
                ahead = itertools.islice(rows, at_once + _THREADS - len(decoding))
                decoding.extend(decoders.submit(cut, row) for row in ahead)
                full = _images(group) == at_once or len(group) == 8 * at_once
                if full or (group and (stalled or not decoding)):
                    computing.append(computers.submit(scores, group))
                    group = []
                oldest = [*itertools.islice(computing, 1), *itertools.islice(decoding, len(computing) <= programs)]
                if not oldest:
                    return
                done = wait(oldest, timeout=1.0, return_when=FIRST_COMPLETED).done
                stalled = not done and not computing  # by a file on a slow disk: score those that are there
                if computing and computing[0] in done:
                    yield from computing.popleft().result()
                elif done:
                    group.append(decoding.popleft().result())
        finally:  # who stops asking does not wait for what is under way
            for pool in (decoders, computers):
                pool.shutdown(wait=False, cancel_futures=True)

    def _compiled(self, images: int) -> Scorer:
        """A scorer of so many images at once, a device; compiled here, as threads would each compile it."""
        crops, size = self._options["crops"], self._options["crop_size"]
        batches = math.ceil(crops / self._batch_size)  # of one image, where it has more crops than a batch
        scorer = Scorer(self._module, batch_size=math.ceil(images * crops / batches))
        scorer.scores(self._variables, np.zeros((1, crops, size, size, 3), np.uint8))
        return scorer


def _dataset(files: Sequence[str | Path], *, resize: int) -> QualityDataset:
    """The files as a data set, decoded whenever an image is asked for."""
    count, names = len(files), [str(row) for row in range(len(files))]
    unknown = np.zeros(count, np.float32)
    dataset = QualityDataset(
        name="files",
        images=CachedImages(lambda row: decode_photograph(photographs.content(files[row])), count, cache_bytes=0),
        names=names,
        mos=unknown,
        mos_raw=unknown,
        mos_std=unknown * np.nan,
        references=names,
        distortions=[""] * count,
        levels=[0] * count,
    )
    return combined.resize(dataset, resize, cache_gib=0) if resize else dataset


def _images(group: Sequence[Cut]) -> int:
    return sum(not isinstance(entry, UserError) for entry in group)
