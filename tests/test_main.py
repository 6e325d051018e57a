"""What a person types, and what the system answers: one line and an exit code."""

import errno
import logging
import os
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from cprl_jax import main
from cprl_jax.experiments.cprl import estimate, experiment
from cprl_jax.runtime import files, lock, program

ROOT = Path(__file__).parents[1]
QUICKSTART = [f"--config={ROOT}/configs/quickstart.py", "--config.dataset.scenes=4", "--config.dataset.image_size=32"]
QUICKSTART += ["--config.dataset.levels=1"]


@pytest.fixture
def finish(monkeypatch, tmp_path, capsys):
    """Runs the program in this process; returns its exit code and what it says of its end."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, job=None):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
        flags.DEFINE_string("workdir", "", "", flag_values=values)
        monkeypatch.setattr(flags, "FLAGS", values)
        monkeypatch.setattr("sys.argv", ["main", *arguments])  # where config_flags looks for overrides
        if job is not None:
            monkeypatch.setattr(main, "_job", lambda name: job)
        code = program.run(lambda: main._run(["main", *arguments]))
        return code, "".join(line for line in capsys.readouterr().err.splitlines(True) if "error: " in line)

    return run


@pytest.mark.parametrize(
    "typed",
    ["n" * 300, "~no such user/x", "/proc/x", "data:image/png;base64," + "A" * 5000, "/dev/null/x", "a\0b"],
    ids=["long", "user", "proc", "address", "below a file", "nul"],
)
@pytest.mark.parametrize(
    "flag",
    [
        "--workdir",
        "--config.dataset.split_file",
        "--config.dataset.manual_dir",
        "--config.dataset.data_dir",
        "--config",
    ],
)
def test_an_impossible_path_is_one_line(finish, flag, typed, tmp_path):
    arguments = {"--config": [], "--config.dataset.split_file": [*QUICKSTART, f"--workdir={tmp_path / 'run'}"]}.get(
        flag, [f"--config={ROOT}/configs/livec.py", "--config.dataset.manual_dir=nowhere"]
    )
    code, line = finish(*arguments, f"{flag}={typed}")
    assert code == 2
    assert line.startswith("error: ") and line.count("\n") == 1 and len(line) < 6000
    assert [path.name for path in tmp_path.iterdir()] in ([], ["runs"])


@pytest.mark.parametrize(
    "typed", ["n" * 300, "~no such user/x", os.fsdecode(b"caf\xe9")], ids=["long", "user", "latin"]
)
def test_a_cache_that_cannot_be_is_refused(finish, typed):
    code, line = finish(*QUICKSTART, f"--config.compilation_cache={typed}")
    assert code == 2 and line.startswith("error: config.compilation_cache is ")


def test_a_workdir_whose_name_is_not_utf_8_is_refused_before_any_work(finish, tmp_path):
    code, line = finish(*QUICKSTART, f"--workdir={tmp_path}/" + os.fsdecode(b"caf\xe9"))
    assert code == 2 and "not UTF-8" in line and not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_one_line_and_the_work_is_resumed(finish, tmp_path, monkeypatch):
    def job(config, workdir):
        files.write_file(workdir / "split.json", "{}")

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, line = finish(*QUICKSTART, "--workdir=run", job=job)
    expected = f"error: {tmp_path / 'run' / 'split.json'}: No space left on device; the same command resumes"
    assert code == 1 and line.startswith(expected)
    assert finish(*QUICKSTART, "--workdir=run", job=job) == (0, "")
    assert os.listdir("run") == ["split.json"]


def test_mistakes_of_the_program_keep_their_traceback(finish):
    with pytest.raises(ZeroDivisionError):
        finish(*QUICKSTART, "--workdir=run", job=lambda config, workdir: 1 / 0)


def test_a_folder_in_use_is_refused(finish, tmp_path):
    if lock.fcntl is None:
        pytest.skip("no locks on Windows")
    with lock.held(tmp_path / "run"):
        code, line = finish(*QUICKSTART, "--workdir=run", job=lambda config, workdir: None)
    assert code == 2 and f"run is in use by process {os.getpid()} on" in line


def test_a_dry_run_leaves_nothing_behind(finish, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(estimate, "run", lambda config, workdir: asked.append((config.job, workdir.name)))
    assert finish(*QUICKSTART, "--config.dry_run", "--workdir=run") == (0, "")
    assert asked == [("train_and_evaluate", "run")] and not (tmp_path / "run").exists()


def test_the_log_of_libraries_is_short():
    def passes(level, *, path=logging.__file__, error=None):
        exception = (type(error), error, None) if error else None
        return main._is_worth_a_line(logging.LogRecord("absl", level, path, 1, "", (), exception))

    assert passes(logging.WARNING) and not passes(logging.INFO)
    assert passes(logging.INFO, path=files.__file__) and passes(logging.DEBUG, path=files.__file__, error=OSError())
    assert passes(logging.ERROR, error=ValueError("a mistake"))
    assert not passes(logging.ERROR, error=OSError(errno.ENOSPC, "No space left on device")), "told at the end"


class Killed(BaseException):
    """Stands in for kill -9."""


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_run_killed_while_it_writes_its_first_files_resumes(finish, tmp_path, monkeypatch, repeats):
    """Each start is killed at the first file that the one before did not write."""
    trained = []
    monkeypatch.setattr(experiment, "train", lambda config, method, *, workdir, **_: trained.append(workdir.name))
    arguments = [*QUICKSTART, "--workdir=run", "--config.job=train", "--config.methods=('plain',)"]
    arguments += [f"--config.dataset.repeats={repeats}", "--config.dataset.scenes=10"]
    replace, unlink = os.replace, Path.unlink
    for kill in range(2 * repeats):
        written = []

        def name_or_die(source, target, written=written):
            if written:
                raise Killed
            written.append(target)
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", name_or_die if kill else lambda *_: (_ for _ in ()).throw(Killed))
            patch.setattr(Path, "unlink", lambda path, **options: None)  # nothing is tidied up
            patch.setattr(Path, "rmdir", lambda path: None)
            patch.setattr(lock, "remove_leftovers", lambda folder: None)
            with pytest.raises(Killed):
                finish(*arguments)
        assert len(list(tmp_path.rglob(".*.tmp"))) and (tmp_path / "run" / lock.NAME).exists()
    assert Path.unlink is unlink
    trained.clear()
    assert finish(*arguments) == (0, "")
    folders = ["run"] if repeats == 1 else ["split-00", "split-01"]
    assert trained == folders
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()], "leftovers are removed"
    for folder in folders:
        assert all(path.stat().st_size for path in tmp_path.rglob(f"{folder}/*.json"))
