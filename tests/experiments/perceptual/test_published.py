"""The published numbers of the perceptual attack: as many as the tables have, some of them as read from the pages."""

import pytest

from cprl_jax.experiments.perceptual import published

MODELS, FIDELITIES = ("brisque", "cornia", "ma19", "unique"), ("chebyshev", "ssim", "lpips", "dists")


def find(**wanted):
    (row,) = [row for row in published.read() if all(row[key] == value for key, value in wanted.items())]
    return row


def test_both_tables_are_whole():
    rows = published.read()
    cells = {(row["model"], row["attacked"], row["fidelity"]) for row in rows}
    assert cells == {(m, a, f) for m in MODELS for a in MODELS for f in FIDELITIES} and len(rows) == len(cells)
    assert all((row["model"] == row["attacked"]) == (row["table"] == 1) for row in rows)
    # What the paper says of them (Section 4.2).
    intra = {(row["model"], row["fidelity"]): row["r"] for row in rows if row["table"] == 1}
    for fidelity in FIDELITIES:
        assert min(MODELS, key=lambda model: intra[model, fidelity]) == "unique"
    assert max(intra.values()) < min(row["r"] for row in rows if row["table"] == 2)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (("brisque", "brisque", "chebyshev"), (0.0959, 0.4116)),
        (("unique", "unique", "dists"), (-0.1726, 0.1229)),
        (("brisque", "cornia", "dists"), (0.7254, 1.8017)),
        (("cornia", "ma19", "chebyshev"), (0.9730, 4.3930)),
        (("ma19", "unique", "lpips"), (0.8893, 3.5103)),
        (("unique", "ma19", "lpips"), (0.9346, 4.9144)),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_values_as_printed(names, numbers):
    row = find(**dict(zip(("model", "attacked", "fidelity"), names, strict=True)))
    assert (row["srcc"], row["r"]) == numbers


def test_ours_stand_beside_them():
    intra = [
        {
            "model": "own-plain",
            "network": "ma19",
            "fidelity": "ssim",
            "srcc_before": 0.9,
            "srcc": 0.2,
            "r": 0.5,
            "r_low": 0.4,
            "r_high": 0.6,
        },
        {"model": "other-cprl", "network": "", "fidelity": "ssim", "srcc": 0.1},
    ]
    table = published.beside(intra, [])
    (line,) = table.blocks()["Table 1: own-plain"]
    assert line.name == "own-plain, ssim"
    assert [cell.text for cell in line.cells] == [
        "0.900",
        "0.909",
        "0.200",
        "0.145",
        "0.500",
        "0.391",
        "–",
        "[0.400, 0.600]",
    ]
    assert not published.beside([{"model": "run-plain", "network": "squeezenet", "fidelity": "ssim"}], [])
