import math

import numpy as np
import pytest

from cprl_jax.evaluation import statistics
from cprl_jax.experiments.cprl import findings


def test_trustworthy_results_have_no_warnings(made):
    assert findings.warnings(made.results()) == []
    assert findings.warnings(made.results([])) == []


def test_vanished_gradient_is_named_once_per_method(made):
    rows = [made.row("lwta")]
    for attack in ("fgsm", "pgd"):
        for radius in (1.0, 2.0):
            for against in ("mos", "prediction"):
                rows.append(made.row("lwta", attack, radius, against, 0.79, zero_gradient_fraction=0.4 + radius / 5))
    (text,) = findings.warnings(made.results(rows))
    assert text.startswith("lwta: gradient vanished, robustness not established. Up to 80 % of the pixels")
    assert text.endswith("to push: FGSM at 1/255, FGSM at 2/255, PGD at 1/255 and PGD at 2/255.")
    assert findings.gradient_vanished(made.row(zero_gradient_fraction=0.51))
    assert not findings.gradient_vanished(made.row(zero_gradient_fraction=0.5))
    assert not findings.gradient_vanished(made.row(zero_gradient_fraction=math.nan))


def test_same_score_for_every_image(made):
    (text,) = findings.warnings(
        made.results([made.row(score_std=1.23), made.row(attack="pgd", radius=2.0, score_std=1.1)])
    )
    assert text.startswith("plain says nearly the same of every image: its scores have a standard deviation of 1.23")
    assert findings.warnings(made.results([made.row(score_std=2.5)])) == []
    flat = [made.row(score_std=0.4), made.row(attack="pgd", radius=4.0, score_std=5.0)]
    assert findings.doubtful(made.results(flat), "plain", ("pgd", 4.0)), (
        "an attack that spreads the scores makes no model of it"
    )
    # An attack that drives all scores to one value is no fault of the model's spread.
    assert (
        findings.warnings(made.results([made.row(), made.row(attack="pgd", radius=2.0, srcc=-0.5, score_std=0.5)]))
        == []
    )


def test_squashed_scores_are_compared_with_the_widest(made):
    (text,) = findings.warnings(made.results([made.row("plain", score_std=20.0), made.row("cprl", score_std=9.9)]))
    assert text.startswith("cprl squashes its scores: their standard deviation is 9.9, that of plain is 20.0.")
    assert findings.warnings(made.results([made.row("plain", score_std=20.0), made.row("cprl", score_std=10.0)])) == []


def test_false_comfort(made):
    """The defence that holds against FGSM (0.29 and 0.19 of 0.71) and falls to PGD."""
    conditions = {("none", 0): 0.714, ("fgsm", 1.0): 0.29, ("fgsm", 2.0): 0.19, ("pgd", 1.0): 0.2, ("pgd", 2.0): -0.58}
    (text,) = findings.warnings(made.results(made.rows({"cprl": conditions})))
    expected = "cprl holds against FGSM, falls to PGD: false comfort (at 2/255 FGSM leaves SRCC 0.19, PGD -0.58)."
    assert text == expected
    # A plain model that falls to both deceives nobody.
    assert (
        findings.warnings(made.results(made.rows({"plain": {("none", 0): 0.77, ("fgsm", 1): -0.49, ("pgd", 1): -0.9}})))
        == []
    )


def test_attacks_that_did_not_converge(made):
    conditions = {("none", 0): 0.8, ("fgsm", 1.0): 0.3, ("fgsm", 2.0): 0.55, ("pgd", 1.0): 0.6, ("pgd", 2.0): 0.5}
    (text,) = findings.warnings(made.results(made.rows({"cprl": conditions})))
    assert "PGD does less harm than FGSM at 1/255 (SRCC 0.60 against 0.30)" in text
    assert "FGSM does less harm at 2/255 than at 1/255 (SRCC 0.55 against 0.30)" in text
    # Where nothing is left of the ranking either way, the order of the attacks does not matter.
    collapsed = {("none", 0): 0.8, ("fgsm", 1.0): -0.5, ("pgd", 1.0): -0.2, ("pgd", 2.0): 0.1}
    assert findings.warnings(made.results(made.rows({"plain": collapsed}))) == []


def test_missing_and_nan_numbers_raise_no_warning(made):
    bare = {"method": "a", "attack": "pgd", "radius": 2, "against": "mos", "srcc": math.nan, "plcc": None, "rmse": ""}
    assert (
        findings.warnings(made.results([bare, {**bare, "attack": "fgsm"}, {**bare, "attack": "none", "radius": 0}]))
        == []
    )


def difference(method="cprl", attack="pgd", radius=2.0, numbers=(1.04, 0.9, 1.2), baseline="plain"):
    row = {"method": method, "baseline": baseline, "attack": attack, "radius": radius}
    return row | dict(zip(("difference", "low", "high"), numbers, strict=True))


def test_verdict_tells_the_fall_of_each_method(made):
    text = findings.verdict(made.results())
    assert "every pixel by at most 2/255?" in text
    assert text.endswith("plain 0.86 → -0.52, reversed; cprl 0.84 → 0.52, most of it survives.")


