"""A run's folder belongs to one run at a time."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import remove_leftovers, user_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
_HELD: set[Path] = set()  # by this process
PATIENCE = 5.0  # seconds: a process that was killed keeps its lock until the system has taken back its memory


@contextlib.contextmanager
def held(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other runs out of `folder`, which is made, while the body runs; of several processes, the main one does.

    The system lets go of it when the process ends, however it does. Then half-written files are nobody's any more: the
    next run removes them. On Windows, and on file systems that cannot lock, nothing is kept out.

    Raises:
      UserError: another run holds it (the message says which process, where and since when), or it cannot be made.
    """
    folder = user_path(folder, field="--workdir")
    if not parallel.is_main_process():
        yield
        return
    existed, place = folder.is_dir(), folder.resolve()
    _check_around(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file, locked = _open(folder / NAME)
    except OSError as error:
        raise UserError(f"--workdir={folder} cannot be written to ({error.strerror}); give another") from error
    with file:
        if locked:
            remove_leftovers(folder)
        _HELD.add(place)
        try:
            yield
        finally:
            _HELD.discard(place)
            with contextlib.suppress(OSError):
                (folder / NAME).unlink()
                if not existed:
                    folder.rmdir()  # where nothing came of the run


def _check_around(folder: Path) -> None:
    """Raises UserError where another process holds the folder that this one is in: a run of several splits."""
    path = folder.parent / NAME
    if folder.parent in _HELD or not path.is_file():
        return
    with contextlib.suppress(FileNotFoundError):  # it has just ended
        _open(path)[0].close()


def _open(path: Path) -> tuple[TextIO, bool]:
    """The lock file, which says whose it is, and whether it is locked: some file systems cannot."""
    deadline = time.monotonic() + PATIENCE
    while True:
        file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 - it stays open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            raise UserError(
                f"{path.parent} is in use by {holder}; wait until it is done, stop it, or give another --workdir"
            ) from None
        except (OSError, AttributeError):
            locked = False
        if not locked or os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # whoever held it removed it in between
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
    return file, locked
