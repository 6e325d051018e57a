"""Exports of one study or several, and one sentence for what is none."""

import json

import pytest

from cprl_jax.runtime.errors import UserError
from cprl_jax.study.analysis import answers


@pytest.fixture
def export(made):
    pairs = made.pairs_of()[:2]
    rows = [made.answer(number, 1, pair=pairs[0]["pair"]) for number in (1, 2)]
    return made.export(pairs, rows, [made.observer(1), made.observer(2)])


def test_an_observer_in_two_exports_counts_once_and_another_laboratory_is_told_apart(export):
    one = answers.combine({"a": export})
    assert [row["observer"] for row in one.answers] == ["1", "2"]
    twice = answers.combine({"a": export, "b": export})
    assert len(twice.answers) == 2 and len(twice.observers) == 2
    elsewhere = export | {"observers": [row | {"started": f"other {row['started']}"} for row in export["observers"]]}
    both = answers.combine({"a": export, "b": elsewhere})
    assert sorted(row["observer"] for row in both.answers) == ["1-1", "1-2", "2-1", "2-2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": []}, "nobody has answered yet"),
        ({"answers": None}, "no list of answers"),
        ({"settings": None}, "it has no settings"),
        ({"pairs": []}, "the pair pair0, which is not among"),
        ({"observers": [{"observer": 1}]}, "its observers have no bright_seen"),
        ({"observers": []}, "answers of observer 1, who is not among its observers"),
    ],
    ids=["none", "no list", "settings", "pairs", "column", "observer"],
)
def test_what_is_wrong_is_said(export, change, words, tmp_path):
    path = tmp_path / "study.json"
    path.write_text(json.dumps(export | change))
    with pytest.raises(UserError, match=words) as raised:
        answers.read([path])
    assert "study.json" in str(raised.value)


def test_files_that_are_no_export_and_two_studies(export, tmp_path):
    path = tmp_path / "x.json"
    path.write_text("observer,answer")
    with pytest.raises(UserError, match="x.json is not JSON"):
        answers.read([path])
    with pytest.raises(UserError, match="cannot be read"):
        answers.read([tmp_path / "none.json"])
    with pytest.raises(UserError, match="no answers are given"):
        answers.read([])
    with pytest.raises(UserError, match="b is of another study than a"):
        answers.combine({"a": export, "b": export | {"study": "def"}})
