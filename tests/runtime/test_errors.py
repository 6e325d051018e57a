"""Which errors are for people, however deep they lie, and which are a program's."""

import errno

import pytest

from cprl_jax.runtime.errors import TrainingDiverged, UserError, for_people


def raised(error, *, cause=None, while_handling=None):
    """The error as it arrives: raised from another, or in the handler of another."""
    try:
        try:
            if while_handling is not None:
                raise while_handling
            raise error from cause
        except Exception as first:
            if first is error:
                raise
            raise error  # noqa: B904 - this is the case
    except Exception as caught:
        return caught


FULL = "No space left on device; the same command resumes when there is room"
TENSORSTORE = (
    'RESOURCE_EXHAUSTED: Error writing "w/0.0" in database at local file "/run/p/": Failed writing: "/run/p/d/82": '
    "Failed to write 350146 bytes to file 14: No space left on device [os_error_code='28']"
)


def test_our_own():
    assert for_people(UserError("text")) == ("text", 2)
    assert for_people(TrainingDiverged("text")) == ("text", 1)


@pytest.mark.parametrize(
    "code", ["EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ENOENT", "ENOTDIR", "EISDIR", "EIO", "ELOOP", "EBUSY"]
)
def test_a_file_is_named(code):
    number = getattr(errno, code)
    line, exit_code = for_people(OSError(number, "", "/folder/file"))
    assert line.startswith("/folder/file: ") and len(line) > 20 and exit_code == 1


def test_a_full_disk_wherever_it_is_found():
    full = OSError(errno.ENOSPC, "No space left on device")
    assert for_people(full) == (FULL, 1)
    assert for_people(raised(RuntimeError("wrapped"), cause=full)) == (FULL, 1)
    assert for_people(raised(RuntimeError("while closing"), while_handling=full)) == (FULL, 1)
    assert for_people(raised(RuntimeError("a"), cause=raised(ValueError("b"), while_handling=full))) == (FULL, 1)
    assert for_people(ValueError(TENSORSTORE)) == (f"/run/p/d/82: {FULL}", 1)
    assert for_people(ValueError("[OS error 28: ENOSPC No space left on device]")) == (FULL, 1)
    assert for_people(raised(KeyError("step"), cause=ValueError(TENSORSTORE))) == (f"/run/p/d/82: {FULL}", 1)
    assert for_people(OSError(errno.ENOSPC, "", b"/a\xe9")) == (f"/a\udce9: {FULL}", 1)


def test_mistakes_of_the_program_keep_their_traceback():
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "optional.json")
    assert for_people(AttributeError("x")) is None
    assert for_people(ConnectionError("no route")) is None  # of libraries for networks: without number and file
    assert for_people(OSError(errno.EPIPE, "Broken pipe")) is None
    assert for_people(raised(AttributeError("in the handler"), while_handling=missing)) is None
    assert for_people(raised(ImportError("the reason"), cause=missing))[0].startswith("optional.json: No such file")


def test_a_circle_of_causes_ends():
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert for_people(first) is None
