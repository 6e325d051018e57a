"""From answers to the tables: verdicts and counterexamples against counting by hand, and every promised file."""

import csv
import json
import shutil

import numpy as np
import pytest
import scipy.stats

from cprl_jax.report import page as page_lib
from cprl_jax.report.table import csv_text
from cprl_jax.runtime.errors import UserError
from cprl_jax.study import __main__ as program
from cprl_jax.study.analysis import analyse, answers


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def given(made):
    pairs = made.pairs_of()
    rows = made.modelled(pairs)
    spammer, liner = 16, 17
    random = np.random.default_rng(1)
    for number in (spammer, liner):
        for row in [row for row in rows if row["observer"] == 1]:
            said = random.choice(["same", "different"]) if number == spammer else "same"
            rows.append(row | {"observer": number, "step": f"{number} {row['step']}", "answer": str(said)})
    return made.export(pairs, rows, [made.observer(number) for number in range(1, 18)])


@pytest.fixture(scope="module")
def analysed(attack, given, tmp_path_factory):
    out = tmp_path_factory.mktemp("analysis")
    return out, analyse.run(attack, answers.combine({"study.json": given}), out)


def test_verdicts_and_counterexamples_are_those_of_counting_by_hand(analysed, given):
    out, _ = analysed
    counted = [row for row in given["answers"] if row["observer"] < 16 and row["role"] == "test"]
    keys = ("model", "fidelity", "image", "candidate")
    candidates = {tuple(str(pair[key]) for key in keys): pair["pair"] for pair in given["pairs"]}
    strongest = {}
    for row in read(out / "verdicts.csv"):
        names = tuple(row[key] for key in keys)
        said = [one["answer"] == "different" for one in counted if one["pair"] == candidates[names]]
        assert (int(row["answers"]), int(row["seen"])) == (len(said), sum(said))
        assert (row["below_jnd"] == "1") == (sum(said) < 0.25 * len(said))
        low, high = scipy.stats.binomtest(sum(said), len(said)).proportion_ci(method="wilson")
        written = [float(row[f"share_seen_{end}"]) for end in ("low", "high")]
        np.testing.assert_allclose(written, [low, high], atol=1e-6)
        if row["below_jnd"] == "1":
            strongest.setdefault(names[:3], []).append((abs(float(row["change"])), int(names[3])))
    for row in read(out / "counterexamples.csv"):
        best = max(strongest.get(tuple(row[key] for key in keys[:3]), [(0, None)]))
        assert (row["found"] == "1") == (best[1] is not None)
        assert best[1] is None or int(row["candidate"]) == best[1]


def test_the_tables_have_intervals_around_their_numbers_and_the_published_ones_beside(analysed):
    out, shown = analysed
    for name, lines in (("intra", 4), ("transfer", 4)):
        rows = read(out / f"{name}.csv")
        assert len(rows) == lines
        for row in rows:
            for measure in ("r", "mean_change"):
                assert float(row[f"{measure}_low"]) <= float(row[measure]) <= float(row[f"{measure}_high"])
            assert float(row["srcc"]) and row["srcc_low"] == row["srcc_high"] == "nan"  # five images are too few
    text = (out / "tables.md").read_text(encoding="utf-8")
    assert "0.4116" not in text and "0.412" in text  # BRISQUE under Chebyshev
    assert "2.765" in text  # BRISQUE on the counterexamples of Ma19
    beside = {(row["model"], row["attacked"], row["fidelity"]): row for row in read(out / "published.csv")}
    assert len(beside) == 8 and float(beside["brisque", "ma19", "chebyshev"]["published_r"]) == 2.7651
    assert "Table 2" in page_lib.terminal(shown)


def test_the_spammer_and_the_straight_liner_are_left_out_by_name(analysed):
    out, _ = analysed
    left_out = {row["observer"]: row["excluded"] for row in read(out / "observers.csv") if row["excluded"]}
    assert left_out == {"16": "catch trials", "17": "one answer to nearly everything"}


def test_everything_is_written_and_the_page_loads_nothing(analysed):
    out, _ = analysed
    names = {path.name for path in out.iterdir()}
    promised = "counted observers verdicts counterexamples jnd intra transfer"
    assert {f"{name}.csv" for name in promised.split()} | {"report.html", "tables.md", "figures"} <= names
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "http" not in html.replace("http://www.w3.org", "") and "catch trials" in html
    jnds = read(out / "jnd.csv")
    assert [(row["model"], row["fidelity"]) for row in jnds[:2]] == [("all", "chebyshev"), ("all", "ssim")]
    assert all(abs(float(row["jnd_db"])) < 2 for row in jnds)  # planted at 0 dB


