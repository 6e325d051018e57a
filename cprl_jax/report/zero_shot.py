"""Models on data sets that they were not trained on: one row a set, the methods side by side."""

import html as html_lib
from collections.abc import Sequence

from cprl_jax.report.html import name_tag, number_text, section
from cprl_jax.report.results import Row, decimals, methods, value
from cprl_jax.report.tables import DIGITS, METRICS, csv_text, interval, markdown_row, plain_text

KEYS = ("method", "dataset", "images", *METRICS)
HINT = (
    "Every image of each set, nothing trained on it. In brackets the 95 % interval over its images. The models keep to "
    "the scale of their own set's labels: SRCC does not depend on scales, RMSE does."
)


def csv(rows: Sequence[Row]) -> str:
    """All rows and columns."""
    return csv_text(rows, KEYS)


def terminal(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    cells = [
        ["zero-shot on", "images", *(text for name in methods(rows) for text in (f"{name}: SRCC", "", "PLCC", "RMSE"))]
    ]
    for dataset, found in _by_dataset(rows).items():
        line = [dataset, str(next(iter(found.values()))["images"])]
        for name in methods(rows):
            row = found.get(name)
            srcc, plcc, rmse = (decimals(value(row, metric), DIGITS[metric]) for metric in METRICS)
            line += [srcc, interval(row, "srcc"), plcc, rmse]
        cells.append(line)
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in cells
    )


def markdown(rows: Sequence[Row]) -> str:
    """The same table in Markdown."""
    names = methods(rows)
    header = [
        "zero-shot on",
        "images",
        *(f"{plain_text(name)} {metric.upper()}" for name in names for metric in METRICS),
    ]
    lines = [markdown_row(header), markdown_row(["---", *["---:"] * (len(header) - 1)])]
    for dataset, found in _by_dataset(rows).items():
        line = [plain_text(dataset), str(next(iter(found.values()))["images"])]
        for name in names:
            for metric in METRICS:
                text = decimals(value(found.get(name), metric), DIGITS[metric])
                line.append(f"{text} {interval(found.get(name), metric)}".strip() if metric == "srcc" else text)
        lines.append(markdown_row(line))
    return "\n".join([*lines, "", HINT]) + "\n"


def html(rows: Sequence[Row]) -> str:
    """The section of the page, or nothing without rows."""
    if not rows:
        return ""
    names = methods(rows)
    first = "".join(f'<th class="span" colspan="3">{name_tag(name)}</th>' for name in names)
    second = "".join('<th class="gap">SRCC</th><th>PLCC</th><th>RMSE</th>' for _ in names)
    lines = []
    for dataset, found in _by_dataset(rows).items():
        cells = [f'<th scope="row">{name_tag(dataset)}</th>', f"<td>{next(iter(found.values()))['images']}</td>"]
        for name in names:
            for metric in METRICS:
                small = (
                    f"<small>{interval(found.get(name), metric).replace('-', '−')}</small>" if metric == "srcc" else ""
                )
                cells.append(f"<td>{number_text(value(found.get(name), metric), DIGITS[metric])}{small}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = f"<thead><tr><th></th><th></th>{first}</tr><tr><th>data set</th><th>images</th>{second}</tr></thead>"
    table = f'<div class="card scroll"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'
    return section("On data sets that training did not see", html_lib.escape(HINT), table)


def _by_dataset(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(str(row["dataset"]), {})[str(row["method"])] = row
    return found
