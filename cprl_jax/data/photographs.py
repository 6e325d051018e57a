"""Folders of image files, and photographs to make a set of: listed, checked, decoded, resized."""

import hashlib
import os
import stat
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image, ImageOps

from cprl_jax.data.dataset import listing
from cprl_jax.data.decode import PHOTOGRAPH_FORMATS, PHOTOGRAPH_SUFFIXES, decode_photograph
from cprl_jax.data.labels import MIN_SIDE
from cprl_jax.data.releases._common import in_threads, one_line
from cprl_jax.runtime.errors import UserError

MOST_PROBLEMS = 20  # named in one message
_LARGE_FILE = 2**26  # bytes; such a file is looked at before it is read: it may be a film


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, by the ending of their names and in the order of their names.

    Hidden files (such as macOS's ._a.png) and folders are skipped. Others that are skipped are counted in a warning.

    Raises:
      UserError: the folder cannot be read.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if path.name[0] != "." and not os.path.isdir(path))
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}") from None
    others = [path.name for path in entries if path.suffix.lower() not in PHOTOGRAPH_SUFFIXES]
    if others:
        endings = ", ".join(PHOTOGRAPH_SUFFIXES)
        logging.warning("%s: files without %s are skipped: %d, %s", folder, endings, len(others), listing(others))
    return [path for path in entries if path.suffix.lower() in PHOTOGRAPH_SUFFIXES]


def content(path: str | Path) -> bytes:
    """The bytes of an image file; of a large one that is no image, the first alone.

    Raises:
      OSError: it cannot be read.
      ValueError: it is a folder, or a device, pipe or socket, whose end may never come.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(mode) and not str(path).startswith(("/dev/fd/", "/dev/stdin")):  # the shell's <(command)
        raise ValueError("it is not a file, but a device, pipe or socket")
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > _LARGE_FILE:
            try:
                Image.open(file, formats=PHOTOGRAPH_FORMATS)
            except Exception:  # Pillow's for a file that it cannot identify, and others
                file.seek(0)
                return file.read(2**16)
            file.seek(0)
        return file.read()


def pixel_count(path: str | Path) -> int:
    """How many pixels an image file says that it has; 0 for what is none, and for a pipe, which can be read once."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return 0
        with Image.open(path, formats=PHOTOGRAPH_FORMATS) as image:
            return image.width * image.height
    except Exception:  # Pillow's for a damaged file, and others: whoever reads the file will say so
        return 0


def unreadable(source: str | Path, error: Exception) -> UserError:
    """What to say of an image file that could not be read for this reason."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{source or repr('')} cannot be read: {reason}")


def find(images: Path, *, size: tuple[int, int] | None) -> dict[str, tuple[Path, str]]:
    """The photographs of a folder: file and SHA-256 of its content, by name (that of the file, without suffix).

    `image_files` says which are skipped. Identical files are a warning.

    Args:
      images: the folder.
      size: (width, height) that they are to be resized to; without, those with a side below 16 pixels are refused.

    Raises:
      UserError: no photographs there, or some that cannot be read or named (all in one message).
    """
    if not images.is_dir():
        raise UserError(f"there is no folder {images}; name the one with the photographs: --images=DIR")
    paths = image_files(images)
    if not paths:
        raise UserError(f"there are no photographs in {images} ({', '.join(PHOTOGRAPH_SUFFIXES)})")

    def check(path: Path) -> tuple[str, str]:
        """The checksum and what is wrong."""
        try:
            found = content(path)
            height, width, _ = decode_photograph(found).shape
        except (OSError, ValueError) as error:
            return "", f"{path.name} cannot be read: {one_line(error)}"
        small = size is None and min(height, width) < MIN_SIDE
        wrong = f"{path.name} has {width}x{height} pixels, below {MIN_SIDE}" if small else ""
        return hashlib.sha256(found).hexdigest(), wrong

    checked = in_threads(check, paths, "reading photographs")
    problems = [wrong for _, wrong in checked if wrong]
    photographs: dict[str, tuple[Path, str]] = {}
    spelled: dict[str, str] = {}  # file systems differ in whether A and a are different names
    for path, (digest, _) in zip(paths, checked, strict=True):
        first = spelled.setdefault(path.stem.casefold(), path.name)
        if first != path.name:
            problems.append(f"{path.name} and {first} would have the same name; rename one")
        if not path.stem.isprintable() or "\\" in path.stem or path.stem != path.stem.strip():
            problems.append(f"{path.name!r}: rename it without backslash, control characters and blanks at the ends")
        photographs[path.stem] = path, digest
    if problems:
        raise UserError(f"photographs in {images}: {listing(problems, most=MOST_PROBLEMS, separator='; ')}")
    if len({digest for _, digest in photographs.values()}) < len(photographs):
        logging.warning("%s: some photographs are identical files; splits take them for different scenes", images)
    return photographs


def read(source: str | Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """A photograph, read-only, after cutting out its middle and resizing it (Lanczos) unless `size` is None.

    Raises:
      UserError: it cannot be read (any more), or is no image.
    """
    try:
        pixels = decode_photograph(content(source))
    except (OSError, ValueError, MemoryError) as error:
        raise unreadable(source, error) from error
    if size is not None:
        pixels = np.array(ImageOps.fit(Image.fromarray(pixels), size, method=Image.Resampling.LANCZOS))
    pixels.flags.writeable = False
    return pixels
