"""Verdicts of observers, the counterexamples that they choose, and the intervals of the tables."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.perceptual import intervals, observers, results
from cprl_jax.robustness import metrics
from cprl_jax.runtime.errors import UserError

IMAGES, CANDIDATES, OBSERVERS = 12, 5, 9


def candidates():
    random = np.random.default_rng(0)
    rows = []
    for image, candidate in itertools.product(range(IMAGES), range(CANDIDATES)):
        before = 2.0 + image / 2
        after = before + (0.2 + candidate) * random.choice([-0.4, 0.4])
        row = {"model": "m", "fidelity": "ssim", "image": f"i{image}", "candidate": candidate, "before": before}
        row |= {"after": after, "change": after - before, "distance": candidate / 100, "max_change": float(candidate)}
        row |= {"ssim": 0.99, "zero_gradient_fraction": 0.0, "below_threshold": candidate < 3, "imperceptible": ""}
        rows.append(row)
    return rows


def cells(rows):
    return [[row for row in rows if row["image"] == f"i{image}"] for image in range(IMAGES)]


def answered(seed=1):
    """The farther a candidate, the more often it is seen; nobody was asked about the last one of the first image."""
    random = np.random.default_rng(seed)
    names = ("observer", "trial", "model", "fidelity", "image", "candidate", "seen")
    return observers.collect(
        dict(zip(names, (f"o{o}", "yesno", "m", "ssim", f"i{i}", c, int(random.random() < c / 8)), strict=True))
        for o, i, c in itertools.product(range(OBSERVERS), range(IMAGES), range(1, CANDIDATES))
        if (i, c) != (0, CANDIDATES - 1)
    )


def test_distances_that_rounding_took_below_zero_are_zero(tmp_path):
    """Files of answers have no negative distances."""
    names = ("multipliers", "step_sizes", "before", "after", "after_unquantized", "ssim", "max_change")
    arrays = dict.fromkeys((*names, "zero_gradient_fraction"), np.ones(2))
    arrays |= dict.fromkeys(("distances", "distances_unquantized"), [-1e-7, 0.01])
    cell = SimpleNamespace(
        target=SimpleNamespace(name="m", network="ma19"),
        fidelity=SimpleNamespace(name="ssim", threshold=0.02),
        picture=SimpleNamespace(name="i"),
        path=tmp_path / "i.npz",
    )
    rows = results.candidate_rows(cell, arrays, folder=tmp_path)
    assert [row["distance"] for row in rows] == [row["distance_unquantized"] for row in rows] == [0.0, 0.01]


@pytest.mark.parametrize(("seen", "asked"), [(0, 15), (3, 15), (4, 15), (15, 15), (1, 4)])
def test_a_verdict_is_a_quarter_and_the_interval_wilsons(seen, asked):
    verdict = observers.judge(np.array(seen), np.array(asked), 0.25)
    low, high = scipy.stats.binomtest(seen, asked).proportion_ci(method="wilson")
    np.testing.assert_allclose([verdict.low, verdict.high], [low, high], atol=1e-6)
    assert bool(verdict.below) == (4 * seen < asked)  # exactly a quarter is not fewer


def test_who_was_not_asked_about_is_not_below_and_what_did_not_change_is():
    rows = cells(candidates())[0]
    observations = answered()
    chosen = results.choose(rows, mos=50.0, seconds=1.0, observations=observations)
    seen, asked = (counts.sum(axis=0) for counts in observations.of(("m", "ssim", "i0"), CANDIDATES))
    assert asked.tolist() == [0, OBSERVERS, OBSERVERS, OBSERVERS, 0]
    below = [c for c in range(1, CANDIDATES - 1) if seen[c] < 0.25 * asked[c]]
    assert chosen["found"] and chosen["candidate"] == max([0, *below])
    assert rows[0]["imperceptible"] is True and rows[-1]["imperceptible"] == ""
    assert sum(row["selected"] for row in rows) == 1


@pytest.mark.parametrize("asked", [False, True], ids=["threshold", "observers"])
def test_a_draw_of_everybody_gives_the_tables_and_others_their_intervals(asked):
    rows, observations = candidates(), answered() if asked else None
    chosen = [
        results.choose(cell, mos=10.0 * place, seconds=1.0, observations=observations)
        for place, cell in enumerate(cells(rows))
    ]
    everybody = intervals.Draws(np.arange(IMAGES)[None], np.ones((1, OBSERVERS if asked else 0), int))
    picked, found = intervals._pick(cells(rows), observations, everybody)
    assert picked[0].tolist() == [row["candidate"] for row in chosen] and found.all()
    tables = intervals.tables(rows, chosen, {}, observations=observations, base="10", seed=0, resamples=300)
    (row,) = tables["intra"]
    before, after = (np.array([one[key] for one in chosen]) for key in ("before", "after"))
    assert row["r"] == pytest.approx(metrics.r_robustness(before, after, base=10.0))
    for measure in intervals.MEASURES:
        assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]
    if not asked:  # images alone: against scipy's bootstrap of a mean
        change = np.abs(after - before)
        reference = scipy.stats.bootstrap((change,), np.mean, method="percentile", n_resamples=3000, rng=1)
        interval = reference.confidence_interval
        np.testing.assert_allclose([row["mean_change_low"], row["mean_change_high"]], interval, atol=0.08)


def test_images_without_a_counterexample_are_left_out_of_every_draw():
    rows = candidates()
    for row in cells(rows)[2]:
        row["below_threshold"] = False
    chosen = [results.choose(cell, mos=10.0 * place, seconds=1.0) for place, cell in enumerate(cells(rows))]
    (row,) = intervals.tables(rows, chosen, {}, observations=None, base="e", seed=0, resamples=200)["intra"]
    assert row["images"] == IMAGES - 1 and row["r_low"] <= row["r"] <= row["r_high"]
    assert row["srcc_low"] <= row["srcc"] <= row["srcc_high"]


def test_few_images_have_no_interval_of_srcc():
    """The SRCC of a few images lies outside of what draws of them, in which half repeat, have as theirs."""
    few = cells(candidates())[: intervals.FEWEST_FOR_SRCC - 1]
    chosen = [results.choose(cell, mos=10.0 * place, seconds=1.0) for place, cell in enumerate(few)]
    rows = [row for cell in few for row in cell]
    (row,) = intervals.tables(rows, chosen, {}, observations=None, base="e", seed=0, resamples=50)["intra"]
    assert np.isfinite([row["srcc"], row["r_low"], row["r_high"]]).all()
    assert np.isnan([row["srcc_low"], row["srcc_high"]]).all()


def test_notes_say_who_decided():
    config = config_lib.default()
    rows = [results.choose(cell, mos=1.0, seconds=1.0) for cell in cells(candidates())]
    assert any("No observer looked" in note for note in results.notes(config, rows))
    notes = results.notes(config, rows, answered())
    assert any(f"{OBSERVERS} observers decided" in note for note in notes)
    assert not any("No observer looked" in note for note in notes)


def test_no_answers_or_a_damaged_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="selection is 'observers', but there is no .*cprl_jax.study analyse"):
        observers.read(tmp_path / "counted.csv")
    (tmp_path / "counted.csv").write_text("observer,trial\n1,yesno\n")
    with pytest.raises(UserError, match="counted.csv cannot be read"):
        observers.read(tmp_path / "counted.csv")
