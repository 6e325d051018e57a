"""Averages over cells against literal formulas, and intervals against the exact bootstrap distribution."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from cprl_jax.experiments.causal_iqa import results


def rows(tables):
    """Rows of tables update -> [distortions][seeds] of SRCC."""
    return [
        {"update": update, "distortion": f"d{d}", "seed": 5 + s, "images": 9, "srcc": srcc, "plcc": 0.0}
        for update, table in tables.items()
        for d, line in enumerate(table)
        for s, srcc in enumerate(line)
    ]


def test_row_and_rows_by_distortion():
    generator = np.random.default_rng(0)
    scores, mos = generator.normal(size=(2, 11))
    distortions = np.array(["b"] * 4 + ["a"] * 3 + [""] * 2 + ["few"] * 2)
    found = results.rows_by_distortion("cis", 7, scores, mos, distortions)
    assert [(row["distortion"], row["images"]) for row in found] == [("(test part)", 11), ("a", 3), ("b", 4)]
    assert all((row["update"], row["seed"]) == ("cis", 7) for row in found)
    for row, chosen in zip(found, (slice(None), slice(4, 7), slice(0, 4)), strict=True):
        assert row["srcc"] == pytest.approx(scipy.stats.spearmanr(scores[chosen], mos[chosen]).statistic)
        assert row["plcc"] == pytest.approx(scipy.stats.pearsonr(scores[chosen], mos[chosen]).statistic)
    assert math.isnan(results.row("erm", "a", 0, np.zeros(4), np.arange(4.0))["srcc"])


def test_averages_against_literal_formulas():
    generator = np.random.default_rng(1)
    tables = {update: generator.uniform(-1, 1, (4, 3)) for update in ("erm", "metaiqa", "cis")}
    shuffled = [row for row in rows(tables)]
    generator.shuffle(shuffled)
    found = {row["update"]: row for row in results.averages(shuffled, seed=3, resamples=200)}

    literal = np.random.default_rng(3)
    drawn = literal.integers(4, size=(200, 4, 1))
    seeds = literal.integers(3, size=(200, 4, 3))
    for update, table in tables.items():
        row = found[update]
        assert row["srcc"] == pytest.approx(sum(map(sum, table)) / 12)
        assert row["difference"] == pytest.approx(sum(map(sum, table)) / 12 - sum(map(sum, tables["erm"])) / 12)
        assert row["wins"] == sum(table[d][s] > tables["erm"][d][s] for d in range(4) for s in range(3))
        assert row["cells"] == 12
        means, differences = [], []
        for draw in range(200):
            cells = [(drawn[draw, place, 0], seeds[draw, place, s]) for place in range(4) for s in range(3)]
            means.append(sum(table[cell] for cell in cells) / 12)
            differences.append(means[-1] - sum(tables["erm"][cell] for cell in cells) / 12)
        for name, values in (("srcc", means), ("difference", differences)):
            low, high = np.quantile(values, [0.025, 0.975])
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high))
    assert found["erm"]["difference"] == found["erm"]["difference_low"] == found["erm"]["wins"] == 0


def test_intervals_approach_the_exact_bootstrap():
    """Two distortions of two seeds: 4 x 16 equally likely samples in all."""
    table = np.array([[0.1, 0.3], [0.6, 1.0]])
    exact = [
        np.mean([table[d, [a, b]] for d, (a, b) in zip(ds, (first, second), strict=True)])
        for ds in itertools.product(range(2), repeat=2)
        for first in itertools.product(range(2), repeat=2)
        for second in itertools.product(range(2), repeat=2)
    ]
    (row,) = results.averages(rows({"erm": table}), seed=0, resamples=20_000)
    np.testing.assert_allclose([row["srcc_low"], row["srcc_high"]], np.quantile(exact, [0.025, 0.975]), atol=0.03)


def test_what_has_no_value():
    tables = {"erm": [[math.nan], [0.5]], "cip": [[0.2], [0.4]]}
    erm, cip = results.averages(rows(tables), seed=0, resamples=10)
    assert erm["srcc"] == 0.25 and cip["difference"] == pytest.approx(0.05) and cip["wins"] == 1
    (alone,) = results.averages(rows({"cip": [[0.2], [0.4]]}), seed=0, resamples=10)
    assert math.isnan(alone["difference"]) and math.isnan(alone["difference_low"]) and alone["wins"] == 0
    assert alone["srcc_low"] <= alone["srcc"] <= alone["srcc_high"]
    one = results.averages(rows({"erm": [[0.1, 0.3]], "cis": [[0.2, 0.6]]}), seed=0, resamples=10)
    assert math.isnan(one[1]["srcc_low"]) and one[1]["difference"] == pytest.approx(0.2)


def test_the_whole_test_part_counts_only_where_there_is_nothing_else():
    whole = [{"update": "erm", "distortion": results.WHOLE, "seed": 0, "images": 9, "srcc": 0.9, "plcc": 0.9}]
    assert results.averages(whole, seed=0, resamples=10)[0]["srcc"] == 0.9
    assert results.averages(whole + rows({"erm": [[0.1], [0.2]]}), seed=0, resamples=10)[0]["cells"] == 2


def test_missing_and_repeated_cells():
    complete = rows({"erm": [[0.1, 0.2], [0.3, 0.4]]})
    for wrong, said in (
        (complete[:-1], "erm: 3 cells for 2 distortions and 2 seeds"),
        ([*complete[:-1], complete[0]], "occurs twice"),
        (complete + rows({"cis": [[0.1, 0.2]]}), "same distortions and seeds"),
    ):
        with pytest.raises(ValueError, match=said):
            results.averages(wrong, seed=0, resamples=10)
