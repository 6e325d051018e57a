"""Starts a run as several processes of this machine.

    python launch/local.py --processes=2 -- --config=configs/quickstart.py --workdir=runs/quickstart

Everything after `--` goes to every process. Each gets `--devices_per_process` devices: GPUs where there are GPUs, CPU
devices otherwise. When one process fails, the others are stopped; the exit code is that of the first failure, and the
same command resumes from the last checkpoint.

The output of process 0 comes through as it is; lines of the others, which should be silent, carry their number.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time

USER_ERROR = 2
"""Exit code for a mistake in the configuration, which starting again does not remove."""

LOST_PEER = 3
"""Exit code of a process that ended because another one did."""


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    address = f"127.0.0.1:{_free_port()}"
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: received.append(number))
    children = []
    try:
        for index in range(options.processes):
            children.append(_start(options, index, address))
        return _watch(children, received, options.grace)
    finally:
        _stop(children, options.grace)


def environment(index: int, *, processes: int, devices_per_process: int, address: str) -> dict[str, str]:
    """The environment of process `index`: it describes the processes as a Slurm job step on this machine.

    JAX recognises that by itself, so the program needs no further arguments to know its place.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("OMPI_")}
    first_device = index * devices_per_process
    variables |= {
        "CPRL_JAX_DISTRIBUTED": "1",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": str(processes),
        "SLURM_NTASKS": str(processes),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,  # for this machine alone
        "JAX_LOCAL_DEVICE_IDS": ",".join(str(first_device + i) for i in range(devices_per_process)),
        "JAX_NUM_CPU_DEVICES": str(devices_per_process),
    }
    # CPU devices wait for each other on threads of one pool, which must be larger than their number.
    variables.setdefault("NPROC", str(max(8, 2 * devices_per_process, os.cpu_count() or 1)))
    return variables


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=_positive, default=2, help="how many processes to start (default: 2)")
    parser.add_argument("--devices_per_process", type=_positive, default=1, help="devices of each (default: 1)")
    parser.add_argument(
        "--grace",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long the others may take to notice a failure and report it, and then to follow SIGTERM, before they "
        "are killed (default: 5)",
    )
    parser.add_argument("--module", default="cprl_jax.main", help="what to run (default: cprl_jax.main)")
    parser.add_argument("arguments", nargs="*", help="after `--`: the arguments of the program")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(options: argparse.Namespace, index: int, address: str) -> subprocess.Popen:
    variables = environment(
        index, processes=options.processes, devices_per_process=options.devices_per_process, address=address
    )
    piped = {} if index == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    child = subprocess.Popen(
        [sys.executable, "-m", options.module, *options.arguments],
        env=variables,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_launcher if sys.platform == "linux" else None,
        **piped,
    )
    if index > 0:
        threading.Thread(target=_forward, args=(index, child.stdout), daemon=True).start()
    return child


def _die_with_launcher() -> None:
    """Between fork and exec: a launcher that is killed with SIGKILL must not leave processes at work behind it."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _forward(index: int, lines) -> None:
    for line in lines:
        if line.startswith("[Gloo] Rank"):  # greetings of the CPU's collective library, one per device and axis
            continue
        sys.stderr.write(f"[process {index}] {line.rstrip()}\n")
        sys.stderr.flush()


def _watch(children: list[subprocess.Popen], received: list[int], grace: float) -> int:
    """Waits for all to end well, one to fail or a signal to come; the launcher's exit code."""
    while not received:
        codes = [child.poll() for child in children]
        failed = [index for index, code in enumerate(codes) if code]
        if failed:
            # Several may have ended since the last look; the cause is not the one that lost another.
            cause = min(failed, key=lambda index: codes[index] == LOST_PEER)
            return _report(children, cause, grace)
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)
    name = signal.Signals(received[0]).name
    _say(f"{name}: stopping all processes; start the same command again to resume from the last checkpoint")
    return 128 + received[0]


def _report(children: list[subprocess.Popen], failed: int, grace: float) -> int:
    code = children[failed].returncode
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        time.sleep(0.05)
    if code == USER_ERROR:
        return code
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    _say(
        f"process {failed} of {len(children)} {how}, so the run is over; start the same command again to resume from "
        "the last checkpoint"
    )
    return 128 - code if code < 0 else code


def _stop(children: list[subprocess.Popen], grace: float) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + grace
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _say(message: str) -> None:
    print(f"[launch] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
