"""Settings of a study: decided once, before there are answers."""

import dataclasses

import pytest

from cprl_jax.runtime.errors import UserError
from cprl_jax.study import settings as settings_lib
from cprl_jax.study.settings import Settings


def test_they_are_kept_and_cannot_change_afterwards(tmp_path):
    begun = settings_lib.settle(tmp_path, {"trials": 7, "max_catch_errors": 0.1})
    assert settings_lib.settle(tmp_path, {}) == settings_lib.settle(tmp_path, {"trials": 7}) == begun
    with pytest.raises(UserError, match="--trials=8: the study in .* was begun with 7; begin another by --study=NAME"):
        settings_lib.settle(tmp_path, {"trials": 8})
    assert settings_lib.read(tmp_path).max_catch_errors == 0.1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"trials": "many"}', '{"unknown": 1}', '{"trials": -1}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UserError, match=r"settings\.json is no settings file"):
        settings_lib.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("trials", "many", "--trials=many: it must be a whole number"),
        ("trials", "0", "--trials=0: it must be from 1 to"),
        ("hours", "nan", "--hours=nan: it must be from"),
        ("trial", "abx", "choose one of yesno, flicker, 2afc"),
        ("bt500", "perhaps", "it must be true or false"),
        ("max_timing_error_ms", "inf", "--max_timing_error_ms=inf: it must be from 0 to 60000"),
        ("stimulus_ms", "1" + 30 * "0", "it must be from 10 to 60000"),
        ("title", "x" * 2000, "--title='x+...': it must be one line of at most 1000 characters"),
        ("title", "not \udcff UTF-8", "it must be one line"),
        ("consent", "two\nlines", "it must be one line"),
    ],
    ids=["word", "zero", "nan", "choice", "bool", "infinite", "ages", "long", "encoding", "lines"],
)
def test_a_flag_that_makes_no_sense_is_refused(name, text, says):
    (field,) = (field for field in dataclasses.fields(Settings) if field.name == name)
    with pytest.raises(UserError, match=says):
        Settings(**{name: settings_lib.parse(field, text)})


def test_a_title_may_have_the_characters_of_any_language(tmp_path):
    title = "Où est la différence\u00a0? 違い\u3000\u200f؟ 👩\u200d🔬 <b>"
    settings_lib.settle(tmp_path, {"title": title})
    assert settings_lib.read(tmp_path).title == title


def test_the_schedules_are_those_of_the_paper_and_of_its_relatives():
    assert Settings().schedule == ((0, 1000), (-1, 500), (1, 1000))  # Zhang et al., Section 4.1
    assert Settings(trial="2afc").schedule == ((0, 1000), (-1, 500), (1, 1000), (-1, 500), (2, 1000))
    flicker = Settings(trial="flicker").schedule
    assert flicker[:2] == ((0, 100), (1, 100)) and sum(ms for _, ms in flicker) == 8000
