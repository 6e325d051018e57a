"""The commands, as a lab types them."""

import csv
import json
import shutil
import sqlite3
import subprocess
import sys
import urllib.request

import pytest

from cprl_jax.study import __main__ as program
from cprl_jax.study import bundle
from cprl_jax.study.store import Store, open_store

from .conftest import SHORT

FLAGS = [f"--{name}={value}" for name, value in SHORT.items()]


@pytest.fixture
def own_run(run, tmp_path):
    """A copy of the run, which commands write into."""
    return shutil.copytree(run, tmp_path / "own")


def call(capsys, *arguments, code=0):
    assert program.main(list(map(str, arguments))) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_from_a_simulated_study_to_its_export(own_run, tmp_path, capsys):
    common = (f"--run={own_run}", "--study=simulated")
    said = call(capsys, "simulate", f"--run={own_run}", "--observers=3", "--accelerated", *FLAGS)
    assert "observers: 3 began, 3 finished" in said and "18 to test pairs" in said
    assert said == call(capsys, "status", *common)
    call(capsys, "export", *common, f"--out={tmp_path / 'export'}")
    with (tmp_path / "export" / "answers.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * (6 + 1 + 2 + 2)
    assert json.loads((tmp_path / "export" / "study.json").read_text())["settings"]["trials"] == 6
    assert "made before" in call(capsys, "delete", *common, "--observer=2")
    assert "observers: 2 began" in call(capsys, "status", *common)
    for observer in (2, 10**20):
        assert "there is no such observer" in call(capsys, "delete", *common, f"--observer={observer}", code=2)
    said = call(capsys, "status", f"--run={own_run}", code=2)
    assert "there is no study in" in said and "this run has simulated (--study)" in said


def test_a_folder_of_another_study_begins_none(own_run, tmp_path, capsys):
    out = f"--out={tmp_path / 'folder'}"
    call(capsys, "static", f"--run={own_run}", out, *FLAGS)
    said = call(capsys, "static", f"--run={own_run}", "--study=other", out, *FLAGS, code=2)
    assert "has another study" in said and not (own_run / "other").exists()


def test_modelled_observers_stay_out_of_a_study_of_people(own_run, tmp_path, capsys):
    call(capsys, "static", f"--run={own_run}", f"--out={tmp_path / 'folder'}", *FLAGS)
    store = open_store(own_run / "study")
    store.begin(64 * "a", "Ann")
    store.close()
    said = call(capsys, "simulate", f"--run={own_run}", "--study=study", "--observers=1", code=2)
    assert "--study=study has answers of people" in said


def test_the_folder_and_the_way_back(own_run, tmp_path, capsys):
    said = call(capsys, "static", f"--run={own_run}", f"--out={tmp_path / 'folder'}", "--plans=2", *FLAGS)
    assert "wrong in more than 25 % of the catch trials, of at least 8, is left out" in said
    assert (tmp_path / "folder" / "index.html").is_file()
    (tmp_path / "bad.json").write_text("{}")
    wrong = call(capsys, "import", f"--run={own_run}", tmp_path / "bad.json", tmp_path / "none.json", code=1)
    assert wrong.count("error: ") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status"], "there is no study in"),
        (["serve", "--trials=0"], "--trials=0: it must be from 1"),
        (["serve", "--trial=abx"], "choose one of yesno"),
        (["serve", "--study=../elsewhere"], "give a name without slashes"),
        (["serve", "--study=.."], "give a name without slashes"),
        (["serve", "--study=report"], "report is not of a study (it has candidates.csv); give another name"),
        (["serve", "--study=config.json"], "is not of a study"),
        (["status", f"--study={300 * 'x'}"], "no usable path"),
        (["serve", "--consent=/nowhere/at/all"], "there is no file"),
        (["serve", "--host=256.0.0.1"], "cannot listen there"),
        (["simulate", "--observers=0"], "--observers=0: it must be at least 1"),
        (["simulate", "--thresholds=ssim"], "is not FIDELITY=DISTANCE"),
        (["simulate", "--thresholds=ssim=0.1,dists=0.1"], "dists is no fidelity of"),
        (["simulate", "--thresholds=ssim=0.1"], "--thresholds: none given for chebyshev"),
        (["simulate", "--url=localhost"], "--url=localhost: write http://HOST:PORT/"),
        (["simulate", "--url=http://localhost:99999/"], "write http://HOST:PORT/"),
        (["simulate", "--url=http://[::1"], "write http://HOST:PORT/"),
        (["simulate", "--url=http://127.0.0.1:1/"], "there is no study in"),
        (["static", "--out=NEW", "--plans=0"], "--plans=0: it must be from 1"),
        (["static", "--out=RUN/cells/web"], "in the folder of the run"),
        (["static", "--out=/dev/null/below"], "cannot be written to"),
        (["delete"], "--observer"),
    ],
    ids=[
        "no-study",
        "range",
        "choice",
        "path",
        "above",
        "report",
        "file",
        "long",
        "consent",
        "host",
        "observers",
        "thresholds",
        "fidelity",
        "fidelities",
        "url",
        "port",
        "half-address",
        "nobody",
        "plans",
        "own-folder",
        "in-a-file",
        "missing",
    ],
)
def test_a_mistake_gets_one_sentence(own_run, capsys, arguments, says):
    (own_run / "config.json").write_text("{}")
    before = sorted(own_run.rglob("*"))
    arguments = [text.replace("RUN", str(own_run)) for text in arguments]
    said = call(capsys, arguments[0], f"--run={own_run}", *arguments[1:], code=2)
    assert says in said and said.count("\n") == 1
    assert sorted(own_run.rglob("*")) == before