@pytest.mark.parametrize("said", ["same", "different"])
def test_observers_who_agree_on_everything_are_analysed(attack, made, tmp_path, said):
    """All right in the catch trials, and one answer to all pairs: no threshold is known, and every number says so."""
    pairs = made.pairs_of()
    rows = [row | ({"answer": said} if row["role"] == "test" else {}) for row in made.modelled(pairs, guess=0, lapse=0)]
    given = made.export(pairs, rows, [made.observer(number) for number in range(1, 16)])
    analyse.run(attack, answers.combine({"study.json": given}), tmp_path)
    verdicts = read(tmp_path / "verdicts.csv")
    assert {row["below_jnd"] for row in verdicts} == {"1" if said == "same" else "0"}
    assert {row["found"] for row in read(tmp_path / "counterexamples.csv")} == {"1" if said == "same" else "0"}
    lowest, highest = 20 * np.log10(made.LEVELS[[0, -1]])
    ends = (highest, np.inf) if said == "same" else (-np.inf, lowest)
    for row in read(tmp_path / "jnd.csv"):
        assert row["jnd_db"] == row["jnd"] == row["d_prime"] == "nan"
        assert [float(row[f"jnd_db_{end}"]) for end in ("low", "high")] == pytest.approx(ends)
    assert "nan" not in (tmp_path / "tables.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("change", ["no-network", "damaged"])
def test_candidates_of_an_older_run_and_damaged_ones(attack, given, tmp_path, change):
    run = shutil.copytree(attack, tmp_path / "run")
    path = run / "report" / "candidates.csv"
    rows = read(path)
    for row in rows:
        row.pop("network")
    rows[3]["distance"] = "0.0x1" if change == "damaged" else rows[3]["distance"]
    path.write_text(csv_text(rows, ("model",)), encoding="utf-8")
    if change == "damaged":
        with pytest.raises(UserError, match=r"candidates\.csv: the distance of candidate 3 of .* is no number"):
            analyse.run(run, answers.combine({"x": given}), tmp_path / "out")
        return
    analyse.run(run, answers.combine({"x": given}), tmp_path / "out")
    assert len(read(tmp_path / "out" / "intra.csv")) == 4
    assert not (tmp_path / "out" / "published.csv").exists()  # whose network a model is, the run did not say


def test_the_job_reads_what_was_counted(analysed, made):
    from cprl_jax.experiments.perceptual import observers

    out, _ = analysed
    observations = observers.read(out / "counted.csv")
    assert observations.limit == 0.25 and len(observations.observers) == 15
    seen, asked = observations.of(("ma19", "ssim", made.IMAGES[0]), len(made.LEVELS))
    assert asked.tolist() == np.ones((15, len(made.LEVELS))).tolist() and 0 < seen.sum() < seen.size


def test_answers_about_another_run_and_answers_that_do_not_count_are_refused(attack, given, tmp_path):
    other = given | {"pairs": [pair | {"distance": 2 * pair["distance"]} for pair in given["pairs"]]}
    with pytest.raises(UserError, match="about another run than .* at a distance of"):
        analyse.run(attack, answers.combine({"x": other}), tmp_path)
    hidden = given | {"answers": [row | {"hidden": True} for row in given["answers"]]}
    with pytest.raises(UserError, match="no answer counts: too many answers that do not count"):
        analyse.run(attack, answers.combine({"x": hidden}), tmp_path)
    with pytest.raises(UserError, match=r"candidates\.csv cannot be read .*finish a run"):
        analyse.run(tmp_path, answers.combine({"x": given}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_where_it_is_told(attack, given, tmp_path, capsys):
    (tmp_path / "study.json").write_text(json.dumps(given))
    out = tmp_path / "out"
    command = ["analyse", f"--run={attack}", f"--answers={tmp_path / 'study.json'}", f"--out={out}"]
    assert program.main(command) == 0
    assert "15 of 17 observers count" in capsys.readouterr().out and (out / "report.html").exists()
    assert program.main([*command, "--answers", str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err
