"""The public functions of the package: `cprl_jax.report.write` and what it leaves in a folder."""

import csv
import json
import math
import os

import numpy as np
import pytest
from PIL import Image

from cprl_jax import report


@pytest.fixture
def content(made):
    return {
        "title": "A run",
        "summary": "What was done.",
        "rows": made.collapse,
        "scores": made.scores(),
        "examples": [made.example(), made.example("cprl")],
        "histories": {"plain": made.history(), "cprl": made.history()},
        "config_text": "seed: 0",
        "notes": ["The labels are not human."],
    }


def test_everything_is_written(tmp_path, content):
    path = report.write(tmp_path / "new" / "report", **content)
    folder = tmp_path / "new" / "report"
    assert path == folder / "report.html" and path.stat().st_size > 10_000
    assert {entry.name for entry in folder.iterdir()} == {
        "figures",
        "report.html",
        "scores.csv",
        "table.csv",
        "table.md",
    }
    figures = {entry.name for entry in (folder / "figures").iterdir()}
    assert figures == {
        "change.png",
        "example_01_plain.png",
        "example_02_cprl.png",
        "scatter_plain.png",
        "scatter_cprl.png",
        "srcc_fgsm.png",
        "srcc_pgd.png",
        "training_loss_plain.png",
        "training_loss_cprl.png",
        "training_validation.png",
    }
    for name in figures:
        assert np.asarray(Image.open(folder / "figures" / name).convert("L")).std() > 1
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["rows"])
    assert [float(row["srcc"]) for row in rows] == [row["srcc"] for row in content["rows"]]
    with (folder / "scores.csv").open(newline="") as file:
        assert [float(row["score"]) for row in csv.DictReader(file)] == [row["score"] for row in content["scores"]]
    text = path.read_text("utf-8")
    assert "The labels are not human." in text and "What was done." in text
    assert (folder / "table.md").read_text("utf-8").startswith("# A run\n")


def test_a_second_report_replaces_the_first(tmp_path, content, made):
    content |= {"histories": {}, "scores": []}
    report.write(tmp_path, **content)
    first = (tmp_path / "report.html").read_bytes()
    (tmp_path / "figures" / "mine.png").write_bytes(b"mine")
    report.write(tmp_path, **content)
    assert (tmp_path / "report.html").read_bytes() == first, "the same results give the same page"
    report.write(tmp_path, **content | {"rows": [made.row()], "examples": []})
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"mine.png"}


def test_writing_is_atomic(tmp_path, content, monkeypatch):
    """A reader sees the old file or the new one, also when the disk fails in between."""
    content |= {"examples": [], "histories": {}, "scores": []}
    report.write(tmp_path, **content)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write(tmp_path, **content | {"rows": content["rows"][:2]})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"rows": [{"method": "plain"}]}, r"rows\[0\] lacks attack, radius"),
        ({"scores": [{"method": "plain"}]}, r"scores\[0\] lacks attack"),
        ({"examples": [{"method": "plain"}]}, r"examples\[0\] lacks name"),
    ],
)
def test_wrong_results_write_nothing(tmp_path, content, broken, message):
    with pytest.raises(ValueError, match=message):
        report.write(tmp_path, **content | broken)
    assert list(tmp_path.iterdir()) == []


def test_wrong_images_write_nothing(tmp_path, content, made):
    bad = made.example() | {"image": np.zeros((4, 4), np.uint8)}
    with pytest.raises(ValueError, match="must both be"):
        report.write(tmp_path, **content | {"examples": [bad]})
    assert list(tmp_path.iterdir()) == []


def test_poor_results_are_reported_all_the_same(tmp_path, made):
    """One method, no intervals, undefined numbers, no history: what a small or broken run gives."""
    bare = {"method": "m/1", "attack": "none", "radius": 0, "against": "mos", "srcc": math.nan, "plcc": None, "rmse": 1}
    attacked = bare | {"attack": "pgd", "radius": 2}
    scores = [row | {"score": math.nan} for row in made.scores(("m/1",), (("pgd", 2.0),))]
    report.write(
        tmp_path,
        title="t",
        summary=[],
        rows=[bare, attacked],
        scores=scores,
        examples=[made.example("m/1")],
        histories={"m/1": []},
        config_text="",
        notes="One note.",
    )
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"srcc_pgd.png", "example_01_m_1.png"}
    assert "<li>One note.</li>" in (tmp_path / "report.html").read_text("utf-8")


def test_six_methods(tmp_path, made):
    names = [f"method_{i}_with_a_rather_long_name" for i in range(6)]
    rows = made.rows({name: {("none", 0): 0.9, ("pgd", 2): 0.1 * i} for i, name in enumerate(names)})
    report.write(
        tmp_path,
        title="t",
        summary="s",
        rows=rows,
        scores=made.scores(names[-1:], (("pgd", 2.0),)),
        examples=[],
        histories={},
        config_text="c",
        notes=[],
    )
    scatter = f"scatter_{names[-1]}.png"
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"srcc_pgd.png", scatter, "change.png"}
    text = (tmp_path / "report.html").read_text("utf-8")
    assert all(name.replace("_", "_<wbr>") in text for name in names)


def test_public_names(made):
    assert report.format_table(made.collapse).startswith(" ")
    assert report.warnings(made.collapse) == []
    assert "plain" in report.verdict(made.collapse)


@pytest.mark.slow
def test_robustness_is_written(tmp_path, content, made):
    found = [made.robustness("plain", masked=True), made.robustness("cprl")]
    report.write(tmp_path, **content | {"robustness": found})
    with (tmp_path / "trust.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["check"], row["verdict"]) for row in rows[:2]] == [
        ("plain", "gradients exist", "suspicious"),
        ("plain", "many steps beat one", "suspicious"),
    ]
    assert len(rows) == 6 and json.loads(rows[4]["numbers"]) == {"FGSM": 4.0, "PGD-10": 5.0}
    new = {"landscape_plain.png", "landscape_cprl.png", "trust_strengths.png"}
    assert new < {path.name for path in (tmp_path / "figures").iterdir()}
    report.write(tmp_path, **content)
    assert not new & {path.name for path in (tmp_path / "figures").iterdir()}
    assert not (tmp_path / "trust.csv").exists()


def test_wrong_checks_write_nothing(tmp_path, content):
    with pytest.raises(ValueError, match=r"checks\[0\] of plain lacks verdict, numbers"):
        report.write(
            tmp_path, **content, robustness=[{"method": "plain", "checks": [{"name": "a", "explanation": ""}]}]
        )
    assert list(tmp_path.iterdir()) == []
