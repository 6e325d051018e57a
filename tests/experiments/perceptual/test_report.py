"""The report of a perceptual attack: the paper's layout as text, Markdown and HTML, and every file whole."""

import csv
import math

import numpy as np
import pytest

from cprl_jax.experiments.perceptual import report as perceptual
from cprl_jax.report import page

MODELS, FIDELITIES = ("ma19", "<b>net_2"), ("chebyshev", "ssim")


def intra(srcc=0.25):
    return [
        {
            "model": model,
            "fidelity": fidelity,
            "images": 4,
            "of": 5,
            "srcc_before": 0.9,
            "srcc": srcc + place / 10,
            "r": math.inf if place else 1.5,
            "mean_change": 2.345,
            "mean_ssim": 0.99,
            "lowest_ssim": 0.98,
            "moved": 3,
            "seconds": 1.0,
        }
        for model in MODELS
        for place, fidelity in enumerate(FIDELITIES)
    ]


def transfer():
    return [
        {
            "model": model,
            "attacked": other,
            "fidelity": fidelity,
            "images": 4,
            "srcc_before": 0.9,
            "srcc": 0.8,
            "r": 3.0,
            "mean_change": 0.12,
        }
        for model, other in (MODELS, MODELS[::-1])
        for fidelity in FIDELITIES
    ]


def example():
    pixels = np.random.default_rng(0).integers(10, 240, (24, 32, 3), dtype=np.uint8)
    return {
        "model": MODELS[1],
        "fidelity": "ssim",
        "image": "a_$.png",
        "before": 4.0,
        "after": 6.5,
        "change": 2.5,
        "ssim": 0.99,
        "max_change": 2.0,
        "found": True,
        "pixels": pixels,
        "attacked": pixels + np.uint8(2),
    }


def candidates():
    return [
        {"model": model, "fidelity": fidelity, "image": "a", "distance": distance, "change": -distance, "selected": 0}
        for model in MODELS
        for fidelity in FIDELITIES
        for distance in (0.0, 0.01, 0.02)
    ]


def lines(table):
    """[name, *cells] of every line."""
    return [[line.name, *(cell.text for cell in line.cells)] for block in table.blocks().values() for line in block]


def test_the_tables_have_the_papers_layout():
    table = perceptual.intra_table(intra(), logarithm="10")
    assert [title for title, _, _ in table.groups()] == ["SRCC", "R (log10)", "mean change", "mean SSIM", "moved"]
    assert lines(table)[0] == "ma19 0.900 0.250 0.350 1.500 ∞ 2.35 2.35 0.9900 0.9900 3/5 3/5".split()  # noqa: SIM905
    assert "SRCC" not in [title for title, _, _ in perceptual.intra_table(intra(math.nan), logarithm="e").groups()]
    others = lines(perceptual.transfer_table(intra(), transfer(), logarithm="e"))
    assert others[0] == ["ma19, Chebyshev", "[0.250]", "0.800", "[1.500]", "3.000", "[2.35]", "0.12"]
    assert others[3][:3] == ["<b>net_2, SSIM", "0.800", "[0.350]"]
    assert not perceptual.transfer_table(intra(), [], logarithm="e")


def test_the_terminal_shows_aligned_columns():
    shown = page.terminal(perceptual.tables(intra(), transfer(), logarithm="e")).split("\n\n")[0].splitlines()
    assert "SRCC" in shown[0] and "before" in shown[1]
    assert len({len(line) for line in shown[1:]}) == 1


def test_numbers_on_the_axis_of_distances_are_plain():
    _, panel = perceptual.trade_offs(candidates(), {"chebyshev": 4 / 255, "ssim": 0.02}, list(MODELS))
    (axes,) = panel.figure.axes
    assert axes.get_xscale() == "log"
    assert axes.xaxis.get_major_formatter()(0.01) == "0.01"
    assert len(axes.collections[0].get_offsets()) == 2  # of three candidates, one is the original


@pytest.mark.parametrize("empty", [False, True])
def test_a_report_is_written_whole(tmp_path, empty):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "example_99_old.png").write_bytes(b"")
    written = perceptual.write(
        tmp_path,
        title="Attack of <b>",
        summary=["One & all."],
        candidates=[] if empty else candidates(),
        counterexamples=[] if empty else [{**row, "found": 1, "change": 1.0} for row in intra()],
        intra=intra(),
        transfer=[] if empty else transfer(),
        examples=[] if empty else [example()],
        thresholds={} if empty else {"chebyshev": 4 / 255, "ssim": 0.02},
        logarithm="e",
        config_text='{"seed": 0}',
        notes=["Nobody looked."],
    )
    text = written.read_text()
    assert "One &amp; all." in text and "<b>net_2" not in text and "Attack of &lt;b&gt;" in text
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert "http" not in text.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere
    names = sorted(path.name for path in (tmp_path / "figures").glob("*.png"))
    expected = [
        "example_01__b_net_2_ssim.png",
        "perceptual_changes.png",
        "perceptual_trade_off_chebyshev.png",
        "perceptual_trade_off_ssim.png",
    ]
    assert names == ([] if empty else expected)
    assert text.count("<svg") == (0 if empty else 3)
    assert ("data:image/png" in text) == (not empty)
    with (tmp_path / "intra.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert not list(tmp_path.glob(".*"))
    text = (tmp_path / "tables.md").read_text().splitlines()
    table = [line for line in text if line.startswith("|")]
    assert len({line.count("|") for line in table[:4]}) == 1 and r"\<b\>net\_2" in table[3]
    assert text[-1] == "- Nobody looked."


def test_a_counterexample_that_was_not_found_is_marked(tmp_path):
    written = perceptual.write(
        tmp_path,
        title="t",
        summary=[],
        candidates=[],
        counterexamples=[],
        intra=intra(),
        transfer=[],
        examples=[{**example(), "found": False}],
        thresholds={},
        logarithm="e",
        config_text="",
        notes=[],
    )
    assert "none was below" in written.read_text()
