"""Files that are whole or absent, and caches that know what they depend on."""

import os
from pathlib import Path

import numpy as np
import pytest

from cprl_jax.runtime import files
from cprl_jax.runtime.errors import UserError

ARRAYS = {"a": np.arange(3.0), "b": np.array("text")}


def test_a_typed_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("~/a/b", field="x") == tmp_path / "a" / "b"
    assert files.user_path(tmp_path, field="x") == tmp_path
    assert files.user_path("a/../b", field="x") == Path("a/../b"), "a relative one stays relative"
    (tmp_path / "file").write_text("")
    assert files.user_path("~/file/under", field="x") == tmp_path / "file" / "under", "for the caller to miss"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("~", "home"),
        ("~no such user/a", "home"),
        ("a\0b", "null"),
        ("n" * 300, "too long"),
        ("data:image/png;base64," + "A" * 9000, "too long"),
        ("\ud800", "encode|surrogate"),
    ],
    ids=["home", "user", "nul", "name", "address", "surrogate"],
)
def test_an_unusable_path_is_named_in_one_short_sentence(monkeypatch, text, reason):
    if text == "~":  # as in a container whose user has no entry in the list of users
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match=rf"^--workdir is '.*\(.*({reason}).*\); give another$") as error:
        files.user_path(text, field="--workdir")
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    files.write_file(path, "old")
    with pytest.raises(RuntimeError), files.writing(path) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file.txt"], "nothing is left behind"


def test_text_is_utf_8(tmp_path):
    files.write_file(tmp_path / "text", "ä\n")
    assert (tmp_path / "text").read_bytes() == "ä\n".encode()
    files.write_file(tmp_path / "text", b"\x00")
    assert (tmp_path / "text").read_bytes() == b"\x00"


def test_a_cache_is_found_by_its_stamp_alone(tmp_path):
    path = tmp_path / "cache.npz"
    assert files.read_cache(path, "stamp") is None
    files.write_cache(path, "stamp", ARRAYS)
    found = files.read_cache(path, "stamp")
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], ARRAYS["a"])
    assert str(found["b"]) == "text"
    assert list(files.read_cache(path, "stamp", without=("a",))) == ["b"]
    assert files.read_cache(path, "another stamp") is None


@pytest.mark.parametrize("damage", ["empty", "cut", "no archive", "no stamp", "a folder"])
def test_a_damaged_cache_is_no_cache(tmp_path, damage):
    path = tmp_path / "cache.npz"
    files.write_cache(path, "stamp", ARRAYS)
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "no stamp":
        files.write_arrays(path, ARRAYS)
    else:
        path.write_bytes({"empty": b"", "cut": content[:-20], "no archive": b"text"}[damage])
    assert files.read_cache(path, "stamp") is None


def test_a_folder_of_something_else_is_refused(tmp_path):
    run = tmp_path / "run"
    for _ in range(2):  # none there, then an empty one
        files.check_workdir(run, entry="cells", content="a job")
        run.mkdir(exist_ok=True)
    (run / "note.txt").write_text("")
    with pytest.raises(UserError, match="run holds something else than a job; give another --workdir"):
        files.check_workdir(run, entry="cells", content="a job")
    (run / "cells").mkdir()
    files.check_workdir(run, entry="cells", content="a job")
    with pytest.raises(UserError, match="holds something else"):
        files.check_workdir(run / "note.txt", entry="cells", content="a job")
