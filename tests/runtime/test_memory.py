"""Whether freed memory stays with the process."""

import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, resource
from cprl_jax.runtime.memory import keep_freed_memory
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def faults_of_using_100_megabytes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = libc.malloc(100 << 20)
    ctypes.memset(memory, 1, 100 << 20)
    libc.free(memory)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, second = faults_of_using_100_megabytes(), faults_of_using_100_megabytes()
print(first, second)
assert second < 100, (first, second)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_was_used_once_is_not_mapped_again():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_it_does_nothing_where_there_is_no_mallopt(monkeypatch):
    import cprl_jax.runtime.memory as memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False


def test_the_peak_includes_what_was_given_back(monkeypatch):
    import cprl_jax.runtime.memory as memory

    bytearray(b"x") * (300 << 20)
    assert 0.3 < memory.peak_gigabytes() < 1000
    monkeypatch.setitem(sys.modules, "resource", None)
    assert math.isnan(memory.peak_gigabytes()), "not on Windows"
