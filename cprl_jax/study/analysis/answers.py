"""The answers of a study, out of its exports (study.json: `python -m cprl_jax.study export`)."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path
from cprl_jax.study import plan, records
from cprl_jax.study.settings import Settings

Row = dict[str, Any]
NEEDED = {
    "answers": ("observer", "step", "role", "trial", "pair", "answer", "expected", "rt_ms", "durations_ms", "hidden"),
    "observers": ("observer", "started", "dark_seen", "bright_seen"),
    "pairs": ("pair", "image", "model", "fidelity", "candidate", "distance"),
}


class Answers(NamedTuple):
    """Answers to one study.

    Attributes:
      trial: "yesno", "flicker" or "2afc".
      settings: of the study, by name.
      answers, observers: rows as in the export (`study.records`), with `observer` a text that is unique over all files.
      pairs: a row for each candidate; one pair may be several candidates with the same pixels.
    """

    trial: str
    settings: Mapping[str, Any]
    answers: list[Row]
    observers: list[Row]
    pairs: list[Row]


def read(paths: Sequence[str | Path]) -> Answers:
    """Reads exports of one study, such as of several laboratories; an observer who is in two files counts once.

    Raises:
      UserError: a file that cannot be read or is no export, or exports of different studies.
    """
    if not paths:
        raise UserError("no answers are given: --answers=FILE, a study.json that `cprl_jax.study export` wrote")
    return combine({str(path): _load(user_path(path, field="--answers")) for path in paths})


def combine(exports: Mapping[str, Mapping[str, Any]]) -> Answers:
    """The same from what the files hold, by their names."""
    (first, study), *_ = exports.items()
    known: dict[tuple, Row] = {}
    answers: dict[tuple, Row] = {}
    for number, (name, export) in enumerate(exports.items(), start=1):
        _check(name, export)
        if export["study"] != study["study"]:
            raise UserError(f"{name} is of another study than {first}: analyse them one after the other")
        names = {}
        for row in export["observers"]:
            # A server numbers its observers from 1: two laboratories have a number 1 each, two exports of one the same.
            same = (row["observer"], row["started"])
            label = f"{number}-{row['observer']}" if len(exports) > 1 else f"{row['observer']}"
            before = known.get(same, {"observer": label})
            # What an earlier export could not know yet, such as what was seen of the display, a later one may.
            known[same] = row | {key: value for key, value in before.items() if value is not None}
            names[row["observer"]] = known[same]["observer"]
        for row in export["answers"]:
            if row["observer"] not in names:
                raise UserError(f"{name} has answers of observer {row['observer']}, who is not among its observers")
            place = (names[row["observer"]], row["step"])
            if answers.get(place, row)["answer"] != row["answer"]:
                raise UserError(
                    f"{name} has another answer of observer {row['observer']} to step {row['step']} than a file "
                    "before it; export the study again"
                )
            answers[place] = row | {"observer": place[0]}
    if not answers:
        raise UserError(f"{', '.join(exports)}: nobody has answered yet")
    pairs = [dict(row) for row in study["pairs"]]
    unknown = {row["pair"] for row in answers.values() if row["pair"]} - {row["pair"] for row in pairs}
    if unknown:
        raise UserError(
            f"{', '.join(exports)}: there are answers to the pair {min(unknown)}, which is not among the pairs"
        )
    settings = dict(study["settings"])
    return Answers(settings["trial"], settings, list(answers.values()), list(known.values()), pairs)


def seen(row: Mapping[str, Any], trial: str) -> bool:
    """Whether the observer saw the difference: said "different", or in a forced choice found the perturbed image."""
    return row["answer"] == (row["expected"] if trial == "2afc" else "different")


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--answers: {path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"--answers: {path} is not JSON; give the study.json of `cprl_jax.study export`") from None


def _check(name: str, export: Any) -> None:
    wrong = ""
    if not isinstance(export, Mapping) or not isinstance(export.get("settings"), Mapping):
        wrong = "it has no settings"
    elif "study" not in export or "trial" not in export["settings"]:
        wrong = "it does not say of which study it is"
    else:
        wrong = _wrong_settings(export["settings"])
    for table in NEEDED:
        wrong = wrong or _wrong_rows(table, export.get(table), export["settings"]["trial"])
    if wrong:
        raise UserError(f"--answers: {name} is no export of a study: {wrong}; make it by `cprl_jax.study export`")


def _wrong_settings(settings: Mapping[str, Any]) -> str:
    try:
        if missing := {field.name for field in dataclasses.fields(Settings)} - settings.keys():
            return f"its settings have no {min(missing)}"
        Settings(**settings)
    except (UserError, TypeError) as error:
        return f"its settings: {error}"
    return ""


def _wrong_rows(table: str, rows: Any, trial: str) -> str:
    """What is wrong with a table, which may have been edited since it was exported."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return f"it has no list of {table}"
    for column in (column for column in records.TABLES[table] if column.name in NEEDED[table]):
        if any(column.name not in row for row in rows):
            return f"its {table} have no {column.name}"
        allowed = {"answer": Settings(trial=trial).answers, "role": plan.ROLES}.get(column.name)
        for number, row in enumerate(rows, start=1):
            value = row[column.name]
            unknown = value is None and column.name in ("dark_seen", "bright_seen")  # of a display test to come
            if not (unknown or records.is_of(column.type, value)) or (allowed and value not in allowed):
                return f"{column.name} in row {number} of its {table} is not {' or '.join(allowed or [column.type])}"
    return ""
