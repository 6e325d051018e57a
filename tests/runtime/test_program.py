"""How programs end: with an exit code and one line, whatever their terminal, their disk or their user does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cprl_jax.runtime import program
from cprl_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
TABLE = "SRCC ── – −0.1 → 0.2 × ±"


def start(body, *, shell="", **variables):
    """Starts a program that owns its terminal; `shell` is what stands behind the command."""
    text = f"import sys\nfrom cprl_jax.runtime import program\nprogram.own_terminal('stopped; resume')\n{body}"
    command = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {shell}', sys.executable, text]
    variables = dict(os.environ, PYTHONPATH=str(ROOT), **variables)
    return subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def finish(body, **options):
    process = start(body, **options)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_table_is_legible_in_every_encoding(encoding):
    expected = {"ascii": r"SRCC -- - -0.1 > 0.2 x \xb1", "cp1252": "SRCC -- – -0.1 > 0.2 × ±"}
    expected |= {"latin-1": "SRCC -- - -0.1 > 0.2 × ±", "utf-8": TABLE}
    body = f"sys.stdout.flush(); print({TABLE!r}); sys.stdout.flush()"
    text = subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom cprl_jax.runtime import program\nprogram.own_terminal('')\n{body}"],
        env=dict(os.environ, PYTHONPATH=str(ROOT), PYTHONIOENCODING=encoding),
        capture_output=True,
        check=True,
    ).stdout.decode(encoding)
    assert text.strip() == expected[encoding]
    assert len(text.strip()) - 3 * (encoding == "ascii") == len(TABLE), "columns stay in line"


def test_who_reads_no_more_does_not_end_the_work():
    body = "def work():\n  for i in range(3): program.show('x' * 100000)\n  print('done', file=sys.stderr)\n"
    code, _, errors = finish(body + "sys.exit(program.run(work))", shell="| true")
    assert (code, errors) == (0, "done\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_the_output_is_one_line():
    code, _, errors = finish("sys.exit(program.run(lambda: program.show('table')))", shell="> /dev/full")
    assert code == 1
    assert errors.startswith("error: the standard output: No space left on device") and errors.count("\n") == 1


@pytest.mark.parametrize("shell", ["2> /dev/full", "2>&-", "2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}"])
def test_where_messages_and_progress_go_costs_no_work(shell):
    body = "import tqdm\nfor i in tqdm.tqdm(range(3), mininterval=0): print('x' * 9999, file=sys.stderr)\n"
    code, output, _ = finish(body + "print('done')", shell=shell)
    assert (code, output) == (0, "" if "true" in shell else "done\n")


def test_a_byte_of_a_name_that_is_no_text_stays_that_byte():
    text = "caf\udce9 \u65e5\udce9"
    assert text.encode("utf-8", "readable") == b"caf\xe9 \xe6\x97\xa5\xe9"
    assert text.encode("ascii", "readable") == b"caf\xe9 \\u65e5\xe9"
    assert text.encode("utf-16-le", "readable").decode("utf-16-le") == "caf\\udce9 \u65e5\\udce9"


def test_a_closed_output_is_none():
    assert finish("sys.exit(program.run(lambda: program.show('table')))", shell=">&-")[0] == 0


BUSY = {
    "asleep": "time.sleep(60)",
    "in a long computation": "import ctypes; ctypes.CDLL(None).usleep(60_000_000)",  # which no exception can enter
    "in a library that swallows": "\nwhile True:\n  try: time.sleep(60)\n  except BaseException: pass",
    "in a callback": "\nclass A:\n  def __del__(self): time.sleep(60)\ndel [A()][0]",
}


@pytest.mark.parametrize("what", BUSY)
def test_ctrl_c_ends_anything_at_once(what):
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom cprl_jax.runtime import program\nprogram.own_terminal('stopped; resume')\n"
            f"print('ready', flush=True)\n{BUSY[what]}",
        ],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.strip()) == (130, "stopped; resume")


def test_in_the_background_ctrl_c_is_for_others():
    body = "import signal\nassert signal.getsignal(signal.SIGINT) == signal.SIG_IGN"
    text = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom cprl_jax.runtime import program\n{body}"
    text += "\nprogram.own_terminal('')\n" + body
    subprocess.run([sys.executable, "-c", text], env=dict(os.environ, PYTHONPATH=str(ROOT)), check=True)


def test_the_program_starts_with_nothing_that_takes_time():
    """Until `own_terminal`, Ctrl-C is Python's."""
    text = (
        "import sys; from cprl_jax import main; print(*{'absl', 'jax', 'numpy', 'ml_collections'} & set(sys.modules))"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_errors_for_people_are_a_line_and_the_others_pass(capsys):
    def raising(error):
        def work():
            raise error

        return work

    assert program.run(lambda: None) == 0
    assert program.run(raising(UserError("no such thing"))) == 2
    assert capsys.readouterr().err == "error: no such thing\n"
    assert program.run(raising(FileNotFoundError(2, "No such file or directory", "a.csv"))) == 1
    assert capsys.readouterr().err == "error: a.csv: No such file or directory\n"
    with pytest.raises(ZeroDivisionError):
        program.run(raising(ZeroDivisionError()))
