"""The report of a run: what it leaves in a folder, what the page says, and what the terminal and Markdown show."""

import csv
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from cprl_jax.experiments.cprl import findings, report
from cprl_jax.experiments.cprl.results import Results
from cprl_jax.report import page


def make_content(made):
    return {
        "title": "A run",
        "summary": "What was done.",
        "rows": made.collapse,
        "scores": made.scores(),
        "examples": [made.example(), made.example("cprl")],
        "histories": {"plain": made.history(), "cprl": made.history()},
        "config_text": "seed: 0",
        "notes": ["The labels are not human."],
        "differences": findings.differences(made.scores(), seed=0, resamples=20),
        "titles": {"cprl": "CPRL (loss + SortMask)"},
        "budgets": {"plain": "400 steps; last checkpoint", "cprl": "250 steps; last checkpoint"},
        "attack_titles": {"fgsm": "FGSM", "pgd": "PGD"},
        "attack_legends": {"pgd": "Several steps."},
    }


def write(folder, *, title, summary, config_text, notes, **results):
    words = {"title": title, "summary": summary, "config_text": config_text, "notes": notes}
    return report.write(folder, Results(**results), **words)


@pytest.fixture
def content(made):
    return make_content(made)


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """The path of a whole report's page."""
    return write(tmp_path_factory.mktemp("made") / "new" / "report", **make_content(made))


