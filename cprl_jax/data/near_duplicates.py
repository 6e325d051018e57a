"""Photographs that are nearly the same on both sides of a split, found by a perceptual hash of 64 bits.

The hash keeps the signs of 64 low frequencies of a picture's luminance. Recompressed, resized, brightened or slightly
blurred copies differ in a few of them (up to 9, measured on photographs, mostly 0 to 2); different photographs in 32,
with a standard deviation of 4.1, nearly as 64 independent random bits do. Copies that were cropped by some percent and
the next photograph of a series are detected in part, rotated copies not at all: what is reported is a lower bound.
"""

import concurrent.futures
from collections.abc import Sequence

import numpy as np
import scipy.fft
import scipy.stats
from absl import logging
from jaxtyping import Float32, Int, UInt8, UInt64
from PIL import Image
from tqdm import tqdm

from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.splits import Split
from cprl_jax.data.splits import rows as rows_of

NO_STRUCTURE = np.uint64(0)
"""The hash of an image whose frequencies are too weak for their signs to mean anything; it is like no other."""

_SIZE = 32  # pixels, height and width of the reduced picture
_BAND = slice(1, 9)  # frequencies in each direction. 0 is left out: bright above dark is what photographs share
_WEAKEST = 3.0  # grey levels: the median magnitude of the frequencies, from which on their signs outlast a noise
_FALSE_ALARMS = 0.1  # expected number of pairs of different photographs that are reported for a whole split
_FEWEST_BITS, _MOST_BITS = 8, 14  # what altered copies need; from 15 on, also in small sets, chance finds most pairs
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)
# A mirror image changes the signs of the odd frequencies across: 1, 3, 5, 7 are every other column of the band.
_MIRROR = _BITS.reshape(8, 8)[:, ::2].sum(dtype=np.uint64)
_BLOCK = 2**22  # pairs that are compared at once


def image_hash(image: UInt8[np.ndarray, "height width 3"]) -> np.uint64:
    """The hash of one RGB image, `NO_STRUCTURE` for a flat one.

    Luminance, reduced to 32 x 32 pixels whatever the shape, DCT-II; bit 8 (v - 1) + (u - 1) says whether the
    coefficient of v = 1..8 half-waves down and u = 1..8 across is positive. The kind of hash is Zauner's
    (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010), with 0 for a threshold in place of the
    median: that of a mirrored image then follows from the image's own (`mirror`), and bits are independent.
    """
    luminance = Image.fromarray(np.ascontiguousarray(image)).convert("L").convert("F")  # F: means are not rounded
    # Bilinear with a support as wide as the reduction: moves less than boxes when the image was resized before.
    small: Float32[np.ndarray, "32 32"] = np.asarray(luminance.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))
    coefficients = scipy.fft.dctn(small, norm="ortho")[_BAND, _BAND]
    if np.median(np.abs(coefficients)) < _WEAKEST:
        return NO_STRUCTURE
    return _BITS[coefficients.ravel() > 0].sum(dtype=np.uint64)


