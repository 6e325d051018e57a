"""The table of models on other data sets: its numbers, for people and for programs."""

import csv
import io

from cprl_jax.report import zero_shot

ROWS = [
    {
        "method": method,
        "dataset": dataset,
        "images": images,
        "srcc": srcc,
        "srcc_low": srcc - 0.1,
        "srcc_high": srcc + 0.1,
        "plcc": srcc + 0.01,
        "rmse": 20 * (1 - srcc),
    }
    for method, dataset, images, srcc in (
        ("plain", "livec", 450, 0.5),
        ("plain", "koniq", 10073, -0.25),
        ("cprl", "livec", 450, 0.75),
    )
]


def test_a_row_per_data_set_and_columns_per_method():
    lines = [line.split() for line in zero_shot.terminal(ROWS).splitlines()]
    assert lines[0][:3] == ["zero-shot", "on", "images"]
    assert lines[1] == [
        "livec",
        "450",
        "0.500",
        "[0.40,",
        "0.60]",
        "0.510",
        "10.00",
        "0.750",
        "[0.65,",
        "0.85]",
        "0.760",
        "5.00",
    ]
    assert lines[2] == ["koniq", "10073", "-0.250", "[-0.35,", "-0.15]", "-0.240", "25.00", "–", "–", "–"]


def test_markdown_has_the_same_numbers():
    table = zero_shot.markdown(ROWS).splitlines()
    assert table[2] == "| livec | 450 | 0.500 [0.40, 0.60] | 0.510 | 10.00 | 0.750 [0.65, 0.85] | 0.760 | 5.00 |"


def test_csv_reads_back_exactly():
    found = list(csv.DictReader(io.StringIO(zero_shot.csv(ROWS))))
    assert [float(row["srcc_low"]) for row in found] == [row["srcc_low"] for row in ROWS]
    assert [row["dataset"] for row in found] == ["livec", "koniq", "livec"]


def test_the_page_escapes_names_and_leaves_out_an_empty_table():
    assert zero_shot.html([]) == ""
    page = zero_shot.html([{**ROWS[0], "dataset": "own:<photos>"}])
    assert "own:&lt;photos&gt;" in page and "0.500" in page
