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
        ("missing/" + "ä" * 130, "too long"),
        ("\ud800", "encode|surrogate"),
    ],
    ids=["home", "user", "nul", "name", "address", "bytes", "surrogate"],
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


def check(folder, **options):
    files.check_workdir(folder, entry="split.json", content="this run", **options)


def test_a_run_goes_into_any_folder_without_another_run(tmp_path):
    check(tmp_path / "none")
    check(tmp_path)
    for name in ("log.txt", ".DS_Store", "config.yaml"):
        (tmp_path / name).write_text("")
    for name in ("lost+found", ".git"):
        (tmp_path / name).mkdir()
    check(tmp_path, folders=("plain",))


@pytest.mark.parametrize("name", ["config.json", "report", "cells", "division", "split-00", "plain"])
def test_what_another_run_left_is_named(tmp_path, name):
    (tmp_path / "log.txt").write_text("")
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"holds {name}, which is not of this run; give another --workdir"):
        check(tmp_path, folders=("plain",))
    (tmp_path / "split.json").write_text("")
    check(tmp_path, folders=("plain",))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file; give another --workdir"):
        check(tmp_path / "file")


def test_leftovers_of_a_run_are_removed_and_nothing_else(tmp_path):
    others = [".hidden.tmp", "a.123.tmp", ".a.12x.tmp", "a.txt"]
    for folder in (tmp_path, tmp_path / "plain" / "evaluation"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in [".scores.npz.123.tmp", *others]:
            (folder / name).write_text("")
    (tmp_path / ".folder.1.tmp").mkdir()
    files.remove_leftovers(tmp_path)  # no run, as far as one can see: only at the top
    assert not (tmp_path / ".scores.npz.123.tmp").exists()
    assert (tmp_path / "plain" / "evaluation" / ".scores.npz.123.tmp").exists()
    (tmp_path / "config.json").write_text("")
    files.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path / "plain" / "evaluation")) == sorted(others)
    assert (tmp_path / ".folder.1.tmp").is_dir()


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with pytest.raises(OSError) as error, files.writing(tmp_path / "file") as file:
        file.truncate(-1)  # refused by the system, without a name
    assert error.value.filename == str(tmp_path / "file")


def test_names_that_are_no_text_can_be_written(tmp_path):
    files.write_file(tmp_path / "text", "caf\udce9")
    assert (tmp_path / "text").read_text() == "caf\\udce9"


def test_a_folder_for_libraries(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert files.utf8_path(tmp_path / "link" / "new", field="x") == (tmp_path / "real" / "new").resolve()
    with pytest.raises(UserError, match=r"^--workdir is '.*caf\\udce9', a name that is not UTF-8; rename it"):
        files.utf8_path(tmp_path / os.fsdecode(b"caf\xe9"), field="--workdir")


def test_file_names_never_meet():
    names = ["own:a/b", "own:a_b", "own_a_b", "a b", "a.b", "ä", "\udce4"]
    found = [files.file_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert found[2] == "own_a_b" and found[4] == "a.b", "a name that can be kept is kept"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for name in found)
