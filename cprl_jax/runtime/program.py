"""How a program ends, whatever happens to it and wherever its output goes: with an exit code, and a line for people.

It imports only what Python has, because a program calls `own_terminal` before it imports what does.
"""

import codecs
import contextlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

from cprl_jax.runtime.errors import for_people

_PLAIN = {"─": "-", "–": "-", "−": "-", "→": ">", "×": "x", "…": "~"}  # one for one: columns stay in line
_READY = threading.Event()  # for Ctrl-C, which has to wait while processes start
_READY.set()
_BREAKS_LINES = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")


def run(work: Callable[[], int | None]) -> int:
    """Does the work; returns its exit code (0 if it has none), or that of an error for people, whose line is printed.

    Any other error is one of the program and passes through. `--verbosity=1` shows where the others come from, too.
    """
    try:
        return work() or 0
    except Exception as error:
        if (found := for_people(error)) is None:
            raise
        from absl import logging

        logging.debug("the error below comes from here", exc_info=True)
        complain(found[0])
        return found[1]


def complain(problem: object) -> None:
    """Prints what is wrong as one line."""
    print(f"error: {one_line(str(problem))}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """The text with its control characters and line breaks escaped, as in `\\n`."""
    return _BREAKS_LINES.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def show(text: str) -> None:
    """Prints results, which are on disk as well: where nobody reads them any more (`... | head`), the run goes on.

    Raises:
      OSError: they cannot be written where they go (a full disk).
    """
    try:
        print(text, flush=True)
    except OSError as error:
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            error.filename = "the standard output"
            raise


def discard(stream: TextIO) -> None:
    """Lets go of what is yet to be written to a stream that takes no more: Python would try again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def own_terminal(farewell: str) -> None:
    """Takes over a process: any character can be printed, and Ctrl-C ends it at once with one line and exit code 130.

    Nothing is tidied up at Ctrl-C: a program whose files are whole or absent can be stopped at any moment. The usual
    exception would wait for a compilation or an attack to end, and libraries swallow it while they are imported.
    """
    if sys.stdout is not None:  # closed by who started the process
        sys.stdout.reconfigure(errors="readable")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    else:
        raw = io.BufferedWriter(_Patient(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, sys.stderr.encoding, "readable", line_buffering=True, write_through=True)
    messages = sys.stderr.fileno()
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # started in the background, where Ctrl-C is for others
    ending = threading.RLock()

    def stop() -> None:
        with ending:
            try:
                os.write(messages, f"\n{farewell}\n".encode())
            finally:
                os._exit(130)

    ours, interpreters = os.pipe()
    if hasattr(os, "set_blocking"):  # what `set_wakeup_fd` asks for, but not on Windows
        os.set_blocking(interpreters, False)
    # This runs between two steps of the main thread, which may be minutes apart; the thread below does not wait for it.
    signal.signal(signal.SIGINT, lambda *_: stop() if _READY.is_set() else None)
    signal.set_wakeup_fd(interpreters, warn_on_full_buffer=False)

    def watch() -> None:
        while os.read(ours, 1) != bytes([signal.SIGINT]):
            pass
        _READY.wait()
        stop()

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Keeps Ctrl-C, which all processes get, from those of `multiprocessing` that are started in it.

    This one heeds it when they are on their way: without what it has to tell them they would end with a traceback.
    """
    from multiprocessing import resource_tracker

    sys.warnoptions.append("ignore:resource_tracker")  # a process that tidies up after this one, and would say so
    masked = hasattr(signal, "pthread_sigmask")  # not on Windows
    if masked:
        resource_tracker.ensure_running()  # whose start would let signals through again
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    _READY.clear()
    try:
        yield
    finally:
        _READY.set()
        if masked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class _Patient(io.FileIO):
    """Where messages and progress go: a full disk or a closed pipe behind it costs them, and not the work."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Something legible for what an encoding lacks, as Python's handlers of encoding errors are.

    A byte of a file's name that is no text stays that byte, as `ls` prints it, but in UTF-16 and UTF-32.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, end = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff" and not error.encoding.startswith(("utf-16", "utf-32")):
        return character.encode("ascii", "surrogateescape"), end
    return _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode(), end


codecs.register_error("readable", _readable)
