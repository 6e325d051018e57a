"""Answers as files, and how far a study is."""

import csv
import dataclasses
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from cprl_jax.runtime.files import write_file
from cprl_jax.study import records
from cprl_jax.study.analysis import exclusion
from cprl_jax.study.store import Store


def as_csv(store: Store, table: str) -> str:
    """A table of `records.TABLES` as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(column.name for column in records.TABLES[table])
    writer.writerows([records.cell(value) for value in row.values()] for row in store.rows(table))
    return file.getvalue()


def as_json(store: Store) -> dict[str, Any]:
    """All tables, the settings with the exclusion rules, and the data dictionary."""
    dictionary = {table: [column._asdict() for column in columns] for table, columns in records.TABLES.items()}
    tables = {table: store.rows(table) for table in records.TABLES}
    settings = dataclasses.asdict(store.settings)
    about = {"study": store.catalogue.study, "settings": settings, "exclusion_rules": exclusion.stated(settings)}
    return {**about, "dictionary": dictionary, **tables}


def write(store: Store, folder: Path) -> list[Path]:
    """Writes answers.csv, observers.csv, events.csv, pairs.csv, dictionary.csv and all of it as study.json."""
    dictionary = io.StringIO()
    writer = csv.writer(dictionary, lineterminator="\n")
    writer.writerow(["table", "column", "type", "unit", "meaning"])
    for table, columns in records.TABLES.items():
        writer.writerows([table, column.name, column.type, column.unit, column.meaning] for column in columns)
    files = {f"{table}.csv": as_csv(store, table) for table in records.TABLES}
    files |= {"dictionary.csv": dictionary.getvalue(), "study.json": json.dumps(as_json(store), indent=1) + "\n"}
    for name, text in files.items():
        write_file(folder / name, text)
    return [folder / name for name in files]


def status(store: Store) -> str:
    """How far the study is, a line each."""
    observers, answers = store.rows("observers"), store.rows("answers")
    finished = sum(row["finished"] is not None for row in observers)
    tests = Counter(row["pair"] for row in answers if row["role"] == "test")
    counts = [tests[pair.id] for pair in store.catalogue.pairs]
    catches = [row["correct"] for row in answers if row["role"].startswith("catch")]
    events = Counter(row["event"] for row in store.rows("events"))
    lines = [
        f"observers: {len(observers)} began, {finished} finished",
        f"answers: {len(answers)}, of them {sum(counts)} to test pairs",
        f"test pairs: {len(counts)}, each answered by {min(counts)} to {max(counts)} observers",
        f"catch trials: {sum(catches)} of {len(catches)} right",
    ]
    if events:
        lines.append("events: " + ", ".join(f"{name} {count}" for name, count in events.most_common()))
    return "\n".join(lines)
