"""The data dictionary: what is exported is what it says, in the documentation too."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from cprl_jax.study import bundle, export, records

from .conftest import record_of, token


@pytest.fixture
def played(store):
    session = store.begin(token(1), "=Ann")
    for step in session.steps:
        event = {"at_ms": 1.0, "event": "blur", "detail": "@x"}
        store.submit(token(1), step["id"], record_of(step), [event])
    return store


TYPES = {"integer": int, "number": int | float, "text": str, "boolean": bool, "numbers": list}


def test_every_value_has_the_type_that_the_dictionary_gives(played):
    for table, columns in records.TABLES.items():
        rows = played.rows(table)
        assert rows and all(list(row) == [column.name for column in columns] for row in rows)
        for column in columns:
            values = [row[column.name] for row in rows if row[column.name] is not None]
            assert values, f"{table}.{column.name} is never filled in"
            assert all(isinstance(value, TYPES[column.type]) for value in values), f"{table}.{column.name}"


def test_csv_has_what_json_has(played, tmp_path):
    export.write(played, tmp_path)
    whole = json.loads((tmp_path / "study.json").read_text())
    for table in records.TABLES:
        rows = list(csv.DictReader(io.StringIO((tmp_path / f"{table}.csv").read_text())))
        assert len(rows) == len(whole[table])
        for row, other in zip(rows, whole[table], strict=True):
            assert row.keys() == other.keys()
            for name, value in other.items():
                if isinstance(value, bool):
                    assert row[name] == str(int(value))
                elif isinstance(value, int | float):
                    assert float(row[name]) == value
    dictionary = list(csv.DictReader(io.StringIO((tmp_path / "dictionary.csv").read_text())))
    assert len(dictionary) == sum(map(len, records.TABLES.values())) and all(row["meaning"] for row in dictionary)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "1"),
        (0.1, "0.1"),
        ([1, 2.5], "1 2.5"),
        ("=1", "'=1"),
        ("a=1", "a=1"),
        ("-x", "'-x"),
        (-1, "-1"),
    ],
)
def test_cells_of_csv(value, text):
    assert records.cell(value) == text


def test_the_documentation_has_the_dictionary():
    text = (Path(__file__).parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    for columns in records.TABLES.values():
        assert records.markdown(columns) in text


def test_events_that_the_page_logs_are_known():
    code = "".join(path.read_text() for path in bundle.WEB.glob("*.js"))
    logged = set(re.findall(r'log\.add\("(\w+)"', code)) | {"hidden", "visible", "fullscreen", "window"}
    (column,) = (column for column in records.EVENTS if column.name == "event")
    assert logged == set(column.choices)
