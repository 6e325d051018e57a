"""Devices and processes: the only file of the package that knows about them.

A training step is a free function `(state, batch) -> (state, metrics)` for one device, which averages over the named
axis `AXIS` (`jax.lax.pmean`). `map_step` runs it on every device of every process. The state keeps its natural shapes
all along (no stacked device axis), so checkpoints, evaluation and attacks take it as it is.

A run of several processes is started from outside (`launch/`, Slurm, Kubernetes, a TPU pod): `cluster` finds this
process's place in it through the cluster detection of `jax.distributed`.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cprl_jax.runtime.errors import UserError, for_people

Tree = Any  # a pytree of arrays
AXIS = "batch"  # the axis over which a step sees the devices: `jax.lax.pmean(gradients, parallel.AXIS)`
process_index = jax.process_index  # this process's number, in 0..process_count() - 1
process_count = jax.process_count  # processes that share this run
device_count = jax.device_count  # devices of all processes: a global batch is divided among that many
local_device_count = jax.local_device_count  # devices of this process

_LOST_PEER = re.compile(
    "closed by peer|reset by peer|gloo|nccl|heartbeat|coordination service|distributed service|barrier timed out|"
    "deadline_exceeded",
    re.IGNORECASE,
)


def initialize() -> None:
    """Joins the other processes of this run, if there are any; call it before anything touches a device.

    `jax.distributed.initialize` is called, without arguments, when the environment is that of one process among
    several (a Slurm job step of several tasks, Open MPI, an indexed Kubernetes job, a TPU pod) or when a launcher asks
    for it with `CPRL_JAX_DISTRIBUTED=1`. `CPRL_JAX_DISTRIBUTED=0` forbids it. Everywhere else (a laptop, a login node,
    an allocation of one task) this does nothing, and so never waits for processes that will not come.

    Raises:
      UserError: a cluster is there, but JAX could not find this process's place in it.
    """
    _make_room_for_forced_devices()
    if jax.distributed.is_initialized() or not _has_peers(os.environ):
        return
    # The preemption service takes SIGTERM for itself and expects the program to ask for notices. Checkpoints survive
    # a kill at any moment, so the plain meaning of SIGTERM, which schedulers rely on, is the better one.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize()
    except Exception as error:
        raise UserError(
            f"this process could not find its place among the processes of the cluster ({_one_line(error)}); start it "
            "as launch/README.md describes, or set CPRL_JAX_DISTRIBUTED=0 to run it as the only process"
        ) from error


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Runs its body as one process among those of the run, and ends them together.

    In a run of one process it changes nothing: exceptions pass through. In a run of several, a process that fails
    leaves at once, without waiting for peers that may be waiting for it: one line and the exit code of an error that a
    person can mend (`errors.for_people`), 3 when a peer was lost (the line tells how to go on); a traceback and 1 for
    anything else.
    """
    initialize()
    try:
        yield
        barrier("end of run")
    except BaseException as error:
        if process_count() == 1:
            raise
        _leave(error)


def lost_peer_message(error: BaseException) -> str | None:
    """What to tell the user when `error` means that another process of the run is gone; else None."""
    if process_count() == 1 or not _LOST_PEER.search(str(error)):
        return None
    return (
        f"Process {process_index()} of {process_count()} lost another process of this run ({_one_line(error)}). Look "
        "at the output of the other processes for the cause; start the same command again to resume from the last "
        "checkpoint."
    )


def is_main_process() -> bool:
    """Whether this is the process that prints and writes files."""
    return process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name; returns at once in a run of one process."""
    if process_count() > 1:
        multihost_utils.sync_global_devices(name)


def main_process_first(function: Callable[[], Any]) -> Any:
    """Calls a function in the main process, then in the others, which find what it has prepared on disk."""
    result = function() if is_main_process() else None
    barrier("main process first")
    return result if is_main_process() else function()


def gather(local: np.ndarray) -> np.ndarray:
    """Concatenates an array of each process along the first axis, in the order of the processes, exactly.

    [n, ...] -> [sum of all n, ...], the same on every process. n may differ between processes; dtype and the other axes
    may not. Raises ValueError for an array without an axis, or of something else than numbers or booleans.
    """
    local = np.asarray(local)
    if local.ndim == 0 or not (np.issubdtype(local.dtype, np.number) or local.dtype == bool):
        raise ValueError(
            f"gather takes arrays of numbers or booleans with at least one axis, not {local.dtype} of shape "
            f"{local.shape}; gather row numbers instead of names, and x[None] instead of a scalar"
        )
    if process_count() == 1:
        return local
    # Bytes travel unchanged, whereas a float64 would come back as a float32; and they can be padded to one length.
    payload = np.frombuffer(np.ascontiguousarray(local).tobytes(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([payload.size], np.uint32), tiled=True)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: payload.size] = payload
    rows = multihost_utils.process_allgather(padded[None], tiled=True)
    parts = [np.frombuffer(row[:size].tobytes(), local.dtype) for row, size in zip(rows, sizes, strict=True)]
    return np.concatenate([part.reshape(-1, *local.shape[1:]) for part in parts])


def platform(*, mapped: bool = False) -> str:
    """'cpu', 'gpu' or 'tpu': where this process computes, to be asked outside of compiled functions.

    It follows `jax.default_device`, except for the functions of `map_step` and `map_batch` (`mapped`), which run on all
    devices of the process whatever the default one is.
    """
    device = None if mapped else jax.config.jax_default_device
    return jax.default_backend() if device is None else getattr(device, "platform", device)


def programs_at_once() -> int:
    """How many compiled programs should run side by side on this process's devices.

    Two on a CPU that is one device: many operations use one core only, and two programs fill two cores. An accelerator
    runs one after the other, and several CPU devices are side by side already.
    """
    return 2 if platform(mapped=True) == "cpu" and local_device_count() == 1 else 1


def replicate(tree: Tree) -> Tree:
    """A copy of `tree` on every device of this process, with the same shapes and no shared memory."""
    sharding = _replicated()
    return jax.tree.map(lambda leaf: _copy_to(leaf, sharding), tree)


def uncommitted(tree: Tree) -> Tree:
    """The arrays on the default device, not committed to it.

    What is computed from committed arrays is committed too, and JAX compiles a program again when an argument that was
    not committed is: each step of an attack, whose first images come from outside, would be compiled twice.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def shard(batch: Tree) -> Tree:
    """Divides this process's batch among its devices: [b, ...] -> [devices, b / devices, ...], rows in order.

    Raises ValueError for a leaf without a first axis, or one that does not divide by the number of devices.
    """
    devices = local_device_count()

    def divide(leaf):
        if np.ndim(leaf) == 0 or leaf.shape[0] % devices:
            raise ValueError(
                f"an array of shape {np.shape(leaf)} cannot be divided among the {devices} devices of this process; "
                f"use a batch size that is a multiple of {device_count()}, the number of all devices, or pad the batch"
            )
        return leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:])

    return jax.tree.map(divide, batch)


