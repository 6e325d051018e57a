"""The VCL@FER reader against releases that the test writes, with results as XLS, XLSX and CSV."""

import csv
import os

import numpy as np
import openpyxl
import pytest
from PIL import Image

from cprl_jax.data.releases import build, vcl
from cprl_jax.runtime.errors import UserError

LOW, HIGH = vcl.SCORE_RANGE


class Release:
    """A folder laid out as the official release; change `header` or `rows` (name, score) and call `write_results`."""

    reader = vcl

    def __init__(self, folder, scenes, images=True):
        self.root = folder / "vcl_fer"
        self.root.mkdir(parents=True)
        keys = [(s, k, level) for s in range(1, scenes + 1) for k in range(4) for level in range(1, 7)]
        rank = {key: i for i, key in enumerate(sorted(keys, key=lambda key: (key[2], key[1], key[0])))}
        kinds = ("AWGN", "BLU", "J2K", "JPG")
        self.header = ["Image", "Votes", "MOS"]
        self.rows = [
            [f"IMG_{s:02}_{kinds[k]}_{level}", HIGH - (HIGH - LOW) * rank[s, k, level] / (len(keys) - 1)]
            for s, k, level in keys
        ]
        blank = folder / "blank"  # many links to one file are made faster than many files
        blank.touch()
        rng = np.random.default_rng(13)
        for name in [name for name, _ in self.rows] + [f"IMG_{s:02}" for s in range(1, scenes + 1)]:
            path = self.root / (f"{name}.jpg" if "JPG" in name else f"{name}.bmp")
            if images:
                Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(path)
            else:
                os.link(blank, path)
        self.write_results()

    def table(self):
        return [self.header, *([name, 20, score] for name, score in self.rows)]

    def write_results(self, suffix="csv"):
        for path in self.root.glob("results.*"):
            path.unlink()
        path = self.root / f"results.{suffix}"
        if suffix == "csv":
            with open(path, "w", newline="", encoding="utf-8-sig") as file:  # as spreadsheet programs write it
                csv.writer(file).writerows(self.table())
        elif suffix == "xlsx":
            book = openpyxl.Workbook()
            for row in self.table():
                book.active.append(row)
            book.save(path)
        else:
            book = pytest.importorskip("xlwt").Workbook()
            book.add_sheet("About").write(0, 0, "VCL@FER")
            sheet = book.add_sheet("Results")  # with a title, and the photographs among the rows
            for i, row in enumerate(
                [["Subjective results"], [], *self.table(), ["IMG_01", 20, 90.0], ["mean", "", 44]]
            ):
                for j, cell in enumerate(row):
                    sheet.write(i, j, cell)
            book.save(str(path))


def test_full_release_has_no_problem(tmp_path):
    made = Release(tmp_path, 23, images=False)
    contents = vcl.read(made.root)
    assert contents.problems == []
    assert len(contents.records) == 552 and len(contents.pristine) == 23


@pytest.mark.parametrize("suffix", ["xls", "xlsx", "csv"])
def test_reads_back_what_the_release_says(made, tmp_path, suffix):
    made.write_results(suffix)
    dataset = build.load(vcl, manual_dir=str(made.root.parent), data_dir=str(tmp_path / "tfds"))
    assert dataset.name == "vcl" and len(dataset) == 48
    assert dataset.names.tolist() == [name for name, _ in made.rows]
    np.testing.assert_allclose(dataset.mos, [score for _, score in made.rows], rtol=1e-5)
    np.testing.assert_array_equal(dataset.mos_raw, dataset.mos)
    assert np.isnan(dataset.mos_std).all()
    assert dataset.references.tolist() == ["IMG_01"] * 24 + ["IMG_02"] * 24
    assert dataset.distortions[:24].tolist() == [kind for kind in vcl.DISTORTIONS for _ in range(6)]
    assert dataset.levels.tolist() == [1, 2, 3, 4, 5, 6] * 8
    for i, name in ((0, "IMG_01_AWGN_1.bmp"), (47, "IMG_02_JPG_6.jpg")):
        np.testing.assert_array_equal(dataset.images[i], np.asarray(Image.open(made.root / name)))
    np.testing.assert_array_equal(dataset.pristine["IMG_02"], np.asarray(Image.open(made.root / "IMG_02.bmp")))


def test_standard_deviations_if_the_table_has_them(undecoded):
    undecoded.header[1] = "Std"
    undecoded.write_results()
    assert {record.mos_std for record in vcl.read(undecoded.root).records} == {20.0}


