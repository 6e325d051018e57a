"""How a program ends, whatever happens to it and wherever its output goes: with an exit code, and a line for people.

It imports only what Python has, because a program calls `own_terminal` before it imports what does.
"""

import codecs
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TextIO

from cprl_jax.runtime.errors import for_people

_PLAIN = {"─": "-", "–": "-", "−": "-", "→": ">", "×": "x", "…": "~"}  # one for one: columns stay in line


def run(work: Callable[[], None]) -> int:
    """Does the work; returns the exit code: 0, or that of an error for people, whose line is printed.

    Any other error is one of the program and passes through. `--verbosity=1` shows where the others come from, too.
    """
    try:
        work()
    except Exception as error:
        if (found := for_people(error)) is None:
            raise
        from absl import logging

        logging.debug("the error below comes from here", exc_info=True)
        print(f"error: {found[0]}", file=sys.stderr)
        return found[1]
    return 0


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
    codecs.register_error("readable", _readable)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by who started the process
            stream.reconfigure(errors="readable")
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # started in the background, where Ctrl-C is for others
    first = threading.Lock()

    def stop(*_) -> None:
        if first.acquire(blocking=False):
            try:
                os.write(2, f"\n{farewell}\n".encode())
            finally:
                os._exit(130)

    ours, interpreters = socket.socketpair()
    interpreters.setblocking(False)
    signal.signal(signal.SIGINT, stop)  # runs between two steps of the main thread, which may be minutes apart
    signal.set_wakeup_fd(interpreters.detach(), warn_on_full_buffer=False)

    def watch() -> None:
        while ours.recv(1) != bytes([signal.SIGINT]):
            pass
        stop()

    threading.Thread(target=watch, daemon=True).start()


def _readable(error: UnicodeError) -> tuple[str, int]:
    """Something legible for what an encoding lacks, as Python's handlers of encoding errors are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end
