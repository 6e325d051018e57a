"""The CID2013 reader against releases that the test writes: a workbook of many sheets, a tree of sets and scenes."""

import os

import numpy as np
import openpyxl
import pytest
from PIL import Image

from cprl_jax.data.releases import build, cid2013
from cprl_jax.runtime.errors import UserError

LOW, HIGH = cid2013.SCORE_RANGE
DEVICES = {"I": 14, "II": 13, "III": 13, "IV": 13, "V": 12, "VI": 14}
SCENES = {"V": (1, 2, 3, 5, 6, 8), "VI": (1, 2, 3, 6, 7, 8)}  # the others have the first six
HEADER = ["Source_ID", "Image set", "Image set specific  MOS", "Realigned MOS", "Sharpness"]


class Release:
    """A folder laid out as the official release; change `header` or `rows` (name, score) and call `write_workbook`."""

    def __init__(self, folder, devices, images=True):
        self.root = folder / "CID2013"
        names = [
            (number, scene, f"IS_{image_set}_C{scene:02}_D{device:02}")
            for number, image_set in enumerate(DEVICES, start=1)
            for scene in SCENES.get(image_set, range(1, 7))
            for device in range(1, devices[image_set] + 1)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        blank = folder / "blank"  # many links to one file are made faster than many files
        blank.touch()
        rng = np.random.default_rng(11)
        scores = rng.permutation(np.linspace(LOW, HIGH, len(names)))
        self.header = list(HEADER)
        self.rows = [[name, float(score)] for (_, _, name), score in zip(names, scores, strict=True)]
        for number, scene, name in names:
            path = self.root / f"IS{number}" / f"co{scene}" / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if images:
                Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(path)
            else:
                os.link(blank, path)
        self.workbook = self.root / "CID2013 data - version 12112014.xlsx"
        self.write_workbook()

    def write_workbook(self, sheet="CID2013 MOS"):
        book = openpyxl.Workbook()
        book.active.title = "Read me"
        book.active.append(["Image set specific and realigned scores"])
        page = book.create_sheet(sheet)
        page.append(self.header)
        for i, (name, score) in enumerate(self.rows):
            page.append([name, name.split("_")[1], (score if isinstance(score, float) else 0) / 2 + 20, score, 50 + i])
        page.append([None] * 5)
        book.create_sheet("Observers").append(["id", "age"])
        book.save(self.workbook)

    def file(self, row):
        name = self.rows[row][0]
        return next(self.root.rglob(f"{name}.jpg"))


@pytest.fixture
def small(monkeypatch):
    """One device in each set, and a reader that expects that."""
    monkeypatch.setattr(cid2013, "IMAGES", dict.fromkeys(DEVICES, 6))


@pytest.fixture
def release(small, tmp_path):
    return Release(tmp_path / "manual", dict.fromkeys(DEVICES, 1))


@pytest.fixture
def undecoded(small, tmp_path):
    """The same with empty image files, which is all that `read` needs."""
    return Release(tmp_path / "manual", dict.fromkeys(DEVICES, 1), images=False)


def test_full_release_has_no_problem(tmp_path):
    release = Release(tmp_path, DEVICES, images=False)
    contents = cid2013.read(release.root)
    assert contents.problems == []
    assert len(contents.records) == 474 and not contents.pristine


def test_reads_back_the_realigned_scores(release, tmp_path):
    dataset = build.load(cid2013, manual_dir=str(release.root.parent), data_dir=str(tmp_path / "tfds"))
    assert dataset.name == "cid2013" and len(dataset) == 36
    assert dataset.names.tolist() == [f"{name}.jpg" for name, _ in release.rows]
    raw = np.array([score for _, score in release.rows])
    np.testing.assert_allclose(dataset.mos_raw, raw, rtol=1e-5)
    np.testing.assert_allclose(dataset.mos, raw + 10, rtol=1e-5)  # negative scores fit onto 0..100
    assert np.isnan(dataset.mos_std).all()
    assert dataset.references.tolist() == dataset.names.tolist()
    assert set(dataset.distortions) == {""} and set(dataset.levels) == {0} and set(dataset.parts) == {""}
    for i in (0, 35):
        np.testing.assert_array_equal(dataset.images[i], np.asarray(Image.open(release.file(i))))


def missing_image(release):
    release.file(25).unlink()


def misplaced_image(release):
    release.file(25).rename(release.root / "IS1" / "co1" / release.file(25).name)


def missing_workbook(release):
    release.workbook.unlink()


def two_workbooks(release):
    release.workbook.with_name("CID2013 data - copy.xlsx").write_bytes(release.workbook.read_bytes())


def missing_sheet(release):
    release.write_workbook(sheet="MOS")


def missing_column(release):
    release.header[3] = "MOS"
    release.write_workbook()


def not_a_workbook(release):
    release.workbook.write_text("<html>please log in</html>")


def out_of_range(release):
    release.rows[7][1] = 90.5
    release.write_workbook()


def not_a_number(release):
    release.rows[7][1] = None
    release.write_workbook()


def other_name(release):
    release.rows[7][0] = "IS_VII_C01_D01"
    release.write_workbook()


def repeated(release):
    release.rows[8][0] = release.rows[7][0]
    release.write_workbook()


def short(release):
    release.rows.pop()
    release.write_workbook()


def set_specific_scores(release):
    release.header[2:4] = "Realigned MOS", "old"
    release.write_workbook()


@pytest.mark.parametrize(
    "damage, said",
    [
        (missing_image, "row 26 ('IS_V_C02_D01.jpg'): IS5: no such image file in co2"),
        (misplaced_image, "row 26 ('IS_V_C02_D01.jpg'): IS5: no such image file in co2"),
        (missing_workbook, "one file 'CID2013 data - version ....xlsx' is needed, found none"),
        (two_workbooks, "found several: CID2013 data - copy.xlsx, CID2013 data - version 12112014.xlsx"),
        (missing_sheet, "has no sheet 'CID2013 MOS', only Read me, MOS, Observers"),
        (missing_column, "has no column Realigned MOS, only Source_ID, Image set, Image set specific  MOS, MOS"),
        (not_a_workbook, "CID2013 data - version 12112014.xlsx is not a readable XLSX file"),
        (out_of_range, "row 8 ('IS_II_C02_D01.jpg'): the score is 90.5, not within -10..90"),
        (not_a_number, "row 8 ('IS_II_C02_D01.jpg'): the score is nan"),
        (other_name, "CID2013 MOS, row 8: 'IS_VII_C01_D01' is not an image of this release"),
        (repeated, "row 9 ('IS_II_C02_D01.jpg'): listed before, in row 8"),
        (short, "CID2013 MOS, rows of image set VI: 5, but the release has 6"),
        (set_specific_scores, "Realigned MOS: scores range over 15.2255..63.941, but those of the release over -9.54"),
    ],
)
def test_damage_is_named(undecoded, damage, said):
    damage(undecoded)
    assert said in " | ".join(cid2013.read(undecoded.root).problems)


def test_all_problems_at_once_and_nothing_is_written(release, tmp_path):
    out_of_range(release)
    missing_image(release)
    path = release.file(35)
    path.write_bytes(path.read_bytes()[:-60])
    release.file(34).write_bytes(release.file(33).read_bytes())
    with pytest.raises(UserError, match="4 problems") as caught:
        build.load(cid2013, manual_dir=str(release.root), data_dir=str(tmp_path / "tfds"))
    message = str(caught.value)
    for part in ("the score is 90.5", "IS5: no such image file", "identical: IS_VI_C06_D01.jpg, IS_VI_C07_D01.jpg"):
        assert part in message
    assert "row 36 ('IS_VI_C08_D01.jpg'): the image cannot be read" in message and "\n" not in message
    assert not (tmp_path / "tfds").exists()


def test_absent_release_says_what_goes_where(tmp_path):
    with pytest.raises(UserError, match=r"no CID2013 release .*12112014\.xlsx"):
        build.load(cid2013, manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
