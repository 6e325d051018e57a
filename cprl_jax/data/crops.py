"""Square crops of the test images, drawn once from the seed and kept in a file: two runs attack the same pixels."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.splits import rows as rows_of
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file


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
    """Draws `crops` uniformly placed crops of each image.

    An image's crops depend on the seed, its name and its size alone: a smaller test set, another order or more crops
    per image leave the ones that were there as they are.

    Raises:
      UserError: `crops` or `crop_size` below 1, or a negative seed.
    """
    for option, value, least in (("crops", crops, 1), ("crop_size", crop_size, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{option}={value} is not allowed; it is {least} or larger")
    names = tuple(str(dataset.names[row]) for row in rows)
    offsets = np.zeros((len(names), crops, 2), np.int32)
    for i, row in enumerate(rows):
        name_key = int.from_bytes(hashlib.sha256(names[i].encode()).digest()[:8], "little")
        uniform = np.random.Generator(np.random.PCG64([seed, name_key])).random((crops, 2))
        offsets[i] = place(uniform, dataset.images[row].shape, crop_size)
    return Crops(names=names, offsets=offsets, crop_size=crop_size)


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

    All at once: 25 crops of 224 pixels of 1000 images are 3.8 GB. `Crops` of fewer names go in blocks.

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
