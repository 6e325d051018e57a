import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cprl_jax.report import figures, html, robustness_figures

VOID = {"meta", "br", "img", "wbr", "link", "input", "hr"}


class Strict(HTMLParser):
    """Fails on a tag that is closed out of order, and collects ids, links and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.note(dict(attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.note(dict(attributes))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def note(self, attributes):
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for key in ("href", "src", "xlink:href"):
            if key in attributes:
                self.links.append(attributes[key])


def parse(page):
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids), "ids are unique"
    for link in parser.links:
        assert link.startswith(("#", "data:image/png;base64,")), f"{link[:40]} is not inside the page"
        if link.startswith("#"):
            assert link[1:] in parser.ids, f"{link} leads nowhere"
    assert not re.search(r"https?:|@import|<script|<link|url\((?!#)", page)
    return parser


@pytest.fixture
def page(made):
    def make(**changes):
        rows, scores = changes.get("rows", made.collapse), changes.get("scores", made.scores())
        names = list(dict.fromkeys(row["method"] for row in [*rows, *scores]))
        content = {
            "title": "Trained & attacked",
            "summary": ["One.", "Two."],
            "rows": rows,
            "scores": scores,
            "examples": [],
            "names": names,
            "curves": [],
            "scatters": [],
            "changes": [],
            "training": [],
            "config_text": "seed: 0",
            "notes": [],
        }
        return html.page(**content | changes)

    return make


def test_page_is_well_formed_and_self_contained(made, page):
    text = page(
        examples=[made.example(), made.example("cprl")],
        curves=figures.curves(made.collapse, ["plain", "cprl"]),
        scatters=figures.scatters(made.scores(), ("pgd", 2.0), ["plain", "cprl"]),
        changes=figures.changes(made.scores(), ("pgd", 2.0), ["plain", "cprl"]),
        training=figures.training({"plain": made.history()}, ["plain", "cprl"]),
        notes=["A note."],
    )
    words = " ".join("".join(parse(text).text).split())
    for expected in (
        "Trained & attacked",
        "One.",
        "How much of a model's ranking survives",
        "How the ranking falls",
        "The numbers",
        "What an attack looks like",
        "Where the scores went",
        "Worst cases",
        "Training",
        "A note.",
        "seed: 0",
        "What the words mean",
    ):
        assert expected in words
    assert text.count("<svg") == 2 + 2 + 1 + 2
    assert '<meta name="viewport"' in text and "prefers-color-scheme: dark" in text and "@media print" in text


def test_empty_results_make_a_page(page):
    text = page(rows=[], scores=[], config_text="", summary=[])
    words = "".join(parse(text).text)
    assert "There are no results to report." in words
    for absent in (
        "The numbers",
        "Worst cases",
        "Training",
        "How to repeat this",
        "Notes",
        "What an attack looks like",
    ):
        assert absent not in words


def test_one_method_without_attacks(made, page):
    text = page(rows=[made.row()], scores=made.scores(("plain",), (("none", 0.0),)))
    words = "".join(parse(text).text)
    assert "No attack was run." in words and "Worst cases" not in words and "Bold is" not in words


def test_all_text_is_escaped(made, page):
    evil = "<img src=x onerror=alert(1)> & \"quotes' ${title}"
    rows = made.rows({evil: {("none", 0): 0.8, (evil, 2.0): 0.1}, "b": {("none", 0): 0.7, (evil, 2.0): 0.2}})
    rows.append(made.row(evil, evil, 4.0, score_std=0.1, zero_gradient_fraction=0.9))
    scores = made.scores((evil,), ((evil, 2.0),))
    scores[0]["name"] = evil
    example = made.example() | {"method": evil, "name": evil, "attack": evil}
    text = page(
        title=evil,
        summary=[evil],
        rows=rows,
        scores=scores,
        examples=[example],
        config_text=evil,
        notes=[evil],
        curves=figures.curves(rows, [evil, "b"]),
        scatters=figures.scatters(scores, (evil, 2.0), [evil]),
    )
    parser = parse(text)
    assert "<img src=x" not in text
    assert evil in "".join(parser.text)


def test_numbers_and_marks_of_the_table(made, page):
    rows = [*made.collapse, made.row("blind", "pgd", 2.0, srcc=0.95, zero_gradient_fraction=0.9)]
    text = page(rows=rows)
    assert re.search(r'class="heat bad" style="--heat: 0.22">−0.520<small>\[−0.62, −0.42\]', text)
    assert re.search(r'class="heat good best" style="--heat: 0.22">0.520<small>', text)
    assert 'blind <span class="flag"' in text and "0.950" in text
    assert "best" not in re.search(r"<td[^>]*>0\.950", text)[0]
    assert "Read these numbers with care" in text
    assert "Read these numbers with care" not in page()


def test_undefined_numbers_are_dashes(made, page):
    rows = [made.row(srcc=math.nan, plcc=math.nan), made.row(attack="pgd", radius=2.0, srcc=math.nan)]
    parser = parse(page(rows=rows))
    assert "nan" not in " ".join(parser.text).lower().split()
    assert "–" in parser.text


def test_the_falls_are_drawn_to_scale(page):
    text = page()
    assert '<i class="way" style="left: 24.00%; width: 69.00%"></i>' in text, "plain falls from 0.86 to -0.52"
    assert '<i class="after" style="left: 76.00%"></i>' in text, "cprl ends at 0.52"
    assert "<b>0.86 → −0.52</b>" in text


def test_worst_cases_are_the_largest_changes(made, page):
    scores = made.scores(("plain",), (("pgd", 2.0),))
    for index, row in enumerate(scores):
        row["score"] = row["clean"] + (-1) ** index * index
    scores[0]["score"] = math.nan
    text = page(scores=scores)
    found = re.findall(r"<td>image_<wbr>(\d\d)\.png</td>", text)
    assert found == ["11", "10", "09", "08", "07"]
    assert "<b>−11.0</b>" in text and "<b>+10.0</b>" in text


def test_examples_embed_their_pixels(made, page):
    entry = made.example()
    parser = parse(page(examples=[entry]))
    images = [link for link in parser.links if link.startswith("data:")]
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2])))) for link in images]
    np.testing.assert_array_equal(decoded[0], entry["image"])
    np.testing.assert_array_equal(decoded[1], np.round(255 * np.clip(entry["attacked"], 0, 1)))
    words = " ".join(parser.text)
    assert "× 63" in words and "MOS 71.2" in words and "−46.7 points" in words


def test_examples_of_one_image_stand_together(made, page):
    order = [made.example(method, name) for method in ("plain", "cprl") for name in ("one.png", "two.png")]
    text = page(examples=order)
    found = re.findall(r"<b>(\w+)</b> under PGD at 2/255, (\w+)\.png", text)
    assert found == [("plain", "one"), ("cprl", "one"), ("plain", "two"), ("cprl", "two")]


def test_large_photographs_are_reduced(made, page):
    text = page(examples=[made.example(size=(400, 800))])
    assert 'width="360" height="180"' in text


def test_landscape_and_trust_checks(made, page):
    found = [made.robustness("plain", masked=True), made.robustness("cprl", flat=0.2)]
    rows = [row | {"r": math.inf if row["method"] == "plain" else 1.234} for row in made.collapse]
    text = page(
        rows=rows,
        robustness=found,
        landscapes=robustness_figures.landscapes(found, ["plain", "cprl"]),
        strengths=robustness_figures.strengths(found, ["plain", "cprl"]),
    )
    words = " ".join("".join(parse(text).text).split())
    for expected in (
        "The scores around one image",
        "image_03.png",
        "nothing to move along: plain.",
        "many steps beat one",
        "100 % of the values have no gradient.",
        "suspicious",
        "not run",
        "∞",
        "1.23",
        "0.250",
        "plain does not pass every check for masked gradients",
        "Integral robustness",
    ):
        assert expected in words, expected
    assert text.count('class="xsuspicious"') == 2 and text.count('class="xpassed"') == 2
    assert "cprl does not pass" not in words
    assert text.count("<svg") == 3


def test_parts_of_the_robustness_may_be_missing(made, page):
    words = "".join(parse(page(robustness=[{"method": "plain"}])).text)
    assert "around one image" not in words and "hiding its gradient" not in words
    alone = {"method": "plain", "checks": made.robustness()["checks"]}
    words = "".join(parse(page(robustness=[alone, {"method": "cprl"}])).text)
    assert "hiding its gradient" in words and "around one image" not in words


def test_text_of_the_checks_is_escaped(made, page):
    evil = "<img src=x onerror=alert(1)>"
    found = made.robustness(evil)
    found["checks"][0] |= {"name": evil, "explanation": evil, "verdict": "suspicious"}
    found["landscape"]["image"] = evil
    text = page(
        rows=made.rows({evil: {("none", 0): 0.8}}),
        scores=[],
        robustness=[found],
        landscapes=robustness_figures.landscapes([found], [evil]),
        strengths=robustness_figures.strengths([found], [evil]),
    )
    assert "<img src=x" not in text
    assert evil in "".join(parse(text).text)
