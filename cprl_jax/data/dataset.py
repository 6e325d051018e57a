"""What every image quality dataset looks like once it is loaded: images, labels on one scale, scenes."""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from cprl_jax.data.decode import decode_rgb as decode_rgb

T = TypeVar("T")

DEFAULT_CACHE_BYTES = 4 * 2**30
PARTS = ("train", "validation", "test", "")  # the parts that a release may assign; '' is none


class CachedImages(Sequence):
    """Images that are decoded when first asked for and then kept as uint8.

    Kept until `cache_bytes` are full; the images that come after that are decoded each time. Nothing is thrown out:
    shuffled epochs visit every image equally often, so which ones are kept makes no difference, and throwing out the
    oldest would leave nothing useful in a cache that is a little too small. Safe to use from several threads.
    The arrays are read-only.
    """

    def __init__(
        self,
        decode: Callable[[int], UInt8[np.ndarray, "height width 3"]],
        length: int,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ):
        self._decode = decode
        self._length = length
        self._free_bytes = cache_bytes
        self._images: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        index = range(self._length)[int(index)]  # negative indices, and the usual IndexError
        image = self._images.get(index)
        if image is not None:
            return image
        # Decoded outside the lock, so that threads decode in parallel; a rare image is decoded twice, then kept once.
        image = self._decode(index)
        image.flags.writeable = False
        with self._lock:
            if index in self._images:
                return self._images[index]
            if image.nbytes <= self._free_bytes:
                self._free_bytes -= image.nbytes
                self._images[index] = image
        return image


class NamedImages(Mapping):
    """Images by name: a read-only mapping over a sequence of images, which are decoded when they are asked for."""

    def __init__(self, names: Sequence[str], images: Sequence):
        self._index = {name: index for index, name in enumerate(names)}
        self._images = images

    def __getitem__(self, name: str) -> UInt8[np.ndarray, "height width 3"]:
        return self._images[self._index[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._index  # without decoding the image

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


@dataclasses.dataclass(frozen=True, eq=False)
class QualityDataset:
    """Images with quality labels; row i of every column describes `images[i]`.

    The columns may be given as any sequence; they are kept as read-only arrays of the types below.

    Attributes:
      name: the dataset's name in configs.
      images: sequence of uint8 RGB arrays [height, width, 3], which may differ in size.
      names: unique names of the images.
      mos: mean opinion score on the common scale, 0..100, higher is better.
      mos_raw: the label as the release gives it, on its own scale and in its own direction.
      mos_std: standard deviation of the opinions behind `mos_raw`; NaN where the release gives none.
      references: the scene each image shows, common to all distorted versions of one photograph. Splits never
        separate a scene. Equal to `names` for authentic images.
      distortions: the kind of distortion; '' where there is none to name.
      levels: its level, 1 the mildest; 0 where there is none to name.
      parts: the part that the release assigns, 'train', 'validation' or 'test'; '' where it assigns none. May be left
        out: then all are ''.
      pristine: the undistorted photograph of each scene, uint8 RGB [height, width, 3], by its name in `references`;
        empty where there are none.

    Raises:
      ValueError: columns of unequal length, a name that occurs twice or is empty, a MOS outside 0..100, an unknown
        part.
    """

    name: str
    images: Sequence
    names: np.ndarray
    mos: Float32[np.ndarray, " images"]
    mos_raw: Float32[np.ndarray, " images"]
    mos_std: Float32[np.ndarray, " images"]
    references: np.ndarray
    distortions: np.ndarray
    levels: Int32[np.ndarray, " images"]
    parts: np.ndarray | None = None
    pristine: Mapping[str, UInt8[np.ndarray, "height width 3"]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.parts is None:
            object.__setattr__(self, "parts", [""] * len(self.images))
        types = {"names": str, "references": str, "distortions": str, "parts": str, "levels": np.int32}
        types |= {"mos": np.float32, "mos_raw": np.float32, "mos_std": np.float32}
        for column, dtype in types.items():
            values = np.array(getattr(self, column), dtype=dtype)
            if values.shape != (len(self.images),):
                raise ValueError(
                    f"dataset {self.name!r}: {column} has shape {values.shape}; it needs one value for "
                    f"each of the {len(self.images)} images"
                )
            values.flags.writeable = False
            object.__setattr__(self, column, values)
        values, counts = np.unique(self.names, return_counts=True)
        if (counts > 1).any() or "" in values:
            raise ValueError(
                f"dataset {self.name!r}: every image needs a unique name, "
                f"but these occur more than once or are empty: {listing(values[(counts > 1) | (values == '')])}"
            )
        outside = ~((self.mos >= 0) & (self.mos <= 100))  # also true of NaN
        if outside.any():
            scores = [f"{name}: {mos}" for name, mos in zip(self.names[outside], self.mos[outside], strict=True)]
            raise ValueError(f"dataset {self.name!r}: mos must be finite and within 0..100, not {listing(scores)}")
        unknown = sorted(set(self.parts.tolist()) - set(PARTS))
        if unknown:
            raise ValueError(f"dataset {self.name!r}: parts must be {', '.join(map(repr, PARTS))}, not {unknown[0]!r}")

    def __len__(self) -> int:
        return len(self.images)


def each_image(function: Callable[[np.ndarray], T], images: Sequence[np.ndarray], rows: Iterable[int]) -> list[T]:
    """function(images[row]) for each of the rows, in their order; several threads decode the images and call it."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda row: function(images[row]), rows))


def listing(items: Sequence, *, most: int = 5, separator: str = ", ") -> str:
    """The first few items as text, and how many more there are."""
    shown = separator.join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown}{separator}and {len(items) - most} more"
