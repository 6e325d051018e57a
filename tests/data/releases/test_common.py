"""Files by name, MATLAB lists, and the checks that all readers share."""

import logging

import numpy as np
import pytest
import scipy.io

from cprl_jax.data.releases import _common
from cprl_jax.data.releases._common import Contents, Files, Record


@pytest.fixture
def folder(tmp_path):
    for name in ("a.BMP", "A.jpg", "a.jpg", "notes.txt", "c.png"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "folder.bmp").mkdir()
    return tmp_path


def test_files_by_name(folder):
    files = Files(folder)
    assert [path.name for path in files.paths] == ["A.jpg", "a.BMP", "a.jpg", "c.png"]
    assert files.find("a.jpg").name == "a.jpg" and files.find("C.PNG").name == "c.png"
    with pytest.raises(LookupError, match=f"no such image file in {folder.name}"):
        files.find("b.bmp")
    with pytest.raises(LookupError, match="several files of .* match: A.jpg, a.jpg"):
        files.find("a.JPG")
    assert Files(folder / "nowhere").paths == []


def test_images_of_rows(folder):
    problems = []
    names = ["c.png", "missing.bmp", "C.png"]
    labels = [_common.place(row, name) for row, name in enumerate(names, start=1)]
    paths = _common.find_images(Files(folder), names, labels, problems)
    assert paths == [folder / "c.png", None, None]
    assert problems == [
        f"row 2 ('missing.bmp'): no such image file in {folder.name}",
        "row 3 ('C.png'): listed before, in row 1 ('c.png')",
    ]


def test_pristine_images(folder):
    problems = []
    pristine = _common.find_pristine(Files(folder), ["c.png", "c.png", "a.bmp", "b.bmp"], problems)
    assert pristine == {"c": folder / "c.png", "a": folder / "a.BMP"}
    assert problems == [f"reference 'b.bmp': no such image file in {folder.name}"]


def test_unlisted_images_are_logged(folder, caplog):
    files = Files(folder)
    with caplog.at_level(logging.WARNING, logger="absl"):
        _common.warn_of_unlisted("Toy", files, files.paths)
        assert not caplog.records
        _common.warn_of_unlisted("Toy", files, [folder / "c.png", None])
    assert "Toy: 3 images" in caplog.text and "A.jpg, a.BMP, a.jpg" in caplog.text


def test_place():
    assert _common.place(3, "x.bmp") == "row 3 ('x.bmp')"
    assert _common.place(3, "x.bmp", "dmos.csv") == "dmos.csv, row 3 ('x.bmp')"


def test_lists_of_matlab(tmp_path):
    cells = np.empty((2, 1), object)
    cells[:, 0] = ["one.bmp ", np.array([["two.bmp"]], object)]  # cells in cells
    path = tmp_path / "lists.mat"
    scipy.io.savemat(path, {"names": cells, "scores": np.array([[1, 2.5]]), "flags": np.array([[True], [False]])})
    problems = []
    assert _common.read_mat(path, "names", problems, kind=str) == ["one.bmp", "two.bmp"]
    assert _common.read_mat(path, "scores", problems) == [1.0, 2.5]
    assert _common.read_mat(path, "flags", problems) == [1.0, 0.0]
    assert problems == []
    assert _common.read_mat(path, "names", problems) is None
    assert _common.read_mat(path, "scores", problems, kind=str) is None
    assert _common.read_mat(path, "other", problems) is None
    assert _common.read_mat(tmp_path / "no.mat", "other", problems) is None
    path.write_bytes(b"not a mat file" * 50)
    assert _common.read_mat(path, "names", problems) is None
    label = f"{tmp_path.name}/lists.mat"
    assert problems[0] == f"{label} holds no number in row 1, 2"
    assert problems[1] == f"{label} holds no image name in row 1, 2"
    assert problems[2] == f"{label} has no variable other, only names, scores, flags"
    assert problems[3] == f"{tmp_path.name}/no.mat is missing"
    assert problems[4].startswith(f"{label} is not a readable MATLAB file (")


