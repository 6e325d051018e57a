"""Every program of the package, as a person starts it: wherever its output goes, and whenever it is stopped."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cprl_jax

PACKAGE = Path(cprl_jax.__file__).parent
PROGRAMS = sorted(
    ".".join(("cprl_jax", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__main__")
    for path in PACKAGE.rglob("*.py")
    if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")
)
PARAMETERS = [  # what all programs share is tested on two of them by default
    pytest.param(name, marks=[] if name in ("cprl_jax.main", "cprl_jax.score") else pytest.mark.slow)
    for name in PROGRAMS
]
ARGUMENTS = {  # without which they would end at once
    "cprl_jax.score": ["photo.jpg", "--model=nowhere"],
    "cprl_jax.export": ["--run=nowhere", "--out=model"],
}


def start(program, *arguments, options=(), shell="", **variables):
    """Starts a program; `shell` is what stands behind the command."""
    return subprocess.Popen(
        ["bash", "-c", f'set -o pipefail; exec "$@" {shell}', "bash", sys.executable, *options, "-m", program]
        + list(arguments),
        env=dict(os.environ, PYTHONPATH=str(PACKAGE.parent), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(*arguments, **options):
    process = start(*arguments, **options)
    output, errors = process.communicate(timeout=200)
    return process.returncode, output, errors


def test_all_of_them_are_found():
    assert {"cprl_jax.main", "cprl_jax.score", "cprl_jax.data.synthesize"} < set(PROGRAMS)


@pytest.mark.sampled
@pytest.mark.parametrize("program", PARAMETERS)
def test_help_that_nobody_reads(program):
    assert finish(program, "--help", shell="| true", PYTHONIOENCODING="cp1252") == (0, b"", b"")


@pytest.mark.sampled
@pytest.mark.parametrize("program", PARAMETERS)
def test_a_mistake_is_one_line_in_every_encoding(program):
    code, output, errors = finish(program, "--日本=\udce9", PYTHONIOENCODING="ascii")
    assert (code, output) == (2, b"")
    assert errors.startswith(b"error: ") and errors.count(b"\n") == 1


# Python imports the package `models`, which takes seconds, before the first line of its `__main__`.
@pytest.mark.parametrize("program", [program for program in PARAMETERS if program.values != ("cprl_jax.models",)])
def test_ctrl_c_while_a_program_starts(program):
    process = start(program, *ARGUMENTS.get(program, []), options=["-X", "importtime"])
    for line in process.stderr:
        if re.search(rb"\| +(absl|numpy|PIL|tqdm|jax)\b", line):  # the first of the imports that take time
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith(b"import time:")]
    assert (process.returncode, output, len(lines)) == (130, b"", 1), errors
    assert lines[0].startswith(b"stopped")
