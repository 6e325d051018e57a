"""Numbers that a paper prints, in a CSV file beside the experiment; lines that begin with # say where they are from."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def read(file: Path, kinds: Mapping[str, Callable[[str], Any]]) -> list[dict[str, Any]]:
    """The lines of such a file: text, but for the columns in `kinds`, each of which is made by its function."""
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(line for line in opened if not line.startswith("#")))
    return [row | {name: kind(row[name]) for name, kind in kinds.items()} for row in rows]
