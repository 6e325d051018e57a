"""Square crops of the test images: their places follow from the seed and the images' sizes, and are kept in a file."""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.splits import rows as rows_of
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file
from cprl_jax.runtime.stamps import stamp

# Steps of Roberts' R2 sequence, 1 / g and 1 / g^2 with g^3 = g + 1: any number of its points covers the square evenly.
_STEPS = (0.7548776662466927, 0.5698402909980532)


@dataclasses.dataclass(frozen=True, eq=False)
class Crops:
    """Where the crops of some images lie.

    Attributes:
      names: the images' names.
      offsets: (top, left) of every crop in pixels. Of an image smaller than a crop: in the padded image, see `pad`.
      crop_size: height and width of every crop in pixels.
    """

    names: tuple[str, ...]
    offsets: Int32[np.ndarray, "images crops 2"]
    crop_size: int


def draw_crops(dataset: QualityDataset, rows: Sequence[int], *, crops: int, crop_size: int, seed: int) -> Crops:
    """Places `crops` crops of each image, evenly over the whole image.

    An image's crops depend on the seed and its size alone, not on its name: a model scores the same pixels alike
    wherever they lie, and more crops per image leave the ones that were there as they are. The places are a
    low-discrepancy sequence (R2) from a start that the seed draws.

    Raises:
      UserError: `crops` or `crop_size` below 1, or a negative seed.
    """
    for option, value, least in (("crops", crops, 1), ("crop_size", crop_size, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{option}={value} is not allowed; it is {least} or larger")
    start = np.random.Generator(np.random.PCG64(seed)).random(2)
    uniform = (start + np.arange(crops)[:, np.newaxis] * _STEPS) % 1.0
    offsets = np.zeros((len(rows), crops, 2), np.int32)
    for i, row in enumerate(rows):
        offsets[i] = place(uniform, dataset.images[row].shape, crop_size)
    return Crops(names=tuple(str(dataset.names[row]) for row in rows), offsets=offsets, crop_size=crop_size)


def save_crops(crops: Crops, path: str | os.PathLike) -> None:
    """Writes the crops as JSON, one image a line."""
    lines = [
        f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(offsets.tolist())}"
        for name, offsets in zip(crops.names, crops.offsets, strict=True)
    ]
    offsets = ",\n".join(lines)
    write_file(path, f'{{\n "crop_size": {crops.crop_size},\n "top_left": {{\n{offsets}\n }}\n}}\n')


def load_crops(path: str | os.PathLike) -> Crops:
    """Reads what `save_crops` wrote.

    Raises:
      UserError: no such file, or it is not a file of crops.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        crop_size = int(content["crop_size"])
        names, offsets = zip(*content["top_left"].items(), strict=True)
        offsets = np.array(offsets, np.int32)
        if offsets.ndim != 3 or offsets.shape[2] != 2 or crop_size < 1 or (offsets < 0).any():
            raise ValueError("every image needs the same number of [top, left] pairs, none negative")
    except OSError as error:
        raise UserError(f"crops file {path} cannot be read ({error.strerror}); delete the path to draw anew") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"crops file {path} is damaged ({error}); delete it to draw the crops anew") from None
    return Crops(names=names, offsets=offsets, crop_size=crop_size)


def extract(crops: Crops, dataset: QualityDataset, count: int) -> UInt8[np.ndarray, "images count size size 3"]:
    """Cuts out the first `count` crops of every image.

    All at once: 25 crops of 224 pixels of 1000 images are 3.8 GB. `LazyCrops` cuts out those of some images.

    Raises:
      UserError: an image that the dataset does not have, more crops than were drawn, or a crop that does not lie in
        its image, which was smaller when it was drawn.
    """
    drawn = crops.offsets.shape[1]
    if not 1 <= count <= drawn:
        raise UserError(f"count={count} crops per image are not at hand; 1 to {drawn} were drawn")
    size = crops.crop_size
    cut = np.empty((len(crops.names), count, size, size, 3), np.uint8)
    for i, row in enumerate(rows_of(dataset, crops.names)):
        image = pad(dataset.images[row], size)
        for j, (top, left) in enumerate(crops.offsets[i, :count]):
            if top + size > image.shape[0] or left + size > image.shape[1]:
                raise UserError(
                    f"crop {j} of {crops.names[i]}, {size} pixels at {top}, {left}, reaches outside its image of "
                    f"{image.shape[0]} x {image.shape[1]}; the crops were drawn for other images: draw them anew"
                )
            cut[i, j] = image[top : top + size, left : left + size]
    return cut


def sample_crops(
    dataset: QualityDataset, rows: Sequence[int], count: int, *, crop_size: int, seed: int
) -> UInt8[np.ndarray, "count size size 3"]:
    """One crop of each of `count` images (all, where there are fewer), drawn from `rows` by the seed."""
    chosen = np.random.default_rng(seed).permutation(rows)[:count]
    return extract(draw_crops(dataset, chosen, crops=1, crop_size=crop_size, seed=seed), dataset, 1)[:, 0]


class LazyCrops:
    """The first `count` crops of each image, cut out when they are asked for.

    `crops[rows]`, with one row number, several, or a slice, is what indexing the array [images, count, size, size, 3]
    of all of them would give. That array would be 7.6 GB for the 2015 test images of KonIQ-10k.
    """

    def __init__(self, crops: Crops, dataset: QualityDataset, count: int):
        self._crops, self._dataset = crops, dataset
        self.shape = (len(crops.names), count, crops.crop_size, crops.crop_size, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> UInt8[np.ndarray, "*rows count size size 3"]:
        chosen = np.arange(len(self))[rows]
        flat = chosen.reshape(-1)
        some = Crops(tuple(self._crops.names[row] for row in flat), self._crops.offsets[flat], self._crops.crop_size)
        return extract(some, self._dataset, self.shape[1]).reshape(*chosen.shape, *self.shape[1:])

    @functools.cached_property
    def stamp(self) -> str:
        """Of the pixels of all images, and of where the crops lie in them."""
        rows = rows_of(self._dataset, self._crops.names)
        with ThreadPoolExecutor() as pool:  # images are decoded, and hashed, side by side
            images = list(pool.map(lambda row: stamp(pixels=self._dataset.images[row]), rows))
        return stamp(images=images, offsets=self._crops.offsets[:, : self.shape[1]], crop_size=self._crops.crop_size)


def place(
    uniform: Float64[np.ndarray, "*crops 2"], image_shape: tuple[int, ...], crop_size: int
) -> Int32[np.ndarray, "*crops 2"]:
    """Turns uniform numbers in [0, 1) into (top, left) of crops that lie in the image, padded where it is smaller."""
    positions = np.maximum(np.array(image_shape[:2]) - crop_size, 0) + 1
    return np.minimum((uniform * positions).astype(np.int32), positions - 1).astype(np.int32)


def pad(
    image: UInt8[np.ndarray, "height width 3"], crop_size: int
) -> UInt8[np.ndarray, "padded_height padded_width 3"]:
    """Mirrors an image at its borders, evenly on both sides, until a crop fits in; larger images stay as they are."""
    missing = [max(crop_size - length, 0) for length in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="reflect")