def mirror(hashes: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """The hashes of the same images mirrored left to right."""
    return np.where(hashes == NO_STRUCTURE, NO_STRUCTURE, hashes ^ _MIRROR)


def hashes(dataset: QualityDataset, rows: Sequence[int], *, progress: bool = True) -> UInt64[np.ndarray, " rows"]:
    """The hashes of the images of some rows, computed by several threads.

    Args:
      dataset: its images are decoded, and stay in its cache.
      rows: row numbers.
      progress: draw a progress bar on standard error.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        values = pool.map(lambda row: image_hash(dataset.images[int(row)]), rows)
        bar = tqdm(values, desc="near-duplicates", total=len(rows), unit="image", disable=not progress, leave=False)
        return np.fromiter(bar, np.uint64, count=len(rows))


def chance_bits(pairs: int) -> int:
    """In how many bits near-duplicates may differ, 8 to 14: the fewer, the more pairs are compared.

    The most for which a tenth of a pair is expected among so many pairs of unrelated hashes, whose distances follow
    the binomial distribution of 64 and 1/2: 12 for LIVE-C, 9 for KonIQ-10k.
    """
    bits = np.arange(_FEWEST_BITS, _MOST_BITS + 1)
    return int(bits[scipy.stats.binom.cdf(bits, 64, 0.5) * pairs <= _FALSE_ALARMS].max(initial=_FEWEST_BITS))


def close_pairs(
    first: UInt64[np.ndarray, " n"], second: UInt64[np.ndarray, " m"], *, most_bits: int
) -> Int[np.ndarray, "pairs 3"]:
    """All (i, j, bits) where first[i] and second[j] differ in at most `most_bits` bits.

    Sorted by bits, then i and j. Images without structure are in no pair.
    """
    if not len(first) or not len(second):
        return np.empty((0, 3), int)
    blocks = []
    step = max(1, _BLOCK // len(second))
    for start in range(0, len(first), step):
        block = first[start : start + step, None]
        bits = np.bitwise_count(block ^ second)
        i, j = np.nonzero((bits <= most_bits) & (block != NO_STRUCTURE) & (second != NO_STRUCTURE))
        blocks.append(np.stack([i + start, j, bits[i, j]], axis=1))
    pairs = np.concatenate(blocks)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 2]))]


def pairs_across(
    dataset: QualityDataset,
    split: Split,
    *,
    most_bits: int | None = None,
    mirrored: bool = False,
    progress: bool = True,
) -> list[tuple[str, str, int]]:
    """Near-duplicates of tested scenes among those that train or validate.

    Of each scene only the mildest version is looked at: all undistorted images or, where there are none, one of the
    images with the lowest level. Of several pairs of the same two scenes the closest is kept.

    Args:
      dataset: the dataset that `split` divides.
      split: the split; for leave-one-distortion-out, whose parts share all scenes, the result is empty.
      most_bits: in how many of the 64 bits hashes may differ; None: `chance_bits` of the number of pairs.
      mirrored: find images mirrored left to right, too.
      progress: draw a progress bar on standard error.

    Returns:
      (name in the training or validation part, name in the test part, bits), closest first.

    Raises:
      UserError: the split names images that the dataset does not have.
    """
    if split.kind == "leave_one_distortion_out":
        return []
    seen = _mildest(dataset, rows_of(dataset, [*split.train, *split.validation]))
    tested = _mildest(dataset, rows_of(dataset, split.test))
    values = hashes(dataset, [*seen, *tested], progress=progress)
    seen_hashes, tested_hashes = values[: len(seen)], values[len(seen) :]
    if most_bits is None:
        most_bits = chance_bits(len(seen) * len(tested) * (1 + mirrored))
    close = [close_pairs(seen_hashes, tested_hashes, most_bits=most_bits)]
    if mirrored:
        close.append(close_pairs(seen_hashes, mirror(tested_hashes), most_bits=most_bits))
    pairs = np.concatenate(close)
    closest: dict[tuple[str, str], tuple[str, str, int]] = {}
    for i, j, bits in pairs[np.argsort(pairs[:, 2], kind="stable")].tolist():
        scenes = str(dataset.references[seen[i]]), str(dataset.references[tested[j]])
        closest.setdefault(scenes, (str(dataset.names[seen[i]]), str(dataset.names[tested[j]]), bits))
    return list(closest.values())


def warn_of_near_duplicates(dataset: QualityDataset, split: Split, **options) -> list[tuple[str, str, int]]:
    """Logs one warning if tested scenes have near-duplicates among those that training sees.

    Args, returns and raises: as `pairs_across`.
    """
    pairs = pairs_across(dataset, split, **options)
    if pairs:
        scene_of_name = dict(zip(dataset.names.tolist(), dataset.references.tolist(), strict=True))
        leaked = {scene_of_name[name] for _, name, _ in pairs}
        count = sum(scene_of_name[name] in leaked for name in split.test)
        shown = "; ".join(f"{seen} ~ {tested} ({bits} bits)" for seen, tested, bits in pairs[:5])
        logging.warning(
            "%s: %d of %d test images (%.1f %%) seem to show what a training or validation image shows, which makes "
            "every result too good: %s%s. Look at them; to have two images in one part, move one in the run's "
            "split.json and pass that with --config.dataset.split_file (in a set of your own: give both the same "
            "`reference`)",
            dataset.name,
            count,
            len(split.test),
            100 * count / len(split.test),
            shown,
            f"; and {len(pairs) - 5} more pairs" if len(pairs) > 5 else "",
        )
    return pairs


def _mildest(dataset: QualityDataset, candidates: np.ndarray) -> list[int]:
    """For each scene in the rows: all undistorted images or else one with the lowest level."""
    chosen: dict[str, list[int]] = {}
    for row in candidates[np.argsort(dataset.levels[candidates], kind="stable")].tolist():
        of_scene = chosen.setdefault(str(dataset.references[row]), [])
        if not of_scene or (dataset.levels[row] == 0 and dataset.distortions[row] == ""):
            of_scene.append(row)
    return [row for of_scene in chosen.values() for row in of_scene]
