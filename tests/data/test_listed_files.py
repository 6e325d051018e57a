"""Which files a person means: files, folders, patterns; links in circles; what is hidden."""

import os

import pytest

from cprl_jax.data.listed_files import files


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("a.jpg", "b/c.png", "b/d/e.jpg", "b/.hidden/f.jpg", "b/._c.png", "g[1].jpg", "h*.jpg", "i/j.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["i", "a.jpg", "a.jpg"], ["i/j.jpg", "a.jpg", "a.jpg"]),
        (["b"], ["b/c.png"]),
        (["g[1].jpg", "h*.jpg"], ["g[1].jpg", "h*.jpg"]),  # their names
        (["[ag]*.jpg"], ["a.jpg", "g[1].jpg"]),
        (["*/*.jpg"], ["i/j.jpg"]),
        (["[bi]"], ["b/c.png", "i/j.jpg"]),
        (["**/*.jpg"], ["a.jpg", "b/d/e.jpg", "g[1].jpg", "h*.jpg", "i/j.jpg"]),
        (["b/**/*.png"], ["b/c.png"]),
        (["x*", "missing.jpg"], ["x*", "missing.jpg"]),  # whoever reads them complains
    ],
)
def test_names_folders_and_patterns(tree, arguments, expected):
    assert files(arguments) == (expected, [])


def test_folders_below(tree):
    assert files(["b", "i"], recursive=True) == (["b/c.png", "b/d/e.jpg", "i/j.jpg"], [])
    assert files(["empty"]) == ([], ["empty has no files in it"])
    (tree / "empty" / "deeper").mkdir()
    assert files(["empty"]) == ([], ["empty has no files in it; those of the folders below are for --recursive"])
    assert files(["empty"], recursive=True) == ([], ["empty has no files in it"])


def test_links_are_followed_and_end(tree):
    os.symlink(tree, tree / "b" / "d" / "all")
    os.symlink(tree / "b", tree / "b" / "d" / "itself")
    os.symlink("broken", tree / "i" / "broken")
    found, problems = files(["b"], recursive=True)
    assert problems == [] and len(found) == 7 and len({os.path.realpath(path) for path in found}) == 7
    assert found[:3] == ["b/c.png", "b/d/all/a.jpg", "b/d/all/g[1].jpg"]
    assert files(["b", "b"], recursive=True)[0] == 2 * found
    assert files(["i"], recursive=True)[0] == ["i/broken", "i/j.jpg"]
    assert len(files(["**/*"])[0]) == 7


def test_names_that_are_no_text(tree):
    os.mkdir(b"odd\xe9")
    open(b"odd\xe9/\xff.jpg", "w").close()
    assert files(["odd*"])[0] == files(["odd\udce9"], recursive=True)[0] == ["odd\udce9/\udcff.jpg"]