def test_everything_is_written(written, content):
    path, folder = written, written.parent
    assert path == folder / "report.html" and path.stat().st_size > 10_000
    assert {entry.name for entry in folder.iterdir()} == {
        "differences.csv",
        "figures",
        "report.html",
        "scores.csv",
        "settings.json",
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


def test_columns_of_the_files(tmp_path, content):
    content |= {"examples": [], "histories": {}}
    write(tmp_path, **content, zero_shot=[{"method": "cprl", "dataset": "livec", "images": 9, "srcc": 0.5}])
    headers = {path.name: path.read_text().splitlines()[0] for path in tmp_path.glob("*.csv")}
    assert headers["table.csv"].startswith("method,attack,radius,against,srcc,plcc,rmse,srcc_low,srcc_high,ssim,")
    assert headers["scores.csv"] == "method,attack,radius,name,mos,clean,score,ssim,max_change"
    assert headers["differences.csv"] == "method,baseline,attack,radius,difference,low,high"
    assert headers["zero_shot.csv"] == "method,dataset,images,srcc,plcc,rmse"
    with (tmp_path / "differences.csv").open(newline="") as file:
        for back, row in zip(csv.DictReader(file), content["differences"], strict=True):
            assert [float(back[key]) for key in ("difference", "low", "high")] == [
                row[key] for key in ("difference", "low", "high")
            ]


def test_empty_results_make_files_with_headers(tmp_path):
    path = write(
        tmp_path, title="t", summary="", rows=[], scores=[], examples=[], histories={}, config_text="", notes=[]
    )
    assert (tmp_path / "table.csv").read_text() == "method,attack,radius,against,srcc,plcc,rmse\n"
    assert (tmp_path / "scores.csv").read_text() == "method,attack,radius,name,mos,clean,score\n"
    text = path.read_text()
    assert "There are no results to report." in text
    for absent in ("The numbers", "Worst cases", "<h2>Training", "How to repeat this", "<h2>Notes", "looks like"):
        assert absent not in text
    assert report.terminal(Results([])) == "There are no results to report."


def text_of(path):
    """The words of a page, without marks, as one line."""
    return " ".join(re.sub(r"<(style|svg).*?</\1>|<[^>]+>", "", path.read_text(), flags=re.DOTALL).split())


def test_the_page_names_methods_by_what_ran_and_says_their_budgets(written):
    text = text_of(written)
    assert "cprl: CPRL (loss + SortMask); 250 steps; last checkpoint" in text
    assert "plain: 400 steps; last checkpoint" in text
    assert "PGDSeveral steps." in text, "the attack's legend is among the words"
    for section in (
        "ranking survives when an attacker",
        "How the ranking falls",
        "The numbers",
        "Differences, image by image",
        "What an attack looks like",
        "Where the scores went",
        "Worst cases",
        "Training",
        "How to repeat this",
        "What the words mean",
    ):
        assert section in text
    assert "Read these numbers with care" not in text and "Bold: best of the methods" in text


def test_terminal_and_markdown_say_the_same(written, content):
    names = ("rows", "differences", "titles", "budgets", "attack_titles", "attack_legends")
    shown = report.terminal(Results(**{name: content[name] for name in names}))
    text = written.with_name("table.md").read_text()
    for said in (
        "cprl: CPRL (loss + SortMask); 250 steps; last checkpoint",
        "PGD: Several steps.",
        "SRCC less plain's",
    ):
        assert said in shown and said in text
    assert "PGD at 2/255" in shown and "0.520*" in shown
    assert "| PGD at 2/255 | cprl | CPRL (loss + SortMask) | **0.520** [0.42, 0.62] | **0.510** |" in text
    assert "every pixel by at most 2/255" in shown
    assert max(map(len, shown.splitlines())) <= 115


def test_warnings_are_shown_everywhere(tmp_path, content, made):
    content |= {
        "rows": [*made.collapse, made.row("flat", score_std=0.5)],
        "examples": [],
        "histories": {},
        "scores": [],
    }
    text = text_of(write(tmp_path, **content))
    for shown in (text, report.terminal(Results(content["rows"])), (tmp_path / "table.md").read_text()):
        assert "flat !" in shown and "flat says nearly the same of every image" in shown
    assert "Read these numbers with care" in text


def test_examples_of_one_image_stand_together(tmp_path, content, made):
    examples = [made.example(method, name) for method in ("plain", "cprl") for name in ("one.png", "two.png")]
    text = text_of(write(tmp_path, **content | {"examples": examples, "histories": {}, "scores": []}))
    found = re.findall(r"(\w+) under PGD at 2/255, (\w+)\.png", text)
    assert found == [("plain", "one"), ("cprl", "one"), ("plain", "two"), ("cprl", "two")]
    assert "MOS 71.2" in text and "−46.7 points" in text and "× 63" in text


def test_all_text_is_escaped(tmp_path, made):
    evil = "<img src=x onerror=alert(1)> & \"quotes'"
    rows = made.rows({evil: {("none", 0): 0.8, (evil, 2.0): 0.1}, "b": {("none", 0): 0.7, (evil, 2.0): 0.2}})
    rows.append(made.row(evil, evil, 4.0, score_std=0.1, zero_gradient_fraction=0.9))
    scores = [row | {"name": f"{evil}{row['name']}"} for row in made.scores((evil, "b"), ((evil, 2.0),))]
    checked = made.robustness(evil, masked=True)
    checked["checks"][0] |= {"name": evil, "explanation": evil}
    checked["landscape"]["image"] = evil
    path = write(
        tmp_path,
        title=evil,
        summary=[evil],
        rows=rows,
        scores=scores,
        examples=[made.example() | {"method": evil, "name": evil, "attack": evil}],
        histories={evil: made.history()},
        config_text=evil,
        notes=[evil],
        robustness=[checked],
        titles={evil: evil},
        budgets={evil: evil},
        attack_legends={evil: evil},
        differences=findings.differences(scores, seed=0, resamples=5),
    )
    assert "<img src=x" not in path.read_text() and "&lt;img src=x onerror=alert(1)&gt; &amp; " in path.read_text()


def test_medians_are_shown_with_their_range_over_the_splits(made):
    ends = {"quartile_1": 0.5, "quartile_3": 0.6, "min": 0.4, "max": 0.7, "count": 3}
    rows = [row | {f"srcc_{name}": end for name, end in ends.items()} | {"runs": 3} for row in made.collapse]
    row = {"method": "cprl", "baseline": "plain", "attack": "pgd", "radius": 2.0, "difference": 1.04, "runs": 3}
    compared = [row | {f"difference_{name}": end for name, end in ends.items()}]
    parts = report.medians(Results(rows, differences=compared, attack_titles={"pgd": "PGD"}))
    shown = page.terminal(parts)
    assert "0.520* [0.500, 0.600] (0.400 to 0.700)" in shown
    assert "+1.04 [0.50, 0.60] (0.40 to 0.70)" in shown and "Median over the splits" in shown
    assert "95 %" not in shown


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
        write(tmp_path, **content | broken)
    assert list(tmp_path.iterdir()) == []


def test_wrong_images_write_nothing(tmp_path, content, made):
    bad = made.example() | {"image": np.zeros((4, 4), np.uint8)}
    with pytest.raises(ValueError, match="must both be"):
        write(tmp_path, **content | {"examples": [bad]})
    assert list(tmp_path.iterdir()) == []


def test_poor_results_are_reported_all_the_same(tmp_path, made):
    """One method, no intervals, undefined numbers, no history: what a small or broken run gives."""
    bare = {"method": "m/1", "attack": "none", "radius": 0, "against": "mos", "srcc": math.nan, "plcc": None, "rmse": 1}
    attacked = bare | {"attack": "pgd", "radius": 2}
    scores = [row | {"score": math.nan} for row in made.scores(("m/1",), (("pgd", 2.0),))]
    write(
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
    write(
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


def test_robustness_is_written(tmp_path, content, made):
    found = [made.robustness("plain", masked=True), made.robustness("cprl")]
    content |= {"examples": [], "histories": {}, "scores": []}
    write(tmp_path, **content | {"robustness": found})
    with (tmp_path / "trust.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["check"], row["verdict"]) for row in rows[:2]] == [
        ("plain", "gradients exist", "suspicious"),
        ("plain", "many steps beat one", "suspicious"),
    ]
    assert len(rows) == 6 and json.loads(rows[4]["numbers"]) == {"FGSM": 4.0, "PGD-10": 5.0}
    text = text_of(tmp_path / "report.html")
    for said in (
        "The scores around one image",
        "image_03.png",
        "nothing to move along: plain.",
        "100 % of the values have no gradient.",
        "suspicious",
        "not run",
        "plain does not pass every check for masked gradients",
        "Integral robustness",
    ):
        assert said in text, said
    assert "cprl does not pass" not in text
    assert "Checks for masked gradients: plain fails 2 of 2" in report.terminal(
        Results(content["rows"], robustness=found)
    )
    new = {"landscape_plain.png", "landscape_cprl.png", "trust_strengths.png"}
    assert new < {path.name for path in (tmp_path / "figures").iterdir()}
    write(tmp_path, **content)
    assert not new & {path.name for path in (tmp_path / "figures").iterdir()}
    assert not (tmp_path / "trust.csv").exists()


def test_wrong_checks_write_nothing(tmp_path, content):
    with pytest.raises(ValueError, match=r"checks of plain\[0\] lacks verdict, numbers"):
        write(tmp_path, **content, robustness=[{"method": "plain", "checks": [{"name": "a", "explanation": ""}]}])
    assert list(tmp_path.iterdir()) == []