def test_other_spellings_and_folders(undecoded):
    images, references = undecoded.root / "images", undecoded.root / "Ref_Images"
    images.mkdir()
    references.mkdir()
    for path in list(undecoded.root.glob("IMG_*")):
        name = path.name.replace("_BLU_", "_Blur_").lower()
        path.rename((references if len(path.stem) == 6 else images) / name)
    undecoded.rows = [[f"{name.lower()}.bmp", score] for name, score in undecoded.rows]
    undecoded.write_results()
    contents = vcl.read(undecoded.root)
    assert contents.problems == []
    assert contents.records[6].name == "IMG_01_BLU_1" and contents.records[6].path.name == "img_01_blur_1.bmp"


def missing_image(made):
    (made.root / "IMG_01_BLU_2.bmp").unlink()


def missing_images(made):
    for path in made.root.glob("IMG_*"):
        path.unlink()


def missing_reference(made):
    (made.root / "IMG_02.bmp").unlink()


def missing_results(made):
    (made.root / "results.csv").unlink()


def other_columns(made):
    made.header[2] = "PSNR"
    made.write_results()


def not_a_workbook(made):
    (made.root / "results.csv").unlink()
    (made.root / "results.xls").write_text("<html>please log in</html>")


def out_of_range(made):
    made.rows[7][1] = 100.5
    made.write_results()


def not_a_number(made):
    made.rows[7][1] = "?"
    made.write_results()


def other_name(made):
    made.rows[7][0] = "IMG_01_BLU_7"
    made.write_results()


def repeated(made):
    made.rows[8][0] = "img_01_blur_2.BMP"
    made.write_results()


def short(made):
    made.rows.pop()
    made.write_results()


def flipped(made):
    for row in made.rows:
        row[1] = LOW + HIGH - row[1]
    made.write_results()


def other_scale(made):
    for row in made.rows:
        row[1] /= 20
    made.write_results()


@pytest.mark.parametrize(
    "damage, said",
    [
        (missing_image, "row 8 ('IMG_01_BLU_2'): no such image file"),
        (missing_images, "no image named like IMG_01_AWGN_1.bmp in vcl_fer or a folder in it"),
        (missing_reference, "reference 'IMG_02': no such image file"),
        (missing_results, "results.xls (or .xlsx or .csv) is missing"),
        (other_columns, "results.csv has no column with the header MOS beside one of image names"),
        (not_a_workbook, "results.xls is not a readable XLS file"),
        (out_of_range, "row 8 ('IMG_01_BLU_2'): the score is 100.5, not within 0..100"),
        (not_a_number, "row 8 ('IMG_01_BLU_2'): the score is nan"),
        (other_name, "results.csv, row 8: 'IMG_01_BLU_7' is not an image of this release"),
        (repeated, "row 9 ('IMG_01_BLU_2'): listed before, in row 8"),
        (repeated, "results.csv lacks 1 of the 48 images of the release: IMG_01_BLU_3"),
        (short, "results.csv lacks 1 of the 48 images of the release: IMG_02_JPG_6"),
        (flipped, "the labels look flipped"),
        (
            other_scale,
            "results.csv: scores range over 0.078295..4.82616, but those of the release over 1.5659..96.5232",
        ),
    ],
)
def test_damage_is_named(undecoded, damage, said):
    damage(undecoded)
    assert said in " | ".join(vcl.read(undecoded.root).problems)


def test_all_problems_at_once_and_nothing_is_written(made, tmp_path):
    out_of_range(made)
    missing_reference(made)
    path = made.root / "IMG_02_JPG_6.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    (made.root / "IMG_02_AWGN_2.bmp").write_bytes((made.root / "IMG_02_AWGN_1.bmp").read_bytes())
    with pytest.raises(UserError, match="4 problems") as caught:
        build.load(vcl, manual_dir=str(made.root), data_dir=str(tmp_path / "tfds"))
    message = str(caught.value)
    for part in ("the score is 100.5", "reference 'IMG_02'", "identical: IMG_02_AWGN_1, IMG_02_AWGN_2"):
        assert part in message
    assert "row 48 ('IMG_02_JPG_6'): the image cannot be read" in message and "\n" not in message
    assert not (tmp_path / "tfds").exists()


def test_absent_release_says_what_goes_where(tmp_path):
    with pytest.raises(UserError, match=r"no VCL@FER release .*results\.xls"):
        build.load(vcl, manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
