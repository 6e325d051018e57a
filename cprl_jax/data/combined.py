"""Several data sets as one, and images resized to one size or to several scales."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cprl_jax.data.dataset import CachedImages, QualityDataset

_COLUMNS = ("names", "mos", "mos_raw", "mos_std", "references", "distortions", "levels", "parts")


def combine(datasets: Sequence[QualityDataset]) -> QualityDataset:
    """One data set of all images of several, in their order.

    Names, scenes and distortions get the name of their set in front ('kadid10k/i01', 'tid2013/jpeg'): the same kind of
    distortion in two sets is two kinds, as in Causal-IQA (24 of TID2013 and 25 of KADID-10k are 49).
    """

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(dataset, name) for dataset in datasets])

    def prefixed(name: str) -> list[str]:
        return [
            f"{dataset.name}/{value}" if value else ""
            for dataset in datasets
            for value in getattr(dataset, name).tolist()
        ]

    return QualityDataset(
        name="+".join(dataset.name for dataset in datasets),
        images=_Chain([dataset.images for dataset in datasets]),
        names=prefixed("names"),
        mos=column("mos"),
        mos_raw=column("mos_raw"),
        mos_std=column("mos_std"),
        references=prefixed("references"),
        distortions=prefixed("distortions"),
        levels=column("levels"),
        parts=column("parts"),
        pristine=_Pristine({dataset.name: dataset.pristine for dataset in datasets}),
    )


def resize(dataset: QualityDataset, size: int, *, cache_gib: float) -> QualityDataset:
    """The same data set with every image `size` x `size` pixels, whatever its proportions were.

    MetaIQA and Causal-IQA train on such images. Pillow's bilinear filter, antialiased, on 8 bits.
    """

    columns = {name: getattr(dataset, name) for name in QualityDataset.__dataclass_fields__}
    images = CachedImages(
        lambda row: np.array(resized(dataset.images[row], size)), len(dataset), cache_bytes=int(cache_gib * 2**30)
    )
    return QualityDataset(
        **columns | {"images": images, "pristine": _Mapped(dataset.pristine, lambda image: resized(image, size))}
    )


def resized(image: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """An image as `resize` makes it."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def at_scales(
    dataset: QualityDataset, rows: Sequence[int], scales: Sequence[float], *, cache_gib: float
) -> QualityDataset:
    """The images of `rows` at each of the scales, with the labels that they had: images to train on.

    Crops of one size then show more or less of a photograph, and more different ones. Pillow's bilinear filter,
    antialiased, on 8 bits; an image at scale 1 is as it was.

    Args:
      dataset: has the images.
      rows: their row numbers in it.
      scales: of height and width; above 0.
      cache_gib: memory for scaled images that are kept.
    """
    rows = np.repeat(np.asarray(rows), len(scales))
    scale_of = np.tile(scales, len(rows) // len(scales))
    columns = {name: getattr(dataset, name)[rows] for name in _COLUMNS}
    columns["names"] = [f"{scale:g}/{name}" for scale, name in zip(scale_of, columns["names"], strict=True)]

    def scaled(row: int) -> UInt8[np.ndarray, "height width 3"]:
        image = dataset.images[rows[row]]
        height, width = (max(1, round(side * scale_of[row])) for side in image.shape[:2])
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    images = CachedImages(scaled, len(rows), cache_bytes=int(cache_gib * 2**30))
    return QualityDataset(name=dataset.name, images=images, pristine=dataset.pristine, **columns)


class _Chain(Sequence):
    """Sequences one after the other."""

    def __init__(self, parts: Sequence[Sequence]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self))[int(index)]
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part][index - (int(self._ends[part - 1]) if part else 0)]


class _Pristine(Mapping):
    """The undistorted photographs of several sets, by 'set/scene'."""

    def __init__(self, sets: Mapping[str, Mapping[str, np.ndarray]]):
        self._sets = sets

    def __getitem__(self, name: str) -> np.ndarray:
        dataset, _, scene = name.partition("/")
        return self._sets[dataset][scene]

    def __iter__(self):
        return (f"{dataset}/{scene}" for dataset, scenes in self._sets.items() for scene in scenes)

    def __len__(self) -> int:
        return sum(len(scenes) for scenes in self._sets.values())


class _Mapped(Mapping):
    """A mapping whose values go through a function when they are asked for."""

    def __init__(self, values: Mapping, function):
        self._values, self._function = values, function

    def __getitem__(self, key):
        return self._function(self._values[key])

    def __iter__(self):
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
