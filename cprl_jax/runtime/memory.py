"""How the process gets its memory from the system."""

import ctypes
import math
import sys

# From glibc's malloc.h, the parameters of mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8


def keep_freed_memory() -> bool:
    """Makes glibc keep the memory that a computation gives back, for the next one; returns whether it could.

    XLA on a CPU asks for hundreds of megabytes at the start of every compiled step and gives them back at its end. By
    default glibc passes that on to the system, which maps and clears the same pages again for the next step:
    `benchmarks/memory.py` measures what that costs. The price: the process keeps the most that it ever needed.

    Call it before JAX starts its threads. Elsewhere than on Linux with glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    # One arena: those of other threads cannot grow beyond 64 MB, and XLA's buffers are asked for by other threads.
    mallopt(_ARENA_MAX, 1)
    # Old versions refuse a threshold above 32 MB, but none refuses not to map at all.
    kept = mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_MAX, 0)
    return bool(kept and mallopt(_TRIM_THRESHOLD, (1 << 31) - 1) and mallopt(_TOP_PAD, 1 << 28))


def peak_gigabytes() -> float:
    """The most memory that this process has had, GB; NaN where Python cannot tell (Windows)."""
    try:
        import resource
    except ImportError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, kilobytes elsewhere
