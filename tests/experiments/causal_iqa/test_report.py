"""The report of Causal-IQA: every file whole, the page by itself, nothing of what is empty."""

import csv
import re

import numpy as np
import pytest

from cprl_jax.experiments.causal_iqa import report as causal_iqa

UPDATES, DISTORTIONS = ("erm", "cis", "<i>own_$"), ("jpeg", "<b>blur")


def made(seeds=2):
    rows = [
        {
            "update": update,
            "distortion": distortion,
            "seed": seed,
            "images": 30,
            "plcc": 0.125,
            "srcc": 0.1 + place / 3 + seed / 7,
        }
        for place, update in enumerate(UPDATES)
        for distortion in DISTORTIONS
        for seed in range(seeds)
    ]
    averages = [
        {
            "update": update,
            "srcc": 0.5 + place / 9,
            "srcc_low": 0.1,
            "srcc_high": 0.9,
            "difference": place / 9,
            "difference_low": place / 10,
            "difference_high": place / 8,
            "wins": place,
            "cells": 4,
        }
        for place, update in enumerate(UPDATES)
    ]
    zero_shot = [
        {
            "method": update,
            "dataset": "own:<photos>",
            "images": 450,
            "seed": seed,
            "plcc": 0.5,
            "rmse": 20.0,
            "srcc": 0.25 + seed / 2,
            "srcc_low": 0.25,
            "srcc_high": 0.75,
        }
        for update in UPDATES
        for seed in range(seeds)
    ]
    random = np.random.default_rng(0)
    return {
        "rows": rows,
        "averages": averages,
        "zero_shot": zero_shot,
        "division": {
            "points": random.normal(size=(5, 2)),
            "clusters": [0, 1, 0, 1, 1],
            "names": list("abcde"),
            "sizes": {"jpeg | content 0": 10, "jpeg | content 1": 12},
            "report": ["2 subsets", "<b>blur | content 1: empty"],
        },
        "saliency": [
            {
                "name": "<img>",
                "update": update,
                "image": random.integers(0, 255, (8, 12, 3), dtype=np.uint8),
                "map": random.random((8, 12)),
            }
            for update in UPDATES[:2]
        ],
        "histories": {update: [{"step": str(i), "loss": str(1 / i)} for i in range(1, 5)] for update in UPDATES[:2]},
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "figures").mkdir()
    (folder / "figures" / "saliency_99.png").write_bytes(b"")
    page = causal_iqa.write(
        folder,
        title="Updates & <b>",
        summary="One <i>paragraph.",
        config_text="{'<seed>': 0}",
        notes=["A <note>."],
        **made(),
    )
    return folder, page.read_text()


def test_every_file_is_there_and_old_figures_are_not(written):
    folder, _ = written
    assert {path.name for path in folder.iterdir()} == {
        "averages.csv",
        "figures",
        "report.html",
        "table.csv",
        "table.md",
        "zero_shot.csv",
    }
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == [
        "division",
        "division_sizes",
        "saliency_01",
        "srcc_by_distortion",
        "srcc_differences",
        "training_loss_CIS",
        "training_loss_ERM",
    ]


@pytest.mark.parametrize(("name", "key"), [("table", "rows"), ("averages", "averages"), ("zero_shot", "zero_shot")])
def test_csv_reads_back_exactly(written, name, key):
    with (written[0] / f"{name}.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    expected = made()[key]
    assert len(found) == len(expected)
    for line, row in zip(found, expected, strict=True):
        assert {column: text if isinstance(row[column], str) else float(text) for column, text in line.items()} == row


def test_the_page_needs_nothing_beside_it_and_escapes_what_comes_in(written):
    page = written[1]
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "http" not in page and 'src="data:image/png;base64,' in page
    assert not re.search(r"<(b>blur|i>own|i>paragraph|note|photos|seed|img>)", page)
    for text in (
        "Updates &amp; &lt;b&gt;",
        "One &lt;i&gt;paragraph.",
        "&lt;b&gt;blur | content 1: empty",
        "&lt;img&gt;",
        "own:&lt;photos&gt;",
        "A &lt;note&gt;.",
        "&lt;i&gt;own_<wbr>$",
    ):
        assert text in page, text
    assert page.count("<svg") == 6


def test_the_table_of_the_page_has_the_numbers_and_marks_the_best(written):
    page = written[1]
    body = page[page.index("<tbody>") : page.index("Distortion by distortion")]
    lines = [" ".join(re.sub(r"<[^>]+>", " ", line).split()) for line in body.split("</tr>")]
    mean = 0.1 + 1 / 14
    assert lines[0].startswith(f"jpeg 30 {mean:.3f} 0.10 to 0.24 ")
    assert lines[2] == "all distortions"
    assert lines[3].startswith("average 0.500 [0.10, 0.90] 0.611 [0.10, 0.90]")
    assert lines[4] == "less ERM's – +0.111 [0.100, 0.125] +0.222 [0.200, 0.250]".replace("'", "&#39;")
    assert lines[5] == "cells above ERM&#39;s – 1 of 4 2 of 4"
    bold = re.findall(r'<td class="[^"]*\bbest"[^>]*>([^<]+)', body.replace(" gap", ""))
    assert bold == [f"{mean + 2 / 3:.3f}", f"{mean + 2 / 3:.3f}", "0.722"]


def test_the_verdict_is_on_top_and_zero_shot_numbers_are_means(written):
    page = written[1]
    verdict = re.search(r'<p class="verdict">(.*?)</p>', page)[1]
    assert "CIS beats ERM by <b>0.111 [0.100, 0.125]</b>" in verdict
    assert page.index("verdict") < page.index("<table")
    assert "means over 2 seeds" in page and ">0.500<small>[0.25, 0.75]</small>" in page
    assert "means over 2 seeds" in (written[0] / "table.md").read_text()


@pytest.mark.parametrize("kept", ["rows", "zero_shot", "division", "saliency", "histories", ""])
def test_what_is_empty_is_left_out(tmp_path, kept):
    (tmp_path / "zero_shot.csv").write_text("of an earlier report")
    parts = {name: value if name == kept else type(value)() for name, value in made(seeds=1).items()}
    page = causal_iqa.write(tmp_path, title="t", summary="", config_text="", notes=(), **parts).read_text()
    sections = {
        "rows": "Distortion by distortion",
        "zero_shot": "On data sets that training did not see",
        "division": "How the training images were divided",
        "saliency": "Where the model looks",
        "histories": "<h2>Training",
        "": "<h2>Notes",
    }
    assert {name for name, text in sections.items() if text in page} == {kept} - {""}
    assert (tmp_path / "zero_shot.csv").exists() == (kept == "zero_shot")


def test_words_are_explained_for_the_updates_that_were_compared(written):
    assert all(f">{word}</dt>" in written[1] for word in ("CIS", "ERM", "Held out", "Subset"))
    assert ">MetaIQA</dt>" not in written[1] and ">CIP</dt>" not in written[1]


def test_nothing_is_written_where_something_does_not_fit(tmp_path):
    parts = made()
    parts["saliency"][0]["map"] = np.ones((3, 3))
    with pytest.raises(ValueError, match=r"saliency of '<img>' by 'erm'"):
        causal_iqa.write(tmp_path / "a", title="t", summary="", config_text="", notes=(), **parts)
    parts["saliency"] = [{"name": "a"}]
    with pytest.raises(ValueError, match=r"saliency\[0\] lacks update, image, map"):
        causal_iqa.write(tmp_path / "a", title="t", summary="", config_text="", notes=(), **parts)
    assert not (tmp_path / "a").exists()
