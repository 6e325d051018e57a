"""Square crops of images: their places follow from a seed and an image's size alone."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from cprl_jax.data.dataset import QualityDataset, each_image
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.stamps import stamp

# Steps of Roberts' R2 sequence, 1 / g and 1 / g^2 with g^3 = g + 1: any number of its points covers the square evenly.
_STEPS = (0.7548776662466927, 0.5698402909980532)


class Crops:
    """`crops` crops of each of some images, cut out when they are asked for.

    `crops[rows]`, with one row number, several, or a slice, is what indexing the array [images, crops, size, size, 3]
    of all of them would give. That array would be 7.6 GB for the 2015 test images of KonIQ-10k.

    The places cover an image evenly: a low-discrepancy sequence (R2) from a start that the seed draws. They depend on
    the seed and the image's size alone, not on its name: a model scores the same pixels alike wherever they lie, and
    more crops per image leave the ones that were there as they are.

    Args:
      dataset: holds the images.
      rows: the images' row numbers in it.
      crops: how many of each image.
      crop_size: height and width of a crop in pixels; smaller images are padded (`pad`).
      seed: 0 or larger.

    Attributes:
      shape: (images, crops, crop_size, crop_size, 3).

    Raises:
      UserError: `crops` or `crop_size` below 1, or a negative seed.
    """

    def __init__(self, dataset: QualityDataset, rows: Sequence[int], *, crops: int, crop_size: int, seed: int):
        for option, value, least in (("crops", crops, 1), ("crop_size", crop_size, 1), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"{option}={value} is not allowed; it is {least} or larger")
        self._uniform = points(crops, seed)
        self._images, self._rows = dataset.images, np.array(rows, np.int64)
        self.shape = (len(self._rows), crops, crop_size, crop_size, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> UInt8[np.ndarray, "*rows crops size size 3"]:
        chosen, size = self._rows[rows], self.shape[2]
        cut = np.empty((chosen.size, *self.shape[1:]), np.uint8)
        for crops_of_image, row in zip(cut, chosen.flat, strict=True):
            image = self._images[row]
            for crop, (top, left) in zip(crops_of_image, place(self._uniform, image.shape, size), strict=True):
                crop[...] = pad(image[top : top + size, left : left + size], size)
        return cut.reshape(*chosen.shape, *self.shape[1:])

    @functools.cached_property
    def stamp(self) -> str:
        """The stamp of the pixels of all images and of the crops' places in them."""
        images = each_image(lambda image: stamp(pixels=image), self._images, self._rows)
        return stamp(images=images, places=self._uniform, crop_size=self.shape[2])


def points(crops: int, seed: int) -> Float64[np.ndarray, "crops 2"]:
    """Points that cover the square [0, 1)^2 evenly, for `place`; more of them begin with the same ones."""
    start = np.random.Generator(np.random.PCG64(seed)).random(2)
    return (start + np.arange(crops)[:, np.newaxis] * _STEPS) % 1.0


def place(
    uniform: Float64[np.ndarray, "*crops 2"], image_shape: tuple[int, ...], crop_size: int
) -> Int32[np.ndarray, "*crops 2"]:
    """Turns uniform numbers in [0, 1) into (top, left) of crops that lie in the image, padded where it is smaller."""
    positions = np.maximum(np.array(image_shape[:2]) - crop_size, 0) + 1
    return np.minimum((uniform * positions).astype(np.int32), positions - 1).astype(np.int32)


def pixels(
    uniform: Float64[np.ndarray, "crops 2"], image_shape: tuple[int, ...], crop_size: int
) -> tuple[Int32[np.ndarray, "distinct size size"], Int32[np.ndarray, " distinct"]]:
    """The crops of an image as numbers of its pixels, row by row: `image.reshape(-1, 3)[numbers]` are the crops.

    Returns:
      the numbers, each place once, and how many of the crops lie there (all of them, in an image of their size).
    """
    (height, width), size = image_shape[:2], crop_size
    places, counts = np.unique(place(uniform, image_shape, size), axis=0, return_counts=True)
    columns = np.arange(width)
    numbers = [
        pad((np.arange(height)[top : top + size, None] * width + columns[left : left + size])[..., None], size)[..., 0]
        for top, left in places
    ]
    return np.stack(numbers).astype(np.int32), counts.astype(np.int32)


def pad(
    image: UInt8[np.ndarray, "height width 3"], crop_size: int
) -> UInt8[np.ndarray, "padded_height padded_width 3"]:
    """Mirrors an image at its borders, evenly on both sides, until a crop fits in; larger images stay as they are."""
    missing = [max(crop_size - length, 0) for length in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="reflect")