def unshard(tree: Tree) -> Tree:
    """The inverse of `shard`, on the host: [devices, b, ...] -> NumPy [devices * b, ...]."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), tree)


def map_step(
    step: Callable[[Tree, Tree], tuple[Tree, Tree]], *, donate: bool = True
) -> Callable[[Tree, Tree], tuple[Tree, Tree]]:
    """Runs a training step on every device of every process, on a batch from `shard`.

    Args:
      step: `(state, batch) -> (state, metrics)` for one device. Whatever it returns must be the same on every device:
        gradients averaged with `jax.lax.pmean(..., AXIS)`, metrics summed with `psum`, batch statistics likewise. This
        is not checked: where devices differ, the value of the first one is returned.
      donate: reuse the memory of the state that is passed in, which is thereby lost to the caller. A state that does
        not come from `replicate` or from this function is copied first, and stays intact.
    """
    donated = (0,) if donate else ()
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=donated)
    return lambda state, batch: mapped(_placed(state), batch)


def map_batch(function: Callable[[Tree, Tree], Tree]) -> Callable[[Tree, Tree], Tree]:
    """Runs `(tree, batch) -> outputs`, an attack or an evaluation, on every device, on a batch from `shard`.

    Every output has the rows of the batch as its first axis, and is read with `unshard`. In a run of several processes,
    each must call the returned function the same number of times.
    """
    mapped = jax.pmap(function, axis_name=AXIS, in_axes=(None, 0), out_axes=0)
    return lambda tree, batch: mapped(_placed(tree), batch)


def _has_peers(environment: Mapping[str, str]) -> bool:
    """Whether the variables of the launcher or scheduler say that this process is one of several."""
    if asked := environment.get("CPRL_JAX_DISTRIBUTED"):
        return asked != "0"
    # Only `srun` sets this one of Slurm's variables: a batch script or a shell of a larger allocation is alone.
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    return (
        any(environment.get(name, "").isdigit() and int(environment[name]) > 1 for name in counts)
        or any("," in environment.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
        or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
        or "JAX_COORDINATOR_ADDRESS" in environment
    )


def _make_room_for_forced_devices() -> None:
    """Gives XLA's CPU backend more threads than forced devices.

    Forced CPU devices wait for each other inside collectives, each on a thread of one pool. A pool of two threads, on
    a machine of two cores, deadlocks as soon as steps are dispatched without waiting for the one before.
    """
    flag = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    forced = max(int(flag.group(1)) if flag else 1, jax.config.jax_num_cpu_devices)
    if forced > 1:
        os.environ.setdefault("NPROC", str(max(8, 2 * forced, os.cpu_count() or 1)))


def _leave(error: BaseException) -> None:
    """Reports `error` and ends this process now: an orderly exit would wait minutes for peers that cannot answer."""
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif found := for_people(error):
        print(f"error: {found[0]}", file=sys.stderr)
        code = found[1]
    elif message := lost_peer_message(error):
        print(message, file=sys.stderr)
        code = 3
    else:
        traceback.print_exception(error)
        print(f"Process {process_index()} of {process_count()} failed; the others will stop too.", file=sys.stderr)
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _replicated() -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(jax.local_devices()), (AXIS,)), PartitionSpec())


def _placed(tree: Tree) -> Tree:
    """`tree` with every leaf on all local devices; a leaf that is there already is not copied.

    Passed to a mapped function as it is, a leaf that lies elsewhere is refused, or compiled for separately, or (with
    several processes and donation) deleted twice.
    """
    sharding = _replicated()
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) and leaf.sharding == sharding else _copy_to(leaf, sharding),
        tree,
    )


def _copy_to(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _copy_to(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    # Through a fresh host array, because device_put between devices may hand out the very buffer it was given.
    return jax.device_put(np.array(leaf), sharding)
