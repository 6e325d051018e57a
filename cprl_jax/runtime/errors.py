"""The errors that end a run with one line instead of a traceback."""

import errno
import os
import re
from collections.abc import Iterator

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MACHINE = _FULL | {errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE}  # no program can help these
# What Orbax writes with has no class for its errors: 'Failed writing: "FILE": ... [os_error_code='28']'.
_TENSORSTORE = re.compile(r"(?:\"([^\"]*)\": [^\"]*)?\[(?:OS error |os_error_code=')(\d+)")


class UserError(ValueError):
    """A wrong configuration, flag or file.

    The message is one line that names the offending field, flag or file, what is allowed, and how to correct it.
    `cprl_jax.main` prints it without a traceback and exits with code 2.
    """


class TrainingDiverged(Exception):
    """A loss or gradient became NaN or infinite; the message says what, in which step, and what to try."""


def for_people(error: BaseException) -> tuple[str, int] | None:
    """The line to print and the exit code for an error that a person can mend; None for one of the program.

    2 for a `UserError`. 1 for `TrainingDiverged` and for an error of the operating system: one that names a file, or
    one of the machine (no space, no such device any more), also where a library has wrapped it.
    """
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, TrainingDiverged):
        return str(error), 1
    for cause, meant in _chain(error):
        code, file = None, None
        if isinstance(cause, OSError):
            code, file = cause.errno, cause.filename
        elif match := _TENSORSTORE.search(str(cause)):
            code, file = int(match.group(2)), match.group(1)
        if code in _MACHINE or (meant and None not in (code, file)):
            file = os.fsdecode(file) if isinstance(file, bytes) else file
            line = os.strerror(code) if file is None else f"{file}: {os.strerror(code)}"
            return line + ("; the same command resumes when there is room" if code in _FULL else ""), 1
    return None


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """The error and those beneath it, and whether each was raised as the reason of the one above.

    One that was only being handled when another was raised tells nothing: the other may be a mistake in the handler.
    """
    meant, seen = True, set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error, meant
        meant = meant and error.__cause__ is not None
        error = error.__cause__ or error.__context__