def test_a_study_that_could_not_begin_decides_nothing(own_run, tmp_path, capsys):
    arguments = ("static", f"--run={own_run}", f"--out={tmp_path / 'folder'}", "--plans=1", *FLAGS)
    (tmp_path / "ours.txt").write_text("One.")
    originals = shutil.move(own_run / "originals", tmp_path / "originals")
    call(capsys, *arguments, "--seed=1", f"--consent={tmp_path / 'ours.txt'}", code=2)
    shutil.move(originals, own_run / "originals")
    (tmp_path / "ours.txt").write_text("Two.")
    call(capsys, *arguments, "--seed=2", f"--consent={tmp_path / 'ours.txt'}")
    assert '["Two."]' in (tmp_path / "folder" / "data" / "study.js").read_text()


def test_a_folder_that_is_no_run_stays_as_it_is(tmp_path, capsys):
    assert "finish a run of the job perceptual_attack" in call(capsys, "serve", f"--run={tmp_path}", code=2)
    assert list(tmp_path.iterdir()) == []


def test_what_observers_agree_to_does_not_change_under_way(own_run, tmp_path, capsys):
    arguments = ("static", f"--run={own_run}", f"--out={tmp_path / 'folder'}", "--plans=1")
    file = tmp_path / "ours.txt"
    for text in ("We ask\r\nyou.\r\n \r\n<b>Twice</b>.\n", "We ask you.\n\n<b>Twice</b>.", None):
        file.unlink() if text is None else file.write_text(text)
        call(capsys, *arguments, f"--consent={file}", *FLAGS)
        content = (tmp_path / "folder" / "data" / "study.js").read_text()
        assert '["We ask you.", "<b>Twice</b>."]' in content
    file.write_text("Something else.")
    said = call(capsys, *arguments, f"--consent={file}", *FLAGS, code=2)
    assert "ours.txt: it has changed since the study began with the text in" in said
    call(capsys, *arguments, *FLAGS)


def test_settings_do_not_change_under_way(own_run, tmp_path, capsys):
    arguments = ("static", f"--run={own_run}", f"--out={tmp_path / 'folder'}", "--plans=1")
    call(capsys, *arguments, *FLAGS)
    call(capsys, *arguments, "--trials=6")
    assert "was begun with 6; begin another by --study=NAME" in call(capsys, *arguments, "--trials=7", code=2)


def test_a_full_disk_costs_an_import_and_is_said(own_run, tmp_path, capsys, monkeypatch):
    call(capsys, "static", f"--run={own_run}", f"--out={tmp_path / 'folder'}", "--plans=1", *FLAGS)

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "delete", full)
    said = call(capsys, "delete", f"--run={own_run}", "--observer=1", code=2)
    assert "database or disk is full" in said and said.count("\n") == 1


def test_without_npm_the_page_is_missed_in_a_sentence(own_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bundle, "VENDOR", tmp_path / "vendor")
    monkeypatch.setenv("PATH", str(tmp_path))
    serve, static = (
        ["serve", f"--run={own_run}", "--port=0"],
        ["static", f"--run={own_run}", f"--out={tmp_path / 'out'}"],
    )
    for command in (serve, static, ["bundle"]):
        said = call(capsys, *command, code=2)
        assert "needs npm to be put together" in said and "make study" in said
    assert not (own_run / "study").exists()


def test_serve_says_the_link_and_the_token_and_takes_requests(own_run, tmp_path):
    script = (
        "import sys; from pathlib import Path; from cprl_jax.study import __main__ as m, page; page.parts = dict; "
        "sys.exit(m.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "serve", f"--run={own_run}", "--port=0", *FLAGS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            while not lines or (lines[-1] and not lines[-1].startswith("Token")):
                lines.append(process.stdout.readline())
            link = lines[-2].split()[3].partition("?")[0]
            token = lines[-1].split()[3]
            request = urllib.request.Request(f"{link}api/admin/status", headers={"Authorization": f"Bearer {token}"})
            assert b"observers: 0 began" in urllib.request.urlopen(request, timeout=30).read()
        finally:
            process.kill()
    assert link.startswith("http://127.0.0.1:") and "BT.500" in "".join(lines)
