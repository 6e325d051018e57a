import math

import numpy as np
import pytest

from cprl_jax.experiments.cprl import results


def test_conditions_are_ordered_for_reading(made):
    entries = [
        made.row(attack="pgd", radius=4),
        made.row(attack="target_free", radius=1),
        made.row(attack="fgsm", radius=2.0),
        made.row(attack="pgd", radius=0.5),
        made.row(),
    ]
    expected = [("none", 0.0), ("pgd", 0.5), ("pgd", 4.0), ("target_free", 1.0), ("fgsm", 2.0)]
    assert results.conditions(entries) == expected


def test_radii_that_print_alike_are_one(made):
    entries = [made.row(attack="pgd", radius=2 / 255 * 255), made.row(attack="pgd", radius=np.float32(2.0000001))]
    assert results.conditions(entries) == [("pgd", 2.0)]
    assert results.conditions([made.row(radius="")]) == [results.CLEAN]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([("none", 0.0)], None),
        ([], None),
        ([("fgsm", 2.0), ("pgd", 0.5), ("pgd", 1.0), ("pgd", 4.0)], ("pgd", 1.0)),
        ([("none", 0.0), ("fgsm", 8.0)], ("fgsm", 8.0)),
        ([("universal", 2.0), ("universal", 9.0)], ("universal", 2.0)),
        ([("pgd", 1.0), ("pgd", 3.0)], ("pgd", 1.0)),
    ],
)
def test_headline_is_pgd_nearest_to_two(made, found, expected):
    assert made.results([made.row(attack=attack, radius=radius) for attack, radius in found]).headline == expected


def test_what_is_wrong_is_named(made):
    with pytest.raises(ValueError, match=r"rows\[1\] lacks plcc, rmse; it has method, attack"):
        made.results([made.row(), {k: v for k, v in made.row().items() if k not in ("plcc", "rmse")}])
    with pytest.raises(ValueError, match="against must be one of mos, prediction, got 'dmos'"):
        made.results([made.row(against="dmos")])
    with pytest.raises(ValueError, match=r"radius must be a number \(units of 1/255\), got nan"):
        made.results([made.row(attack="pgd", radius=math.nan)])
    with pytest.raises(ValueError, match=r"checks of plain\[0\] lacks verdict, numbers"):
        made.results(robustness=[{"method": "plain", "checks": [{"name": "a", "explanation": ""}]}])


def test_names(made):
    titles = {"pgd": "PGD", "universal": "Universal", "universal:file": "Published"}
    shown = made.results(attack_titles=titles)
    pairs = (("none", 0.0), ("pgd", 0.5), ("target_free", 2.0), ("universal:other", 1.0), ("universal:file", 1.0))
    assert [shown.title(pair) for pair in (*pairs, ("perceptual:ssim", 0.0))] == [
        "no attack",
        "PGD at 0.5/255",
        "target free at 2/255",
        "Universal (other) at 1/255",
        "Published at 1/255",
        "perceptual (ssim)",
    ]


def test_find_distinguishes_all_keys(made):
    row = made.results().find("cprl", ("pgd", 2.0), "mos")
    assert row["srcc"] == 0.52 and row["against"] == "mos"
    assert made.results().find("at", ("pgd", 2.0)) is None


def test_methods_of_every_part_count(made):
    shown = made.results(histories={"at": []}, robustness=[{"method": "trades"}], scores=made.scores(("nt",)))
    assert shown.methods == ["plain", "cprl", "nt", "trades", "at"]
    assert made.results([]).methods == []


@pytest.mark.parametrize(
    ("methods", "expected"),
    [(["at", "plain", "plain_longer"], "plain_longer"), (["at", "plain"], "plain"), (["at", "cprl"], "at")],
)
def test_baseline_is_the_plain_model_that_was_trained_longest(methods, expected):
    assert results.baseline(methods) == expected
