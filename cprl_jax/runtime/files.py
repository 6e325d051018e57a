"""Files that are either whole or absent, and arrays kept in them with a stamp of what they depend on."""

import contextlib
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from absl import logging

from cprl_jax.runtime.errors import UserError

Arrays = dict[str, np.ndarray]


def user_path(text: str | os.PathLike, *, field: str) -> Path:
    """The path that a person typed, with `~` replaced by the home folder; it need not exist.

    Raises UserError, which names `field` and the text, if the system cannot even ask whether it exists: `~` without a
    home, a NUL, a name that is too long, a folder that may not be entered.
    """
    try:
        path = Path(text).expanduser()
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        shown = repr(os.fspath(text))
        shown = shown if len(shown) <= 120 else f"{shown[:60]}...{shown[-20:]}"
        raise UserError(f"{field} is {shown}, which is no usable path ({reason}); give another") from None
    return path


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
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a text (as UTF-8) or bytes."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file."""
    with writing(path) as file:
        np.savez(file, **arrays)


def check_workdir(folder: Path, *, entry: str, content: str) -> None:
    """Raises UserError for a folder that is neither empty nor a run's: every run of `content` has this entry."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / entry).exists())):
        raise UserError(f"{folder} holds something else than {content}; give another --workdir")


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
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        logging.warning("%s is damaged and computed anew", path)
        return None
