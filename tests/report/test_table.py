"""One table in four notations: the same numbers in each, aligned, escaped, and read back exactly from the CSV."""

import csv
import io
import math

import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.report.table import Column, Table, csv_text
from cprl_jax.report.values import interval, number

ROWS = [
    {"method": method, "set": dataset, "against": against, "srcc": srcc, "srcc_low": srcc - 0.1, "srcc_high": 1.0}
    for method, dataset, against, srcc in (
        ("plain", "one", "mos", 0.5),
        ("plain", "one", "prediction", -0.25),
        ("<b>other_1|", "one", "mos", 0.75),
        ("<b>other_1|", "one", "prediction", 0.5),
        ("plain", "two", "mos", 0.125),
    )
]


def table(rows=ROWS, **options):
    columns = [
        Column("srcc", "SRCC", group="against MOS", of="mos", note=lambda row: interval(row, "srcc"), best=1),
        Column("srcc", "SRCC", group="against own", of="prediction", best=1, digits=2),
    ]
    options = {"across": "against", "heading": "method", "best_legend": "best of a set", "legend": "Words."} | options
    block = {"block": lambda row: f"on {row['set']}", "block_heading": "data set"}
    return Table(rows, columns, line=("set", "method"), **(block | options))


def cells(table):
    return {
        (heading, line.name): [cell.text for cell in line.cells]
        for heading, lines in table.blocks().items()
        for line in lines
    }


def test_rows_of_a_line_stand_side_by_side_and_lines_in_their_blocks():
    assert cells(table()) == {
        ("on one", "plain"): ["0.500", "-0.25"],
        ("on one", "<b>other_1|"): ["0.750", "0.50"],
        ("on two", "plain"): ["0.125", "–"],
    }
    (lines,) = table(block=None).blocks().values()
    assert [line.name for line in lines] == ["plain", "<b>other_1|", "plain"]


def test_the_terminal_shows_aligned_columns_and_marks():
    lines = table(flag=lambda row: row["set"] == "two").text().splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["method", "SRCC", "SRCC"],
        ["on", "one"],
        ["plain", "0.500", "[0.40,", "1.00]", "-0.25"],
        ["<b>other_1|", "0.750*", "[0.65,", "1.00]", "0.50*"],
        ["on", "two"],
        ["plain", "!", "0.125", "[0.02,", "1.00]", "–"],
    ]
    numbers = [line for line in lines if "[" in line]
    assert len({line.index("[") for line in numbers}) == 1
    assert "─ against MOS ─" in lines[0] and "against own" in lines[0]
    assert lines[0].index("against own") > numbers[0].index("1.00]")


def test_a_heading_wider_than_its_columns_does_not_shift_the_others():
    narrow = [Column("a", "x", group="a very long heading"), Column("b", "y", group="short"), Column("c", "z")]
    lines = Table([{"a": 1, "b": 2, "c": 3, "n": "name"}], narrow, line=("n",)).text().splitlines()
    assert lines[0].index("short") > lines[0].index("heading") + len("heading")
    assert len({len(line) for line in lines[1:]}) == 1 and lines[2].split() == ["name", "1.000", "2.000", "3.000"]


def test_markdown_is_regular_and_escapes_names():
    lines = table(subtitle=lambda row: f"*{row['method']}").markdown().splitlines()
    assert lines[0] == "| data set | method | what ran | against MOS: SRCC | against own: SRCC |"
    assert lines[1] == "| --- | --- | --- | ---: | ---: |"
    assert r"| on one | \<b\>other\_1\| | \*\<b\>other\_1\| | **0.750** [0.65, 1.00] | **0.50** |" in lines
    assert {line.replace(r"\|", "").count("|") for line in lines} == {6}


def test_the_best_by_the_printed_digits():
    def best(*srcc, digits=3, sign=1, **options):
        rows = [{"n": str(index), "srcc": content} for index, content in enumerate(srcc)]
        columns = [Column("srcc", "SRCC", best=sign, digits=digits)]
        lines = Table(rows, columns, line=("n",), **options).blocks()[""]
        return [index for index, line in enumerate(lines) if line.cells[0].best]

    assert best(0.70001, 0.70002, 0.6) == [0, 1]
    assert best(3.0, 2.0, math.nan, sign=-1) == [1]
    assert best(0.5) == best(0.5, math.nan) == [], "one alone wins nothing"
    assert best(0.9, 0.5, 0.4, competes=lambda row: row["n"] != "0") == [1]
    across = [{"n": "a", "u": u, "srcc": srcc, "c": u != 3} for u, srcc in enumerate((0.1, 0.3, 0.2, 0.9))]
    columns = [Column("srcc", str(u), of=u, best=1) for u in range(4)]
    (line,) = Table(across, columns, line=("n",), across="u", contest="across", competes=lambda r: r["c"]).blocks()[""]
    assert [cell.best for cell in line.cells] == [False, True, False, False]


def test_the_mark_is_explained_only_where_there_is_one():
    assert table().explained("*") == "* best of a set. Words."
    assert table(competes=lambda row: False).explained("*") == "Words."


def test_long_names_and_missing_numbers_stay_readable():
    name = "adversarial_training_resnet50_" + "x" * 40 + "_seed3"
    shown = table([{"method": name, "set": "one", "against": "mos", "srcc": math.nan}])
    assert "adversarial_trai…" in shown.text() and "_seed3" in shown.text() and "nan" not in shown.text()
    assert name in shown.markdown().replace("\\", "")


def test_csv_reads_back_exactly():
    rows = [dict(row) for row in ROWS]
    rows[0] |= {"srcc": 0.1 + 0.2, "a": np.float32(0.1), "b": np.float64(1e-17), "c": jnp.float32(0.3)}
    rows[1] |= {"srcc": math.nan, "extra": 'a, "b"\nc', "images": np.int64(40)}
    read = list(csv.DictReader(io.StringIO(table(rows).csv())))
    assert list(read[0])[:4] == ["set", "method", "against", "srcc"]
    assert set(read[0]) == {key for row in rows for key in row} and len(read) == len(rows)
    for row, back in zip(rows, read, strict=True):
        for key, content in row.items():
            if isinstance(content, str):
                assert back[key] == content
            else:
                np.testing.assert_equal(float(back[key]), float(content))
    assert read[0]["extra"] == "" and read[1]["srcc"] == "nan" and read[1]["images"] == "40"


@pytest.mark.parametrize(("radius", "text"), [(0.0, "0"), (0.5, "0.5"), (np.float32(2), "2"), (4, "4")])
def test_a_radius_is_plain(radius, text):
    assert csv_text([{"radius": radius}], ("radius",)) == f"radius\n{text}\n"
    assert number(text) == radius


def test_empty_tables_have_a_header():
    assert csv_text([], ("method", "srcc")) == "method,srcc\n"
    assert not table([]) and table([]).markdown().startswith("| data set | method |")