def test_lengths_and_counts():
    problems = []
    assert _common.check_lengths({"a": [1, 2], "b": [3, 4]}, problems)
    _common.check_count(2, 2, "images", problems)
    assert problems == []
    assert not _common.check_lengths({"a": [1, 2], "b": [3], "c": [3, 4], "d": []}, problems)
    _common.check_count(2, 3, "images", problems)
    assert problems == [
        "the lists differ in length: a has 2 rows, b 1",
        "the lists differ in length: a has 2 rows, d 0",
        "images: 2, but the release has 3",
    ]


@pytest.mark.parametrize("score", [np.nan, -0.01, 100.01, np.inf, -np.inf])
def test_scores_that_are_off_the_scale(score):
    problems = []
    assert not _common.check_scores([0, score, 100], 0, 100, problems, labels=["a", "b", "c"], what="mark")
    assert problems == [f"b: the mark is {score}, not within 0..100"]
    assert _common.check_scores([0, 1e9], 0, np.inf, problems, labels=["a", "b"])
    assert not _common.check_scores([np.inf], 0, np.inf, problems, labels=["a"])
    assert problems[1:] == ["a: the score is inf, not a number of 0 or more"]


def test_published_range():
    problems = []
    _common.check_range([3.0, 1.0004, 5.0], 1, 5, "scores", problems)
    _common.check_range([], 1, 5, "scores", problems)
    assert problems == []
    for scores in ([1, 4.9], [1.1, 5], [5 - 1, 5 - 5]):
        _common.check_range(scores, 1, 5, "scores", problems)
    assert problems[0] == "scores range over 1..4.9, but those of the release over 1..5"
    assert len(problems) == 3


def record(row, path, reference, distortion="blur"):
    scores = {"mos": 1.0, "mos_raw": 1.0, "mos_std": 0.0}
    return Record(row, path.name, path, reference=reference, distortion=distortion, **scores)


def test_images_that_cannot_be_read(tmp_path, tiny_image):
    good, cut, absent = tmp_path / "good.bmp", tmp_path / "cut.bmp", tmp_path / "absent.bmp"
    good.write_bytes(tiny_image(1))
    cut.write_bytes(tiny_image(2)[:-10])
    records = tuple(record(row, path, "scene") for row, path in enumerate((good, cut, absent), start=1))
    problems = _common.unreadable(Contents(records, {"good": good, "cut": cut}))
    assert len(problems) == 3
    assert problems[0].startswith("row 2 ('cut.bmp'): the image cannot be read: ")
    assert problems[1].startswith("row 3 ('absent.bmp'): the image cannot be read: ")
    assert problems[2].startswith("reference 'cut.bmp': the image cannot be read: ")


def test_identical_images(tmp_path):
    paths = [tmp_path / f"{i}.bmp" for i in range(6)]
    for path, content in zip(paths, "xxyyzz", strict=True):
        path.write_text(content)
    digest_of = _common.digests(paths)
    texts = [f"these image files are identical: {i}.bmp, {i + 1}.bmp" for i in (0, 2, 4)]
    records = (
        *(record(row, paths[row], "one") for row in (0, 1)),  # both of one scene
        *(record(row, paths[row], f"scene{row}") for row in (2, 3)),  # of two scenes
        *(record(row, paths[row], paths[row].name, distortion="") for row in (4, 5)),  # authentic
    )
    contents = Contents(records)
    assert _common.identical(contents, digest_of) == (texts, [])
    assert _common.identical(contents, digest_of, ["blur"]) == (texts[1:], texts[:1])
    assert _common.identical(contents, digest_of, [""]) == (texts[:2], texts[2:])
    pristine = Contents(records[:1], {"a": paths[0], "b": paths[1]})  # a version may be identical with its photograph
    assert _common.identical(pristine, digest_of, ["", "blur"]) == (["these image files are identical: a, b"], [])
