"""What all tests share: two CPU devices, strict shapes, a compilation cache and keys that never repeat."""

import hashlib
import importlib.metadata
import os
import platform
import signal
from pathlib import Path


def _code_generation() -> str:
    """What compiled code may depend on: a cache must not be used on another processor or with other compiler flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")]
    return hashlib.sha256(" ".join([platform.machine(), features, *flags]).encode()).hexdigest()[:12]


# In the background of a shell Ctrl-C is ignored, and programs that tests start would ignore it as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Before JAX starts its backends: two devices on a small machine need more threads than it has cores, or they deadlock.
os.environ["NPROC"] = "8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compiling is most of what these tests do, and takes half the time without LLVM's later passes (0: with them). Programs
# that tests start inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The compilation cache is set here rather than in JAX's configuration, so that programs started by tests share it.
_CACHE = Path(__file__).parents[1] / ".cache" / f"jax-{importlib.metadata.version('jax')}-{_code_generation()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


_LONGEST_FILES = (
    "experiments/cprl/test_runs.py",
    "experiments/cprl/test_robustness.py",
    "experiments/perceptual/test_experiment.py",
    "layers/test_sort_mask.py",
)


@pytest.hookimpl(tryfirst=True)  # before `-m 'not slow'` leaves out what is marked
def pytest_collection_modifyitems(items):
    """Of a test that is `sampled`, all parameters but the first are slow.

    The files that take longest come first: last, they would keep one process busy while the others have nothing.
    """
    seen = set()
    for item in items:
        if item.get_closest_marker("sampled"):
            test = item.nodeid.partition("[")[0]
            if test in seen:
                item.add_marker("slow")
            seen.add(test)
    items.sort(key=lambda item: not item.path.as_posix().endswith(_LONGEST_FILES))


class _GetKey:
    """Gives a fresh key at every call; the same sequence at every run of the same test."""

    def __init__(self, name: str):
        self._key = jax.random.key(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little"))
        self._count = 0

    def __call__(self) -> jax.Array:
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


@pytest.fixture
def getkey(request) -> _GetKey:
    return _GetKey(request.node.nodeid)


@pytest.fixture(params=["float16", "bfloat16"])
def half_precision(request) -> jnp.dtype:
    """Each type of two bytes; skips float16 where XLA cannot compile it (a processor, or XLA_FLAGS, without F16C)."""
    dtype = jnp.dtype(request.param)
    try:
        jnp.ones(1).astype(dtype).astype(jnp.float32)
    except jax.errors.JaxRuntimeError:
        pytest.skip(f"XLA cannot convert {request.param} on this processor")
    return dtype
