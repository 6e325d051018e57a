"""The tables of a run: which numbers stand where, what competes, and what they call it."""

import math

import pytest

from cprl_jax.experiments.cprl import tables


def lines(table):
    return {(heading, line.name): line for heading, block in table.blocks().items() for line in block}


def test_methods_stand_side_by_side_under_each_attack(made):
    table = tables.numbers(made.results())
    assert list(table.blocks()) == ["no attack", "FGSM at 1/255", "FGSM at 2/255", "PGD at 1/255", "PGD at 2/255"]
    shown = lines(table)["PGD at 2/255", "cprl"].cells
    assert [cell.text for cell in shown] == ["0.520", "0.510", "19.60", "0.520", "0.510", "19.60", "0.990", "2.00"]
    assert [cell.best for cell in shown] == 6 * [True] + 2 * [False]
    assert shown[0].note == "[0.42, 0.62]"
    clean = lines(table)["no attack", "plain"].cells
    assert [cell.text for cell in clean[3:6]] == 3 * ["–"], "clean scores against themselves are no result"


def test_only_trustworthy_rows_compete(made):
    pair = ("pgd", 2.0)
    rows = [made.row("plain", *pair, srcc=-0.5), made.row("cprl", *pair, srcc=0.5)]
    rows += [made.row("blind", *pair, srcc=0.9, zero_gradient_fraction=0.9), made.row("none", *pair, srcc=math.nan)]
    table = tables.numbers(made.results(rows))
    assert [line.name for line in lines(table).values() if line.cells[0].best] == ["cprl"]
    assert [line.name for line in lines(table).values() if line.flagged] == ["blind"]
    assert "do not compete" in table.legend and "do not compete" not in tables.numbers(made.results()).legend


def test_the_heading_says_how_the_attack_was_run(made):
    how = {"direction": "reflect", "steps": 10, "restarts": 1}
    rows = [made.row(**how), made.row(attack="pgd", radius=2.0, **how)]
    rows.append(made.row(attack="perceptual:ssim", radius=0, direction="away", steps=1, restarts=3))
    rows.append(made.row(attack="universal", radius=1, direction="up", steps="", restarts=math.nan))
    assert list(tables.numbers(made.results(rows)).blocks()) == [
        "no attack",
        "PGD at 2/255 (reflect, 10 steps, 1 start)",
        "perceptual (ssim) (away, 1 step, 3 starts)",
        "universal at 1/255 (up)",
    ]


def test_rounded_images_are_shown_where_they_differ(made):
    rows = [made.row(attack="pgd", radius=0.5, srcc=0.5, srcc_8bit=0.512), made.row(srcc=0.8, srcc_8bit=0.8)]
    table = tables.numbers(made.results(rows))
    assert [column.title for column in table.columns][:2] == ["SRCC", "8 bit"]
    assert [line.cells[1].text for line in lines(table).values()] == ["0.512", ""]
    assert "8 bit" not in tables.numbers(made.results(rows[1:])).text()


def test_the_terminal_fits(made):
    four = ("plain", "plain_longer", "cprl_loss", "cprl")
    rows = made.rows({name: {("none", 0): 0.8, ("target_free", 0.5): -0.123} for name in four})
    rows = [row | {"srcc_8bit": 0.5} for row in rows]
    assert max(map(len, tables.numbers(made.results(rows)).text().splitlines())) <= 115


def test_differences_have_a_line_for_each_condition(made):
    rows = [
        {"method": method, "baseline": "plain_longer", "attack": attack, "radius": 2.0, "difference": 0.891}
        | {"low": 0.8, "high": 0.97}
        for method in ("plain", "cprl")
        for attack in ("fgsm", "pgd")
    ]
    table = tables.differences(made.results(differences=rows[:3]))
    text = [line.split() for line in table.text().splitlines()]
    assert text[0] == ["SRCC", "less", "plain_longer's", "plain", "cprl"]
    assert text[1] == ["FGSM", "at", "2/255", "+0.89", "[0.80,", "0.97]", "+0.89", "[0.80,", "0.97]"]
    assert text[2] == ["PGD", "at", "2/255", "+0.89", "[0.80,", "0.97]", "–"]
    assert not tables.differences(made.results())


