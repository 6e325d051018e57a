"""Distorted copies of photographs to train on: more different images than there are photographs with opinions."""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from cprl_jax.data.dataset import CachedImages, QualityDataset
from cprl_jax.data.distortions import DISTORTIONS, distort
from cprl_jax.runtime.errors import UserError

_UNLIKE_PHOTOGRAPHS = (
    "kadid/color-shift",
    "kadid/color-quantization",
    "kadid/impulse-noise",
    "kadid/jitter",
    "kadid/non-eccentricity-patch",
    "kadid/quantization",
    "kadid/color-block",
)
KINDS = tuple(
    name
    for name, entry in DISTORTIONS.items()
    if entry.family in ("kadid", "mlive") and name not in _UNLIKE_PHOTOGRAPHS
)
"""Those of KADID-10k and MLIVE that look like what cameras and encoders do, so that a model of photographs can judge
them."""
LEVELS = (1, 2, 3, 4)  # of the strongest there is hardly a photograph


def distorted_copies(
    dataset: QualityDataset, rows: Sequence[int], copies: int, *, seed: int, cache_gib: float
) -> QualityDataset:
    """Each photograph of `rows` so many times, each time under another draw of distortion, level and noise.

    The draw depends on the seed, the photograph's name and the number of the copy alone. `mos` is still that of the
    photographs: who uses the copies must label them.

    Args:
      dataset: has the photographs.
      rows: their row numbers in it.
      copies: how many of each, 1 or more.
      seed: 0 or larger.
      cache_gib: memory for copies that are kept.

    Raises:
      UserError: when a copy is asked for, of a photograph that is too small to be distorted.
    """
    rows = np.repeat(np.asarray(rows), copies)
    copy_of = np.tile(np.arange(copies), len(rows) // copies)
    keys = [
        [seed, zlib.crc32(str(name).encode()), int(copy)]
        for name, copy in zip(dataset.names[rows], copy_of, strict=True)
    ]
    draws = [np.random.default_rng(key) for key in keys]
    kinds = [KINDS[draw.integers(len(KINDS))] for draw in draws]
    levels = [LEVELS[draw.integers(len(LEVELS))] for draw in draws]

    def distorted(row: int) -> UInt8[np.ndarray, "height width 3"]:
        try:
            return distort(dataset.images[rows[row]], kinds[row], level=levels[row], key=keys[row])
        except ValueError as error:
            raise UserError(f"{dataset.names[rows[row]]} cannot be distorted: {error}") from error

    return QualityDataset(
        name="copies",
        images=CachedImages(distorted, len(rows), cache_bytes=int(cache_gib * 2**30)),
        names=[f"{copy}/{name}" for copy, name in zip(copy_of, dataset.names[rows], strict=True)],
        mos=dataset.mos[rows],
        mos_raw=dataset.mos_raw[rows],
        mos_std=dataset.mos_std[rows],
        references=dataset.references[rows],
        distortions=kinds,
        levels=levels,
    )
