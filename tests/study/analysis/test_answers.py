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


def test_the_later_of_two_exports_knows_more_of_an_observer_in_either_order(export):
    early = export | {"observers": [row | {"dark_seen": None} for row in export["observers"]]}
    late = export | {"observers": [row | {"dark_seen": 1} for row in export["observers"]]}
    for exports in ({"a": early, "b": late}, {"b": late, "a": early}):
        assert [row["dark_seen"] for row in answers.combine(exports).observers] == [1, 1]


def test_two_answers_to_one_step_are_not_chosen_between(export):
    edited = export | {"answers": [row | {"answer": "different"} for row in export["answers"]]}
    with pytest.raises(UserError, match="b has another answer of observer 1 to step 1-1 than a file before it"):
        answers.combine({"a": export, "b": edited})


@pytest.mark.parametrize(
    ("table", "column", "value", "words"),
    [
        ("answers", "rt_ms", None, "rt_ms in row 2 of its answers is not number"),
        ("answers", "rt_ms", float("nan"), "rt_ms in row 2 of its answers is not number"),
        ("answers", "durations_ms", ["1000"], "durations_ms in row 2 of its answers is not numbers"),
        ("answers", "answer", "first", "answer in row 2 of its answers is not same or different"),
        ("answers", "role", None, "role in row 2 of its answers is not training or test or"),
        ("answers", "step", {}, "step in row 2 of its answers is not text"),
        ("answers", "hidden", "no", "hidden in row 2 of its answers is not boolean"),
        ("observers", "observer", [1], "observer in row 2 of its observers is not integer"),
        ("observers", "dark_seen", "3", "dark_seen in row 2 of its observers is not integer"),
        ("pairs", "distance", "0.1", "distance in row 2 of its pairs is not number"),
        ("pairs", "image", 3, "image in row 2 of its pairs is not text"),
    ],
    ids=["nothing", "nan", "texts", "answer", "role", "step", "hidden", "list", "squares", "distance", "image"],
)
def test_an_edited_value_is_named(export, table, column, value, words):
    export[table][1][column] = value
    with pytest.raises(UserError, match=f"a is no export of a study: {words}"):
        answers.combine({"a": export})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bt500": None}, "--bt500=None: it must be true or false"),
        ({"max_catch_errors": "x"}, "--max_catch_errors=x: it must be a number"),
        ({"trial": "abx"}, "choose one of yesno"),
        ({"more": 1}, "its settings: .*more"),
    ],
    ids=["bt500", "errors", "trial", "more"],
)
def test_edited_settings_are_named(export, changes, words):
    with pytest.raises(UserError, match=words):
        answers.combine({"a": export | {"settings": export["settings"] | changes}})
    del export["settings"]["bt500"]
    with pytest.raises(UserError, match="its settings have no bt500"):
        answers.combine({"a": export})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": []}, "nobody has answered yet"),
        ({"answers": None}, "no list of answers"),
        ({"settings": None}, "it has no settings"),
        ({"pairs": []}, "the pair pair0, which is not among"),
        ({"observers": [{"observer": 1}]}, "its observers have no started"),
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
