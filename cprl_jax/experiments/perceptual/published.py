"""The numbers that the paper prints in its Tables 1 and 2, from published.csv, which names their source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cprl_jax.experiments import published
from cprl_jax.report.table import Column, Table
from cprl_jax.report.values import Row, decimals, interval, value

FILE = Path(__file__).with_name("published.csv")
_NUMBERS = {"table": int, "srcc": float, "r": float, "before": float}

LEGEND = (
    "Beside the numbers that the paper prints in Tables 1 and 2, of twelve images of LIVE, fifteen observers and its "
    "own trained models. Table 1: a model on the counterexamples made for it; Table 2: on those made for another one. "
    "The base of the paper's R is not stated. Ours are of the images with a counterexample, also before the attack."
)


def read() -> list[dict[str, Any]]:
    """The lines of published.csv, which says what each column is."""
    return published.read(FILE, _NUMBERS)


def beside(intra: Sequence[Row], transfer: Sequence[Row]) -> Table:
    """Ours and the published numbers, a line per model under test, attacked model and fidelity.

    Of models whose `network` is one of the paper's, by whatever name; empty where none of them was tested.
    """
    network = {row["model"]: row["network"] for row in intra}
    printed = {(row["model"], row["attacked"], row["fidelity"]): row for row in read()}
    rows = []
    for table, lines in ((1, intra), (2, transfer)):
        for own in lines:
            names = {"model": own["model"], "attacked": own.get("attacked", own["model"]), "fidelity": own["fidelity"]}
            theirs = printed.get((network[names["model"]], network[names["attacked"]], names["fidelity"]))
            if theirs is not None and theirs["table"] == table:
                kept = {key: content for key, content in own.items() if key.startswith(("srcc", "r_")) or key == "r"}
                published = {f"published_{key}": theirs[key] for key in ("srcc", "r", "before")}
                rows.append({"table": table, **names, **kept, **published})

    def pair(key: str, title: str, other: str) -> list[Column]:
        own = Column(key, "ours", group=title, text=lambda row: decimals(value(row, key), 3))
        return [own, Column(other, "published", group=title)]

    columns = [*pair("srcc_before", "SRCC before", "published_before"), *pair("srcc", "SRCC", "published_srcc")]
    columns += pair("r", "R", "published_r")
    columns += [
        Column(f"{key}_low", f"{title}, ours, 95 %", text=lambda row, key=key: interval(row, key, 3) or "–")
        for key, title in (("srcc", "SRCC"), ("r", "R"))
    ]
    return Table(
        rows,
        columns,
        line=("model", "attacked", "fidelity"),
        heading="attacked, fidelity",
        name=lambda row: f"{row['attacked']}, {row['fidelity']}",
        block=lambda row: f"Table {row['table']}: {row['model']}",
        block_heading="model under test",
        legend=LEGEND,
    )
