"""The numbers that CPRL's paper prints in its Tables 3 to 6, from published.csv, which names their source."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cprl_jax.experiments import published
from cprl_jax.report.agreement import METRICS

FILE = Path(__file__).with_name("published.csv")


def read() -> list[dict[str, Any]]:
    """The lines of published.csv, which says what each column is: `table` is an int, SRCC, PLCC and RMSE are floats."""
    return published.read(FILE, {"table": int, **dict.fromkeys(METRICS, float)})


def dataset_of(table: int, wanted: str) -> str:
    """The data set whose numbers a table has: the wanted one, or its only one ('' where it names none).

    Table 3 has four; of any other data set than these it has nothing, which is '' as well.
    """
    present = {row["dataset"] for row in read() if row["table"] == table}
    return next(iter(present)) if len(present) == 1 else wanted if wanted in present else ""


def find(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any] | None:
    """The only row with these values, or None."""
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found[0] if len(found) == 1 else None
