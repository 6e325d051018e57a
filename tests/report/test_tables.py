import csv
import io
import math

import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.report import tables


def test_csv_reads_back_exactly(made):
    rows = made.collapse
    rows[0] |= {"srcc": 0.1 + 0.2, "plcc": np.float32(0.1), "rmse": np.float64(1e-17), "ssim": jnp.float32(0.3)}
    rows[1] |= {"srcc": math.nan, "extra": 'a, "b"\nc', "images": np.int64(40)}
    read = list(csv.DictReader(io.StringIO(tables.table_csv(rows))))
    columns = list(read[0])
    assert columns[:7] == ["method", "attack", "radius", "against", "srcc", "plcc", "rmse"]
    assert set(columns[7:]) == set(rows[1]) - set(columns[:7])
    assert len(read) == len(rows)
    for row, back in zip(rows, read, strict=True):
        for key, content in row.items():
            if isinstance(content, str):
                assert back[key] == content
            else:
                np.testing.assert_equal(float(back[key]), float(content))
    assert read[0]["extra"] == "" and read[1]["srcc"] == "nan" and read[1]["images"] == "40"


def test_csv_radius_is_plain(made):
    rows = [made.row(), made.row(attack="pgd", radius=0.5), made.row(attack="pgd", radius=np.float32(2))]
    read = csv.DictReader(io.StringIO(tables.table_csv(rows)))
    assert [row["radius"] for row in read] == ["0", "0.5", "2"]


def test_empty_tables_have_a_header():
    assert tables.table_csv([]) == "method,attack,radius,against,srcc,plcc,rmse\n"
    assert tables.scores_csv([]) == "method,attack,radius,name,mos,clean,score\n"
    assert tables.format_table([]) == "No results."
    assert "| attack | method |" in tables.markdown([], "Nothing")


def test_scores_columns(made):
    header = tables.scores_csv(made.scores()).splitlines()[0]
    assert header == "method,attack,radius,name,mos,clean,score,ssim,max_change"


def test_best_by_the_printed_digits(made):
    rows = [
        made.row("a", srcc=0.70001, rmse=3.0),
        made.row("b", srcc=0.70002, rmse=2.0),
        made.row("c", srcc=0.6, rmse=9.0),
    ]
    assert tables.best(rows, ("none", 0.0), "mos", "srcc") == {"a", "b"}
    assert tables.best(rows, ("none", 0.0), "mos", "rmse") == {"b"}
    assert tables.best(rows, ("none", 0.0), "prediction", "srcc") == set()
    assert tables.best(rows, ("pgd", 2.0), "mos", "srcc") == set()


def test_only_trustworthy_rows_compete(made):
    condition = ("pgd", 2.0)
    rows = [made.row("plain", *condition, srcc=-0.5), made.row("cprl", *condition, srcc=0.5)]
    blind = made.row("blind", *condition, srcc=0.9, zero_gradient_fraction=0.9)
    undefined = made.row("undefined", *condition, srcc=math.nan)
    assert tables.best([*rows, blind, undefined], condition, "mos", "srcc") == {"cprl"}
    assert tables.best([rows[0], blind], condition, "mos", "srcc") == set(), "one method alone wins nothing"
    own = [made.row("a", against="prediction", srcc=1.0), made.row("b", against="prediction", srcc=1.0)]
    assert tables.best(own, ("none", 0.0), "prediction", "srcc") == set(), "all agree with themselves"


def test_terminal_table_is_aligned(made):
    text = tables.format_table(made.collapse)
    lines = text.splitlines()
    assert "against MOS" in lines[0] and "against its own clean scores" in lines[0]
    ends = {line.rfind("0.990") for line in lines if line.startswith("  ") and "0.990" in line}
    assert len(ends) == 1, "SSIM stands in one column"
    assert max(map(len, lines)) <= 115
    pgd = lines.index("PGD at 2/255")
    assert "-0.520 [-0.62, -0.42]" in lines[pgd + 1] and "0.520*  [0.42, 0.62]" in lines[pgd + 2]
    assert lines.index("no attack") < lines.index("FGSM at 1/255") < lines.index("PGD at 1/255")


def test_terminal_table_shows_marks_and_warnings(made):
    rows = [*made.collapse, made.row("flat", score_std=0.5)]
    text = tables.format_table(rows)
    assert "  flat !" in text
    assert text.rstrip().splitlines()[-2].startswith("  ! flat says nearly the same of every image")
    assert "Warnings" not in tables.format_table(made.collapse)


def test_terminal_table_with_long_names_and_missing_numbers(made):
    name = "adversarial_training_resnet50_" + "x" * 40 + "_seed3"
    bare = {"method": name, "attack": "none", "radius": 0, "against": "mos", "srcc": math.nan, "plcc": None, "rmse": 3}
    text = tables.format_table([bare, made.row("b")])
    assert "adversarial_trai…" in text and "_seed3" in text and "nan" not in text
    assert name in tables.markdown([bare], "t").replace("\\", "")


def test_format_table_refuses_incomplete_rows(made):
    with pytest.raises(ValueError, match=r"rows\[0\] lacks"):
        tables.format_table([{"method": "plain"}])


def test_markdown_table_is_regular(made):
    rows = [*made.collapse, made.row("odd|name*", score_std=0.1)]
    text = tables.markdown(rows, "Title <b> *x*")
    assert text.startswith("# Title \\<b\\> \\*x\\*\n")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {11}
    assert len(table) == 2 + 10 + 1
    assert "| PGD at 2/255 | cprl | **0.520** [0.42, 0.62] | **0.510** |" in text
    assert "odd\\|name\\* !" in text and "## Warnings" in text
