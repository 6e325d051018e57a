"""Tables of scores as spreadsheet programs write them, and the checks that several readers share."""

import math
import re

import openpyxl
import pytest

from cprl_jax.data.releases import _tables


def read(path, text, columns=("image", "MOS"), **options):
    path.write_text(text, encoding="utf-8")
    problems = []
    return _tables.read_table(path, columns, problems, **options), problems


def test_csv_as_spreadsheets_write_it(tmp_path):
    table = '\ufeff"Image",other, mos \r\n"a b.png",1,2.5\r\n,,\r\n c.png ,3\r\n'
    rows, problems = read(tmp_path / "t.csv", table)
    assert problems == []
    assert rows == [{"image": "a b.png", "MOS": "2.5"}, {"image": "c.png", "MOS": ""}]  # a short row has empty cells


def test_optional_columns(tmp_path):
    rows, _ = read(tmp_path / "t.csv", "image,MOS,std\na,1,2\n", optional=("STD", "votes"))
    assert rows == [{"image": "a", "MOS": "1", "STD": "2"}]


def test_headers_match_whatever_their_blanks_and_case(tmp_path):
    rows, _ = read(tmp_path / "t.csv", "Realigned   mos\n4\n", columns=("Realigned MOS",))
    assert rows == [{"Realigned MOS": "4"}]


def test_first_of_two_columns_with_one_header(tmp_path):
    rows, _ = read(tmp_path / "t.csv", "image,MOS,MOS\na,1,2\n")
    assert rows == [{"image": "a", "MOS": "1"}]


@pytest.mark.parametrize(
    "text, said",
    [
        ("image,score\na,1\n", "t.csv has no column MOS, only image, score"),
        ("", "t.csv has no column image, MOS, only none at all"),
        ('image,MOS\n"a,1\n', "t.csv is not a readable CSV file"),
    ],
)
def test_damaged_csv(tmp_path, text, said):
    rows, (problem,) = read(tmp_path / "t.csv", text)
    assert rows is None and problem.startswith(said)


def test_one_sheet_of_a_workbook(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(["nothing"])
    page = book.create_sheet("scores")
    page.append(["image", "MOS"])
    page.append([])
    page.append(["a", 1.5])
    page.append(["b", None])
    book.save(tmp_path / "t.xlsx")
    problems = []
    rows = _tables.read_table(tmp_path / "t.xlsx", ("image", "MOS"), problems, sheet="scores")
    assert rows == [{"image": "a", "MOS": 1.5}, {"image": "b", "MOS": ""}] and problems == []
    assert _tables.read_table(tmp_path / "t.xlsx", ("image",), problems, sheet="MOS") is None
    assert problems == ["t.xlsx has no sheet 'MOS', only Sheet, scores"]


@pytest.mark.parametrize(
    "cell, value", [("1.5", 1.5), (2, 2.0), (" -3e1 ", -30.0), (True, math.nan), ("1,5", math.nan)]
)
def test_number(cell, value):
    assert _tables.number(cell) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("cell", ["", None, "good", "NaN"])
def test_no_number(cell):
    assert math.isnan(_tables.number(cell))


def test_numbers_in_a_name():
    pattern = re.compile(r"i(\d\d)_(\d)")
    assert _tables.numbers(pattern, "i07_3", (7, 3)) == (7, 3)
    assert _tables.numbers(pattern, "i08_3", (7, 3)) is None
    assert _tables.numbers(pattern, "i00_3", (7, 3)) is None
    assert _tables.numbers(pattern, "i07_3.bmp", (7, 3)) is None


def test_scale_maps_its_ends_to_0_and_100():
    assert _tables.Scale(1, 5).mos(1) == 0 and _tables.Scale(1, 5).mos(5) == 100
    assert _tables.Scale(-10, 90).mos(-9.5) == 0.5


def test_find_inside(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "Scores.CSV").touch()
    assert _tables.find_inside(tmp_path, "scores.csv") == tmp_path / "b" / "Scores.CSV"
    (tmp_path / "scores.csv").touch()  # the release itself has precedence over its folders
    assert _tables.find_inside(tmp_path, "scores.csv") == tmp_path / "scores.csv"
    assert _tables.find_inside(tmp_path, "other.csv") is None
    assert _tables.find_inside(tmp_path / "nowhere", "scores.csv") is None


@pytest.mark.parametrize(
    "scores, flipped",
    [((5, 3, 1), False), ((1, 3, 5), True), ((3, 3, 3), True), ((math.nan, 3, 1), False), ((5,), False)],
)
def test_direction(scores, flipped):
    listed = [_tables.Listed(row, str(row), score, level=row) for row, score in enumerate(scores, start=1)]
    problems = []
    _tables.check_direction(listed, problems)
    assert bool(problems) == flipped