def test_small_print_of_medians():
    row = {"srcc": 0.6, "srcc_quartile_1": 0.55, "srcc_quartile_3": 0.65, "srcc_min": 0.5, "srcc_max": 0.7}
    assert tables.over_splits(row | {"srcc_count": 3, "runs": 3}, "srcc") == "[0.550, 0.650] (0.500 to 0.700)"
    assert tables.over_splits(row | {"srcc_count": 2, "runs": 3}, "srcc").endswith("(0.500 to 0.700) in 2 of 3")
    assert tables.over_splits(row | {"srcc_count": 0, "runs": 3}, "srcc") == ""


def test_worst_cases_are_the_largest_changes(made):
    scores = made.scores(("plain",), (("pgd", 2.0),))
    for index, row in enumerate(scores):
        row["score"] = row["clean"] + (-1) ** index * index
    scores[0]["score"] = math.nan
    (block,) = tables.worst(made.results(scores=scores)).blocks().values()
    assert [line.name for line in block] == [f"image_{index:02}.png" for index in (11, 10, 9, 8, 7)]
    assert [line.cells[3].text for line in block[:2]] == ["-11.0", "+10.0"]


def test_areas_under_the_curves_and_r(made):
    rows = [row | {"r": math.inf if row["method"] == "plain" else 1.234} for row in made.collapse]
    found = tables.areas(made.results(rows, robustness=[made.robustness("plain"), made.robustness("cprl")]))
    assert [[cell.text for cell in line.cells] for line in lines(found).values()] == [
        ["0.400", "0.250", "∞"],
        ["0.400", "0.250", "1.23"],
    ]
    assert not tables.areas(made.results(robustness=[{"method": "plain"}]))


@pytest.mark.parametrize("note", [tables.over_splits, None])
def test_zero_shot_has_a_block_for_each_set(made, note):
    rows = [
        {"method": method, "dataset": dataset, "images": 450, "srcc": 0.5, "srcc_low": 0.4, "srcc_high": 0.6}
        | {"plcc": 0.51, "rmse": 12.0}
        for method in ("plain", "cprl")
        for dataset in ("own:<photos>", "koniq")
    ]
    table = tables.zero_shot(made.results(zero_shot=rows), **({"note": note} if note else {}))
    assert list(table.blocks()) == ["zero-shot on own:<photos>", "zero-shot on koniq"]
    line = lines(table)["zero-shot on koniq", "cprl"]
    assert [cell.text for cell in line.cells] == ["450", "0.500", "0.510", "12.00"]
    assert line.cells[1].note == ("" if note else "[0.40, 0.60]")
    assert table.csv().splitlines()[0] == "method,dataset,images,srcc,plcc,rmse,srcc_low,srcc_high"


def test_columns_beyond_the_paper_stand_where_rows_have_them(made):
    ensemble = made.row(attack="ensemble", radius=1.0, srcc=0.1, converged=False, r=1.25)
    reach = made.row(attack="reach:low", radius=1.0, srcc=0.2, lowest_srcc=-0.5, lowest_srcc_bound=-0.75)
    known = {"SRCC", "PLCC", "RMSE", "SSIM", "change"}
    assert {column.title for column in tables.numbers(made.results()).columns} == known
    table = tables.numbers(made.results([made.row(), ensemble, reach]))
    assert {column.title for column in table.columns} == known | {"R", "converged", "reached", "bound"}
    cells = {heading: [cell.text for cell in line.cells[-4:]] for (heading, _), line in lines(table).items()}
    assert cells == {
        "no attack": ["–", "", "–", "–"],
        "ensemble at 1/255": ["1.25", "no", "–", "–"],
        "reach (low) at 1/255": ["–", "", "-0.500", "-0.750"],
    }
    assert [heading for (heading, _), line in lines(table).items() if line.flagged] == ["ensemble at 1/255"]
    assert "none can undercut" in table.legend
