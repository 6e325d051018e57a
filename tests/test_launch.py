"""Several processes of one machine, started by launch/local.py as a user would."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def launch(*arguments, module, path=ROOT / "tests", devices=1, grace=5.0):
    """Starts launch/local.py with two processes of a module of the folder `path`."""
    variables = dict(os.environ, PYTHONPATH=os.pathsep.join([str(path), str(ROOT)]))
    command = [sys.executable, "launch/local.py", f"--module={module}", f"--devices_per_process={devices}"]
    command += [f"--grace={grace}", "--", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, *, seconds=300):
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        pytest.fail(f"not finished after {seconds} s: {process.communicate()}")
    return process.returncode, output, errors


def batch_of(number):
    """The batch of tests/launch_program.py, of both processes."""
    return np.random.default_rng(number).normal(size=(8, 3))


def trained_weights(steps):
    """The weights that it arrives at, in float64 and in closed form."""
    weights = np.asarray([1.0, -2.0, 3.0])
    for number in range(steps):
        weights = weights - 0.1 * 2 / 8 * batch_of(number).T @ (batch_of(number) @ weights)
    return weights


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(tmp_path):
    for wish, steps, devices in (("", 5, 1), ("resume", 10, 2)):
        code, output, errors = finish(launch(tmp_path, wish, module="launch_program", devices=devices))
        assert code == 0, errors
        assert f"2 processes, {2 * devices} devices" in output
        assert "[process 1] a line of another process" in errors
        results = json.loads((tmp_path / "results.json").read_text())
        weights = trained_weights(steps)
        np.testing.assert_allclose(results["weights"], weights, rtol=1e-5)
        np.testing.assert_allclose(results["scores"], batch_of(0) @ weights, rtol=1e-4, atol=1e-5)
        assert results["everyone"] == [0.1, 1.1, 1.1]
        assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == [str(steps)]


def test_a_lost_process_ends_the_run_and_tells_how_to_go_on(tmp_path):
    code, _, errors = finish(launch(tmp_path, "lose_peer", module="launch_program"))
    assert code == 128 + signal.SIGKILL
    assert "Process 0 of 2 lost another process of this run" in errors
    assert "process 1 of 2 was killed by SIGKILL" in errors
    assert errors.count("start the same command again to resume from the last checkpoint") == 2
    assert not (tmp_path / "results.json").exists()


# The rest needs no JAX in the processes, only a program that ends, or does not.
STUBBORN = """
import os, signal, sys, time
index, folder = os.environ["SLURM_PROCID"], sys.argv[1]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(f"{folder}/{index}.part", "w") as file:
    file.write(str(os.getpid()))
os.rename(f"{folder}/{index}.part", f"{folder}/{index}.pid")
while len(sys.argv) == 2 or index == "0":
    time.sleep(0.05)
sys.exit(f"as told by {sys.argv[2]}" if sys.argv[2] != "2" else 2)
"""


@pytest.fixture
def stubborn(tmp_path):
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    return {"module": "stubborn", "path": tmp_path, "grace": 0.5}


def started(folder, processes, *, seconds=30):
    """The process ids, once all are there."""
    deadline = time.monotonic() + seconds
    files = [folder / f"{index}.pid" for index in range(processes)]
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, "the processes did not start"
        time.sleep(0.02)
    return [int(file.read_text()) for file in files]


def gone(ids, *, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(alive(number) for number in ids):
            return True
        time.sleep(0.05)
    return False


def alive(number):
    try:
        os.kill(number, 0)
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("failure", ["2", "failure"])
def test_a_failure_ends_all_with_its_exit_code(tmp_path, stubborn, failure):
    process = launch(tmp_path, failure, **stubborn)
    ids = started(tmp_path, 2)
    code, _, errors = finish(process)
    assert code == (2 if failure == "2" else 1)
    assert ("resume" in errors) == (failure != "2")
    assert ("[process 1] as told by failure" in errors) == (failure != "2")
    assert gone(ids, seconds=0.1)


def test_a_signal_reaches_processes_that_ignore_it(tmp_path, stubborn):
    process = launch(tmp_path, **stubborn)
    ids = started(tmp_path, 2)
    process.terminate()
    code, _, errors = finish(process)
    assert code == 128 + signal.SIGTERM
    assert "SIGTERM: stopping all processes" in errors
    assert gone(ids, seconds=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot tie a process to its parent")
def test_a_killed_launcher_leaves_nothing_running(tmp_path, stubborn):
    process = launch(tmp_path, **stubborn)
    ids = started(tmp_path, 2)
    process.kill()
    assert gone(ids)
    finish(process)


@pytest.mark.parametrize("argument", ["--processes=0", "--devices_per_process=many"])
def test_wrong_numbers_are_refused(argument):
    result = subprocess.run([sys.executable, "launch/local.py", argument], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "must be a whole number of at least 1" in result.stderr


@pytest.mark.parametrize("script", ["launch/tpu_pod.sh", "launch/slurm.sbatch", ".ci/run"])
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
