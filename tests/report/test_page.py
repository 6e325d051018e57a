"""The page keeps its promises whatever it is given: one file, well formed, escaped, with nothing from elsewhere."""

import base64
import io
import math
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cprl_jax.report import figures, page
from cprl_jax.report.page import Card, Folded, Page, Range, Section, View
from cprl_jax.report.table import Column, Table

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


EVIL = "<img src=x onerror=alert(1)> & \"quotes' {{ 7 * 7 }} {% raw %}_ $title"
ROWS = [{"method": name, "srcc": srcc} for name, srcc in (("plain", 0.25), ("other_1", -0.5), ("none", math.nan))]


def table(name="method", **options):
    columns = [
        Column(
            "srcc", "SRCC", group="against MOS", best=1, note=lambda row: "[-0.1, 5 %]", tone=lambda row: row["srcc"]
        ),
        Column("method", "verdict", text=lambda row: row["method"], tone=lambda row: "alarm", wrapped=True),
    ]
    return Table(ROWS, columns, line=("method",), heading="method", **options)


def picture(size=(24, 32)):
    return np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)


def panel(name="curve"):
    figure, axes = figures.panel_of(name, height=2)
    axes.plot([0, 1], [1, 2])
    return figures.Panel(name, f"{name} falls", figure)


def everything(text="text", name="name"):
    views = [View(picture(), text, [text, "-3 points"], "original"), View(picture(), text, [text], "attacked")]
    row = {"method": text, "srcc": 0.5}
    one = Table([row], [Column("srcc", text, group=text, note=lambda row: text)], line=("method",), heading=text)
    blocks = Table([row], [Column("srcc", text, of=1)], line=("method",), block=lambda row: text, flag=lambda row: True)
    parts = [text, [text, "b"], [panel(name)], [Card(f"card_{name}", text, views)], [Folded(text, text)], one, blocks]
    parts.append([Range(text, "#D55E00", 0.86, -0.52, -0.6, -0.4, True), Range("n", "#0072B2", *4 * [math.nan])])
    sections = [Section(text, parts, text, "warnings")]
    return Page(text, sections, summary=text, verdict=text, notes=text, config_text=text, words={text: text})


def test_a_page_is_well_formed_and_self_contained():
    html = everything().html()
    assert html.startswith("<!doctype html>") and html.rstrip().endswith("</html>")
    parse(html)
    assert html.count("<svg") == 1 and html.count("data:image/png") == 2
    assert '<meta name="viewport"' in html and "prefers-color-scheme: dark" in html and "@media print" in html


def test_all_text_is_escaped_and_no_template():
    html = everything(EVIL).html()
    parser = parse(html)
    assert "<img src=x" not in html and "49" not in "".join(parser.text)
    assert "".join(parser.text).replace("\N{NO-BREAK SPACE}", " ").count(EVIL) > 20


def test_what_is_empty_is_left_out():
    empty = Table([], [], line=("a",))
    sections = [Section("Nothing", [[], "", empty], "a hint"), Section("Something", [[], "words"])]
    words = "".join(parse(Page("t", sections, config_text=" ").html(["a.csv", "b.md"])).text)
    assert "Something" in words and "beside this page: a.csv, b.md and figures/." in words
    for absent in ("Nothing", "a hint", "repeat", "What the words mean"):
        assert absent not in words


def test_cells_have_marks_small_print_and_colours():
    html = Page("t", [Section("s", [table(flag=lambda row: row["method"] == "none")])]).html()
    text = " ".join("".join(parse(html).text).split())
    assert (
        "−0.500[−0.1, 5 %]" in text
        and "5\N{NO-BREAK SPACE}%" in html
        and "–[" in text
        and "none !" in text
        and "nan" not in text
    )
    assert re.search(r'class="heat good best[^>]*--heat: 0.10"[^>]*>0\.250<small>', html)
    assert re.search(r'class="heat bad[^>]*--heat: 0.21"[^>]*>−0\.500', html)
    assert html.count('class="alarm') == 3 and html.count("best") == html.count("td.best") + 1
    assert 'colspan="1">against MOS' in html


