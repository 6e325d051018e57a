"""Undistorted pictures that need no download: scikit-image's photographs and procedural scenes.

A *scene* is what a split never divides; a *view* is one square picture of it. The photographs are those inside
every scikit-image wheel (0.22 to 0.26 ship the same bytes): each is shrunk by a whole factor, which takes away the
softness and grain of the camera, and cut into non-overlapping views. The procedural scenes (`procedural.py`) are drawn
from `numpy.random.Generator`s keyed by (seed, kind, number): a scene does not depend on how many others are made.
Shrinking and stretching are done in whole numbers, so that pictures agree between machines; decoding of the three
photographs that are stored as JPEG may differ by a grey level.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cprl_jax.data.procedural import PAINTERS
from cprl_jax.runtime.errors import UserError

MIN_IMAGE_SIZE = 32
MAX_IMAGE_SIZE = 256

# For each photograph: its file, the factor that it is shrunk by, and how many views are cut out of it at most.
PHOTOGRAPHS = {
    "astronaut": ("astronaut.png", 2, 4),
    "motorcycle": ("motorcycle_left.png", 2, 4),
    "coffee": ("coffee.png", 2, 2),
    "camera": ("camera.png", 2, 4),
    "chelsea": ("chelsea.png", 2, 2),
    "gravel": ("gravel.png", 2, 2),
    "hubble": ("hubble_deep_field.jpg", 2, 2),
    "ihc": ("ihc.png", 2, 3),
    "rocket": ("rocket.jpg", 2, 2),
    "grass": ("grass.png", 2, 2),
    "retina": ("retina.jpg", 6, 2),
    "brick": ("brick.png", 2, 2),
    "moon": ("moon.png", 4, 1),
    "coins": ("coins.png", 1, 3),
}


@dataclasses.dataclass(frozen=True)
class View:
    """One square picture of a scene: `name` is unique ("astronaut-2"), `scene` is the unit of splitting."""

    name: str
    scene: str
    image: UInt8[np.ndarray, "size size 3"]


def scene_names(scenes: int) -> list[str]:
    """The names of the first `scenes` scenes: every fourth is a photograph while there are any left.

    Raises:
      UserError: `scenes` is not positive.
    """
    if scenes < 1:
        raise UserError(f"scenes={scenes} is not allowed: 1 or more (64 make a dataset worth splitting)")
    names = []
    photographs = iter(PHOTOGRAPHS)
    order = _procedural_names()
    for position in range(scenes):
        photograph = next(photographs, None) if position % 4 == 0 else None
        names.append(photograph or next(order))
    return names


def make_views(scene: str, *, seed: int, image_size: int) -> list[View]:
    """All views of one scene: one to four of a photograph, one of a procedural scene.

    Args:
      scene: a name that `scene_names` gives.
      seed: seed of the procedural scenes, 0 or more; the photographs do not depend on it.
      image_size: height and width of a view in pixels, `MIN_IMAGE_SIZE` to `MAX_IMAGE_SIZE`.

    Raises:
      UserError: an image size or seed that is not allowed, or a scikit-image that comes without its photographs.
      ValueError: an unknown scene.
    """
    if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(f"image_size={image_size} is not allowed: {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels")
    if seed < 0:
        raise UserError(f"seed={seed} is not allowed: 0 or a positive whole number")
    if scene in PHOTOGRAPHS:
        pictures = _photograph_views(scene, image_size)
        return [View(f"{scene}-{number}", scene, picture) for number, picture in enumerate(pictures, start=1)]
    kind, _, number = scene.rpartition("-")
    if kind not in PAINTERS or not number.isdecimal():
        raise ValueError(
            f"unknown scene {scene!r}: allowed are {', '.join(PHOTOGRAPHS)} and {', '.join(PAINTERS)} "
            "followed by a hyphen and a number"
        )
    rng = np.random.default_rng([seed, list(PAINTERS).index(kind), int(number)])
    canvas = PAINTERS[kind](2 * image_size, rng)
    return [View(scene, scene, _stretch(_shrink(canvas, 2)))]


def _procedural_names() -> Iterator[str]:
    counts = dict.fromkeys(PAINTERS, 0)
    while True:
        for kind in ("leaves", "shapes", "texture", "patchwork", "leaves", "text", "texture", "shapes"):
            counts[kind] += 1
            yield f"{kind}-{counts[kind]:02d}"


def photograph_path(file: str) -> pathlib.Path:
    """Where scikit-image keeps a photograph that its wheel ships; never downloads.

    Raises:
      UserError: the file is not there.
    """
    # Not skimage.data.astronaut() and the like: those may reach for the network when a file is missing.
    package = importlib.util.find_spec("skimage")
    folders = [] if package is None else list(package.submodule_search_locations or [])
    for folder in folders:
        path = pathlib.Path(folder) / "data" / file
        if path.is_file():
            return path
    raise UserError(
        f"scikit-image's photograph {file} is not in {folders or 'any installed package'}: the embedded dataset needs "
        "a scikit-image that comes with its data, as the wheels of 0.22 to 0.26 do (pip install --force-reinstall "
        "scikit-image)"
    )


def _photograph_views(scene: str, image_size: int) -> list[UInt8[np.ndarray, "size size 3"]]:
    file, factor, most_views = PHOTOGRAPHS[scene]
    with Image.open(photograph_path(file)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    # Large views need a larger picture: shrink less then.
    factor = max(1, min(factor, min(pixels.shape[:2]) // image_size))
    pixels = _shrink(pixels, factor)
    rows, columns = (side // image_size for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - rows * image_size) // 2, (pixels.shape[1] - columns * image_size) // 2
    views = [
        pixels[top + row * image_size :, left + column * image_size :][:image_size, :image_size]
        for row in range(rows)
        for column in range(columns)
    ]
    # Plain sky and empty corners say nothing about quality: keep the busiest views, in reading order.
    busiest = sorted(range(len(views)), key=lambda index: -_activity(views[index]))[:most_views]
    return [_stretch(views[index]) for index in sorted(busiest)]


def _activity(image: UInt8[np.ndarray, "height width 3"]) -> float:
    """Mean absolute difference of neighbouring pixels, capped so that a few hard edges do not outweigh detail."""
    grey = image.astype(np.int64).sum(axis=2)
    across = np.minimum(np.abs(np.diff(grey, axis=1)), 60).mean()
    down = np.minimum(np.abs(np.diff(grey, axis=0)), 60).mean()
    return float(across + down)


def _shrink(image: UInt8[np.ndarray, "height width 3"], factor: int) -> UInt8[np.ndarray, "low_height low_width 3"]:
    """Means of factor x factor pixels, in whole numbers."""
    height, width = (side // factor for side in image.shape[:2])
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    total = blocks.astype(np.int64).sum(axis=(1, 3))
    return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8)


def _stretch(image: UInt8[np.ndarray, "height width 3"], low: int = 16, high: int = 239) -> np.ndarray:
    """Widens the range of grey levels to at least [low, high]: what is undistorted must not look faded."""
    grey = np.sort(image.astype(np.int64).sum(axis=2), axis=None) // 3
    darkest, brightest = int(grey[grey.size // 100]), int(grey[-1 - grey.size // 100])
    start, stop = min(darkest, low), max(brightest, high)
    # Whole numbers again: (value - darkest) * (stop - start) / (brightest - darkest) + start, rounded to nearest.
    width = max(brightest - darkest, 1)
    values = (2 * (image.astype(np.int64) - darkest) * (stop - start) + width) // (2 * width) + start
    return np.clip(values, 0, 255).astype(np.uint8)
