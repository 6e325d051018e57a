"""CSV files of labels, as people and spreadsheets write them, and what is said of those that are wrong."""

import csv

import pytest

from cprl_jax.data import label_file
from cprl_jax.runtime.errors import UserError


def write(folder, text, encoding="utf-8"):
    (folder / "labels.csv").write_bytes(text.encode(encoding))
    return folder / "labels.csv"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("commas", "image,mos\na.png,55.5\nsub/b.png,7\n"),
        ("mark", "\ufeffimage,mos\r\na.png,55.5\r\nsub/b.png,7\r\n"),
        ("upper-case", " Image , MOS \n a.png , 55.5 \n sub/b.png , 7 \n"),
        ("semicolons", "image;mos\na.png;55,5\nsub/b.png;7\n"),
        ("tabs", "mos\timage\n55,5\ta.png\n7.0\tsub/b.png\n"),
        ("sep", "sep=;\nimage;mos\na.png;55,5\nsub/b.png;7\n"),
        ("sep-in-quotes", '\ufeff"sep=;"\r\nimage;mos\r\na.png;55,5\r\nsub/b.png;7\r\n'),
        ("sep-tab", "SEP=\t\nimage\tmos\na.png\t55,5\nsub/b.png\t7\n"),
        ("sep-other", "# exported\nsep=|\nimage|mos\na.png|55,5\nsub/b.png|7\n"),
        ("blank-lines", "\n# a comment\n\nimage,mos\n\n./a.png,55.5\n,\nsub\\b.png,7\n\n"),
        ("quotes", 'image,mos\n"a.png","55.5"\n"sub/b.png","7"'),
    ],
    ids=lambda value: value if value.isidentifier() or "-" in value and len(value) < 15 else "",
)
def test_ways_to_write_the_same(tmp_path, name, text):
    rows, problems = label_file.read(write(tmp_path, text))
    assert not problems
    assert [(row.values["image"], row.number("mos")) for row in rows] == [("a.png", 55.5), ("sub/b.png", 7)]


def test_problems_have_their_lines(tmp_path):
    text = "image,mos\na.png,1\na.png,2\np.png,7,55\n,3\n" + "b.png," + 200_000 * "1" + "\nc.png,4\n"
    rows, problems = label_file.read(write(tmp_path, text))
    assert [row.values["image"] for row in rows] == ["a.png", "c.png"]
    texts = dict(problems)
    assert "listed before, in line 2" in texts[3]
    assert "3 values in 2 columns; a decimal comma needs quotes" in texts[4]
    assert "names no image" in texts[5]
    assert f"more than {csv.field_size_limit()} letters; most likely a quotation mark" in texts[6]
    with pytest.raises(UserError, match="^labels has 4 problems; correct them: line 3") as caught:
        label_file.refuse("labels has", problems)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    label_file.refuse("labels has", [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("sep=;\n", "is empty"),
        ("image,mos\n", "names no image"),
        ("sep=;\nimage,mos\na.png,1\n", "line 2: 'image,mos' must name the columns"),
        ("i" * 200_000 + ",mos\n", "line 1: a value of more than"),
        ("image,mos,mos\na.png,1,2\n", "column mos occurs twice"),
    ],
    ids=["empty", "separator-alone", "header-alone", "other-separator", "long", "twice"],
)
def test_files_that_are_no_tables(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        label_file.read(write(tmp_path, text))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="not UTF-8"):
        label_file.read(write(tmp_path, "image,mos\nä.png,1\n", "latin-1"))
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        label_file.read(tmp_path)