def test_ranges_are_drawn_to_scale():
    html = everything().html()
    assert '<i class="band" style="left: 20.00%; width: 10.00%"></i>' in html
    assert '<i class="way" style="left: 24.00%; width: 69.00%"></i>' in html, "from 0.86 to -0.52"
    assert '<i class="after" style="left: 24.00%"></i>' in html and "0.86 → −0.52" in html
    assert html.count('class="way"') == 1, "no way without numbers"


def test_words_are_explained_where_they_are_used():
    words = {"R": "a ratio", "SRCC": "a <rank>", "95 % interval": "where"}
    html = Page("t", [Section("R", [table()], "srcc, R and SRCCs; its 95 % interval")], words=words).html()
    parser = parse(html)
    assert parser.links == ["#xsrcc", "#xr", "#x95-interval", "#xsrcc"], "the hint, and the heading of the column"
    assert 'title="a &lt;rank&gt;"' in html and set(parser.ids) == {"xr", "xsrcc", "x95-interval"}


def test_numbers_of_a_verdict_stand_out():
    html = Page("t", [], verdict="a 0.86 → -0.52; b ends 0.89 above a [0.80, 0.97]; c +0.1 [-0.2, 0.3].").html()
    assert re.findall("<b>(.*?)</b>", html) == ["0.86 → −0.52", "0.89 above", "+0.1 [−0.2, 0.3]"]


def test_photographs_are_embedded_exactly_and_large_ones_reduced():
    small, large = picture(), picture((400, 800))
    cards = [Card("a", "a", [View(small, "small", []), View(large, "large", [])])]
    html = Page("t", [Section("s", [cards])]).html()
    first = next(link for link in parse(html).links if link.startswith("data:"))
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))))
    np.testing.assert_array_equal(decoded, small)
    assert 'width="360" height="180"' in html


# -------------------------------------------------------------------------------------------------------------- files


def write(folder, made=None, **files):
    return page.write(folder, made or everything(), files={"a.csv": "1\n"} | files, figure_names=("name", "card_"))


def test_files_figures_and_page_are_written(tmp_path):
    path = write(tmp_path / "new" / "report")
    folder = tmp_path / "new" / "report"
    assert path == folder / "report.html" and {p.name for p in folder.iterdir()} == {"a.csv", "figures", "report.html"}
    assert {p.name for p in (folder / "figures").iterdir()} == {"name.png", "card_name.png"}
    for entry in (folder / "figures").iterdir():
        assert np.asarray(Image.open(entry).convert("L")).std() > 1


def test_a_second_report_replaces_the_first(tmp_path):
    write(tmp_path, **{"b.csv": "2"})
    first = write(tmp_path).read_bytes()
    (tmp_path / "figures" / "mine.png").write_bytes(b"mine")
    assert write(tmp_path, **{"b.csv": ""}).read_bytes() == first, "the same results give the same page"
    assert not (tmp_path / "b.csv").exists()
    write(tmp_path, Page("t", []))
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"mine.png"}


def test_writing_is_atomic(tmp_path, monkeypatch):
    """A reader sees the old file or the new one, also when the disk fails in between."""
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, everything("other"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# --------------------------------------------------------------------------------------------------------------- text


def test_the_same_parts_make_terminal_and_markdown():
    parts = [
        "A *paragraph.",
        table(best_legend="best"),
        "",
        Section("Warnings", [["one_1", "two"]]),
        Section("No", [[]]),
    ]
    shown = page.terminal(parts)
    assert shown.startswith("A *paragraph.\n\n") and "* best." in shown and "No" not in shown
    assert shown.endswith("Warnings\n  - one_1\n  - two")
    text = page.markdown("Title <b>", parts)
    assert text.startswith("# Title \\<b\\>\n\nA \\*paragraph.\n\n| method |") and "Bold: best." in text
    assert text.endswith("## Warnings\n\n- one\\_1\n- two\n")
    assert max(map(len, page.terminal(["word " * 100]).splitlines())) <= page.WIDTH
