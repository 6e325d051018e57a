"""Files that are either whole or absent, and arrays kept in them with a stamp of what they depend on."""

import contextlib
import errno
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from absl import logging

from cprl_jax.runtime.errors import UserError

Arrays = dict[str, np.ndarray]
RUN_ENTRIES = ("config.json", "split.json", "crops.json", "report", "division", "cells", "split-00")  # of any job
_LONGEST_NAME = 255  # bytes, on every file system in use
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def user_path(text: str | os.PathLike, *, field: str) -> Path:
    """The path that a person typed, with `~` replaced by the home folder; it need not exist.

    Raises UserError, which names `field` and the text, if that is empty or the system cannot even ask whether it
    exists: `~` without a home, a NUL, a name that is too long, a folder that may not be entered.
    """
    if not os.fspath(text):
        raise UserError(f"{field} is empty; give a path")
    try:
        path = Path(text).expanduser()
        # Asked for first: below a folder that is missing, the system would not notice before it has made that one.
        if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        shown = repr(os.fspath(text))
        shown = shown if len(shown) <= 120 else f"{shown[:60]}...{shown[-20:]}"
        raise UserError(f"{field} is {shown}, which is no usable path ({reason}); give another") from None
    return path


def utf8_path(text: str | os.PathLike, *, field: str) -> Path:
    """The whole path of a folder for libraries that write themselves: they need its name in UTF-8, or it is refused."""
    path = user_path(text, field=field).resolve()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{field} is {str(path)!r}, a name that is not UTF-8; rename it or give another") from None
    return path


def file_name(name: str) -> str:
    """A name as a file name; one that had to be changed gets a checksum, so that two never meet."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode(errors='surrogateescape')):08x}"


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write under a temporary name beside `path`, renamed at the end: no reader sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:  # a full disk does not say where it is full
            error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a text (as UTF-8; what is none, in names of files, as `\\udce9`) or bytes."""
    with writing(path) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file."""
    with writing(path) as file:
        np.savez(file, **arrays)


def check_workdir(folder: Path, *, entry: str, content: str, folders: Collection[str] = ()) -> None:
    """Checks that a run would not write over another one's files; any other file may lie in its folder.

    Args:
      folder: need not exist.
      entry: what every run of this kind writes before all else: where it is, the run goes on.
      content: the kind of run, for the message.
      folders: what such a run makes in the folder besides `RUN_ENTRIES`.

    Raises:
      UserError: `folder` is a file, or without `entry` but with something that a run writes, which is named.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give another --workdir")
    if not (folder / entry).exists():
        for name in (*RUN_ENTRIES, *folders):
            if (folder / name).exists():
                raise UserError(f"{folder} holds {name}, which is not of {content}; give another --workdir")


def remove_leftovers(folder: Path) -> None:
    """Removes what `writing` left under temporary names in a run's folder when it was killed."""
    is_run = any((folder / name).exists() for name in RUN_ENTRIES)
    for path in (folder.rglob if is_run else folder.glob)(".*.tmp"):  # who knows what else lies in another folder
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_cache(path: str | os.PathLike, stamp: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to an .npz file, for `read_cache` to find them by the same stamp."""
    write_arrays(path, {"stamp": np.array(stamp), **arrays})


def read_cache(path: str | os.PathLike, stamp: str, *, without: Collection[str] = ()) -> Arrays | None:
    """The arrays that `write_cache` wrote, besides those named in `without`.

    None if there is no such file, it has another stamp, or it is damaged (which is logged).
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["stamp"]) != stamp:
                return None
            return {name: file[name] for name in file.files if name != "stamp" and name not in without}
    except FileNotFoundError:
        return None
    except Exception:  # zipfile, zlib and NumPy each have their own
        logging.warning("%s is damaged and computed anew", path)
        return None