@pytest.mark.parametrize(
    ("attacked", "clean", "said"),
    [
        (
            (0.89, 0.8, 0.97),
            (-0.02, -0.05, -0.01),
            "above plain [0.80, 0.97], on untouched images 0.02 below it [0.01, 0",
        ),
        (
            (0.89, 0.8, 0.97),
            (0.02, 0.01, 0.05),
            "cprl ends 0.89 above plain [0.80, 0.97], on untouched images 0.02 above",
        ),
        ((0.89, 0.8, 0.97), (0.01, -0.02, 0.05), "cprl ends 0.89 above plain [0.80, 0.97]."),
        ((0.89, 0.8, 0.97), (math.nan, math.nan, math.nan), "cprl ends 0.89 above plain [0.80, 0.97]."),
        (
            (-0.1, -0.2, -0.05),
            (0.5, 0.4, 0.6),
            "cprl ends 0.10 below plain [0.05, 0.20], on untouched images 0.50 above",
        ),
        ((0.1, -0.004, 0.2), (0.5, 0.4, 0.6), "cprl cannot be told from plain (+0.10 [0.00, 0.20])."),
        ((math.nan, math.nan, math.nan), (0.5, 0.4, 0.6), "most of it survives."),
    ],
)
def test_verdict_says_no_more_than_the_paired_interval(made, attacked, clean, said):
    compared = [difference(numbers=attacked), difference(attack="none", radius=0.0, numbers=clean)]
    text = findings.verdict(made.results(differences=compared))
    assert said in text
    assert ("above plain [" in text) == (attacked[0] == 0.89)


def test_verdict_does_not_praise_what_is_doubtful(made):
    rows = made.rows({"plain": {("none", 0): 0.86, ("pgd", 2): -0.5}})
    rows += [made.row("flat", srcc=0.5, score_std=0.3), made.row("flat", "pgd", 2, srcc=0.5, score_std=0.3)]
    text = findings.verdict(made.results(rows, differences=[difference("flat")]))
    assert "flat 0.50 → 0.50, which holds (see the warnings)" in text
    assert "flat ends" not in text


def test_differences_are_paired_by_image(made):
    scores = made.scores(("cprl", "plain", "plain_longer"))
    np.random.default_rng(0).shuffle(scores)
    found = findings.differences(scores, seed=3, resamples=50)
    assert {(row["method"], row["baseline"]) for row in found} == {("cprl", "plain_longer"), ("plain", "plain_longer")}
    chosen = findings.differences(scores, seed=0, resamples=20, chosen="cprl")
    assert {(row["method"], row["baseline"]) for row in chosen} == {("plain_longer", "cprl"), ("plain", "cprl")}
    forth = {row["method"]: row["difference"] for row in found}["cprl"]
    assert {row["method"]: row["difference"] for row in chosen}["plain_longer"] == pytest.approx(-forth)
    assert len(found) == 2 * 3
    for row in found:
        by_name = {
            method: {
                score["name"]: score
                for score in scores
                if (score["method"], score["attack"], score["radius"]) == (method, row["attack"], row["radius"])
            }
            for method in (row["method"], "plain_longer")
        }
        # The names' order decides which images a draw takes: that of the method in `scores`.
        names = list(by_name[row["method"]])
        first, second = (np.array([by_name[method][name]["score"] for name in names]) for method in by_name)
        mos = np.array([by_name["plain_longer"][name]["mos"] for name in names])
        expected = statistics.paired_difference(first, second, mos, statistics.srcc, seed=3, resamples=50)
        np.testing.assert_allclose([row[key] for key in ("difference", "low", "high")], expected)


def test_differences_without_a_value_or_a_partner(made):
    scores = made.scores(("plain", "cprl"), (("pgd", 2.0),), images=4)
    scores[5]["score"] = math.nan
    (row,) = findings.differences(scores, seed=0, resamples=10)
    assert all(math.isnan(row[key]) for key in ("difference", "low", "high"))
    assert findings.differences(made.scores(("plain",)), seed=0, resamples=10) == []
    assert findings.differences([], seed=0, resamples=10) == []


def test_verdict_without_attacks_or_results(made):
    rows = [made.row("plain", srcc=0.86), made.row("cprl", srcc=0.84)]
    assert findings.verdict(made.results(rows)).endswith(
        "SRCC against the labels (1: the same order) is 0.86 for plain and 0.84 for cprl."
    )
    assert findings.verdict(made.results([])) == "There are no results to report."


def test_verdict_of_a_model_that_never_ranked(made):
    rows = [made.row(srcc=-0.2), made.row(attack="pgd", radius=2, srcc=-0.7)]
    assert findings.verdict(made.results(rows)).endswith("plain -0.20 → -0.70, but there was no ranking to lose.")


def test_verdict_of_undefined_numbers(made):
    rows = [made.row(srcc=math.nan), made.row(attack="pgd", radius=2, srcc=math.nan)]
    assert "plain – → –, which has no value" in findings.verdict(made.results(rows))


def test_trust_verdict_names_what_fails(made):
    found = [made.robustness("plain", masked=True), made.robustness("cprl"), {"method": "at"}]
    assert findings.trust_verdict(made.results(robustness=found)) == (
        'Checks for masked gradients: plain fails 2 of 2: "gradients exist" and "many steps beat one"; '
        "cprl passes all 2."
    )
    assert findings.trust_verdict(made.results()) == ""
    (warning,) = findings.warnings(made.results(robustness=found))
    assert warning.startswith("plain does not pass every check for masked gradients")
    assert findings.warnings(made.results(robustness=found[1:])) == []


def test_an_attack_that_has_not_converged_is_doubted(made):
    pair = ("ensemble", 1.0)
    rows = [made.row(name, *where) for name in ("plain", "cprl") for where in ((), pair)]
    rows[1]["converged"], rows[3]["converged"] = 1, 0
    results = made.results(rows)
    assert [findings.doubtful(results, name, pair) for name in ("plain", "cprl")] == [False, True]
    assert not findings.doubtful(results, "cprl", ("none", 0.0))
    assert findings.warnings(results) == [
        "cprl: ensemble at 1/255 had not converged. More iterations would lower the number."
    ]
