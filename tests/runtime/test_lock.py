"""One run at a time in a folder, and none that is dead."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cprl_jax.runtime import lock, parallel
from cprl_jax.runtime.errors import UserError

fcntl = pytest.importorskip("fcntl", reason="no locks on Windows")
ROOT = Path(__file__).parents[2]

HOLDER = """
import sys, types
sys.modules["cprl_jax.runtime.parallel"] = parallel = types.ModuleType("parallel")  # without JAX, which takes long
parallel.is_main_process = lambda: True
import cprl_jax.runtime
cprl_jax.runtime.parallel = parallel
from cprl_jax.runtime.lock import held
with held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
def test_the_second_run_is_told_of_the_first_and_takes_over_when_it_is_killed(tmp_path):
    folder = tmp_path / "runs" / "one"
    first = holder(folder)
    for _ in range(2):  # asking changes nothing
        expected = rf"one is in use by process {first.pid} on \S+, since \d+-\d+-\d+ \d+:\d+:\d+; wait until"
        with pytest.raises(UserError, match=expected), lock.held(folder):
            pass
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (folder / ".split.json.123.tmp").write_text("half")  # what it was writing
    with lock.held(folder):
        assert [path.name for path in folder.iterdir()] == [lock.NAME]
        assert (folder / lock.NAME).read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_inside_one_that_is_in_use_is_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    first = holder(tmp_path / "run")
    expected = rf"run is in use by process {first.pid} "
    with pytest.raises(UserError, match=expected), lock.held(tmp_path / "run" / "split-00"):
        pass
    first.communicate()
    with lock.held(tmp_path / "run"), lock.held(tmp_path / "run" / "split-00"):  # by one process
        pass
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / lock.NAME).write_text("left behind")
    with lock.held(tmp_path / "run" / "split-00"):
        pass


def test_a_run_that_came_to_nothing_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="wrong field"), lock.held(tmp_path / "run"):
        raise UserError("wrong field")
    assert not (tmp_path / "run").exists()
    with lock.held(tmp_path / "run"):
        (tmp_path / "run" / "result").write_text("")
    assert os.listdir(tmp_path / "run") == ["result"]


def test_a_folder_that_was_there_stays(tmp_path):
    with lock.held(tmp_path):
        pass
    assert tmp_path.is_dir() and not os.listdir(tmp_path)


def test_a_lock_that_is_let_go_of_soon_is_waited_for(tmp_path):
    """As that of a killed process, which lives until the system has its memory back."""
    first = lock.held(tmp_path)
    first.__enter__()
    threading.Timer(0.3, first.__exit__, (None, None, None)).start()
    with lock.held(tmp_path):
        pass


def test_a_lock_that_its_holder_removes_in_the_last_moment_is_none(tmp_path, monkeypatch):
    """Between the opening and the locking of the file: the lock of a file without a name keeps nobody out."""
    flock, removed = fcntl.flock, []

    def late(file, operation):
        if not removed:
            removed.append((tmp_path / lock.NAME).unlink())
        flock(file, operation)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    with lock.held(tmp_path), pytest.raises(UserError, match="in use by"), lock.held(tmp_path):
        pass
    assert removed


@pytest.mark.parametrize("system", ["ENOTSUP", "ENOLCK", "ENOSYS", "Windows"])
def test_a_system_without_locks_stops_no_run(tmp_path, monkeypatch, system):
    def flock(file, operation):
        raise OSError(getattr(errno, system), "not here")

    if system == "Windows":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", flock)
    (tmp_path / ".config.json.123.tmp").write_text("perhaps of a run that goes on")
    with lock.held(tmp_path), lock.held(tmp_path):
        pass
    assert os.listdir(tmp_path) == [".config.json.123.tmp"]


def test_of_several_processes_the_main_one_locks(tmp_path, monkeypatch):
    with lock.held(tmp_path):
        monkeypatch.setattr(parallel, "is_main_process", lambda: False)
        with lock.held(tmp_path):
            pass
        assert (tmp_path / lock.NAME).exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/x"), "~no such user/run", "n" * 300):
        with pytest.raises(UserError, match="^--workdir"), lock.held(folder):
            pass
