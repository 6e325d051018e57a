"""The rows as CSV, as Markdown and as text for the terminal."""

import csv
import io
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from cprl_jax.report import findings
from cprl_jax.report.results import (
    AGAINST,
    CLEAN,
    ROW_KEYS,
    SCORE_KEYS,
    Condition,
    Row,
    check,
    condition_name,
    conditions,
    decimals,
    find,
    methods,
    shorten,
    value,
)

WIDTH = 110  # of wrapped text beneath the terminal's table
METRICS = ("srcc", "plcc", "rmse")
DIGITS = {"srcc": 3, "plcc": 3, "rmse": 2}
HEADINGS = {"mos": "against MOS", "prediction": "against its own clean scores"}
LEGEND = (
    "* best of the methods under that attack (rows marked ! do not compete). ! see the warnings. "
    "[ ] 95 % bootstrap interval over the test images. SRCC, PLCC: 1 is perfect agreement. RMSE: 0 is. "
    "Change: largest over all images, in units of 1/255."
)


def table_csv(rows: Sequence[Row]) -> str:
    """All rows and columns: method, attack, radius, against, srcc, plcc, rmse, then the others as they came."""
    return csv_text(rows, ROW_KEYS)


def scores_csv(scores: Sequence[Row]) -> str:
    """All per-image scores: method, attack, radius, name, mos, clean, score, then the others as they came."""
    return csv_text(scores, SCORE_KEYS)


def trust_csv(robustness: Sequence[Mapping[str, Any]]) -> str:
    """All trust checks: method, check, verdict, explanation, and the numbers as JSON."""
    columns = ("method", "check", "verdict", "explanation", "numbers")
    return csv_text(
        [
            {
                "method": entry["method"],
                "check": found["name"],
                "verdict": found["verdict"],
                "explanation": found["explanation"],
                "numbers": json.dumps(found["numbers"]),
            }
            for entry in robustness
            for found in entry.get("checks", ())
        ],
        columns,
    )


def best(rows: Sequence[Row], pair: Condition, against: str, metric: str) -> set[str]:
    """The methods with the best value as printed: highest SRCC and PLCC, lowest RMSE.

    Empty where nothing competes: fewer than two methods with a trustworthy value, or clean scores against themselves.
    """
    if pair == CLEAN and against == "prediction":
        return set()
    sign = -1 if metric == "rmse" else 1
    found = {name: find(rows, name, pair, against) for name in methods(rows)}
    values = {
        name: sign * round(value(row, metric), DIGITS[metric])
        for name, row in found.items()
        if math.isfinite(value(row, metric)) and not findings.doubtful(rows, name, pair)
    }
    if len(values) < 2:
        return set()
    top = max(values.values())
    return {name for name, number in values.items() if number == top}


def format_table(rows: Sequence[Row]) -> str:
    """The table for a terminal, with its legend and warnings: methods side by side under each attack and radius.

    SRCC with its interval, PLCC and RMSE against MOS (Table 3 of the CPRL paper) and against the model's own clean
    scores (Table 4), then mean SSIM and largest change of the attacked images. About 110 columns wide.

    Raises ValueError for a row without a method, attack, radius, against, srcc, plcc or rmse.
    """
    check(rows, ROW_KEYS, "rows")
    if not rows:
        return "No results."
    blocks = {
        pair: [_terminal_cells(rows, name, pair) for name in methods(rows) if _exists(rows, name, pair)]
        for pair in conditions(rows)
    }
    header = ["", *("SRCC ", "", "PLCC ", "RMSE ") * 2, "SSIM", "change"]
    cells = [header, *(line for lines in blocks.values() for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    gaps = [2, 3, 0, 1, 1, 3, 0, 1, 1, 2, 1]  # wider before each block of columns

    def layout(line: list[str]) -> str:
        padded = [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        return "".join(" " * gap + cell for gap, cell in zip(gaps, padded, strict=True)).rstrip()

    over = " " * (2 + widths[0])
    for against, first in zip(AGAINST, (1, 5), strict=True):
        over += "   " + f" {HEADINGS[against]} ".center(sum(widths[first : first + 4]) + 2, "─")
    lines = [over, layout(header)]
    for pair, block in blocks.items():
        lines += [condition_name(pair), *map(layout, block)]
    lines += ["", *textwrap.wrap(LEGEND, WIDTH)]
    found = findings.warnings(rows)
    if found:
        lines += ["", "Warnings"]
        for text in found:
            lines += textwrap.wrap(text, WIDTH, initial_indent="  ! ", subsequent_indent="    ")
    return "\n".join(lines)


def markdown(rows: Sequence[Row], title: str) -> str:
    """The same table in Markdown, best values in bold, with the warnings beneath."""
    check(rows, ROW_KEYS, "rows")
    header = ["attack", "method"]
    header += [f"{metric.upper()} {HEADINGS[against]}" for against in AGAINST for metric in METRICS]
    header += ["mean SSIM", "largest change (1/255)"]
    lines = [f"# {plain_text(title)}", "", markdown_row(header), markdown_row(["---", "---", *["---:"] * 8])]
    for pair in conditions(rows):
        for name in methods(rows):
            if _exists(rows, name, pair):
                lines.append(markdown_row([condition_name(pair), *_markdown_cells(rows, name, pair)]))
    lines += ["", LEGEND.replace("*", "Bold:", 1)]
    found = findings.warnings(rows)
    if found:
        lines += ["", "## Warnings", "", *(f"- {plain_text(text)}" for text in found)]
    return "\n".join(lines) + "\n"


def interval(row: Row | None, metric: str) -> str:
    """'[-0.21, 0.28]', or nothing where the value or its interval is absent."""
    bounds = [value(row, key) for key in (metric, f"{metric}_low", f"{metric}_high")]
    if not all(map(math.isfinite, bounds)):
        return ""
    return f"[{decimals(bounds[1], 2)}, {decimals(bounds[2], 2)}]"


def _terminal_cells(rows: Sequence[Row], name: str, pair: Condition) -> list[str]:
    """Name; SRCC, interval, PLCC, RMSE against MOS and prediction; SSIM; change. A mark or a space ends each metric."""
    found = {against: find(rows, name, pair, against) for against in AGAINST}
    cells = [shorten(name, 32) + (" !" if findings.doubtful(rows, name, pair) else "")]
    for against, row in found.items():
        for metric in METRICS:
            mark = "*" if name in best(rows, pair, against, metric) else " "
            cells.append(decimals(value(row, metric), DIGITS[metric]) + mark)
            if metric == "srcc":
                cells.append(interval(row, metric))
    return [*cells, *_visibility(found)]


def _markdown_cells(rows: Sequence[Row], name: str, pair: Condition) -> list[str]:
    found = {against: find(rows, name, pair, against) for against in AGAINST}
    cells = [plain_text(name) + (" !" if findings.doubtful(rows, name, pair) else "")]
    for against, row in found.items():
        for metric in METRICS:
            text = decimals(value(row, metric), DIGITS[metric])
            text = f"**{text}**" if name in best(rows, pair, against, metric) else text
            cells.append(f"{text} {interval(row, metric)}".strip() if metric == "srcc" else text)
    return [*cells, *_visibility(found)]


def _visibility(found: Mapping[str, Row | None]) -> list[str]:
    either = found["mos"] or found["prediction"]
    return [decimals(value(either, "ssim"), 3), decimals(value(either, "max_change"), 2)]


def _exists(rows: Sequence[Row], name: str, pair: Condition) -> bool:
    return any(find(rows, name, pair, against) for against in AGAINST)


def markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain_text(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for character in "\\`*_{}[]<>#|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def csv_text(entries: Sequence[Mapping[str, Any]], first: Sequence[str]) -> str:
    columns = list(dict.fromkeys([*first, *(key for entry in entries for key in entry)]))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for entry in entries:
        writer.writerow([_field(entry.get(column, ""), column) for column in columns])
    return file.getvalue()


def _field(content: Any, column: str) -> str:
    """Numbers with every digit they need to be read back exactly; radius without a needless '.0'."""
    if isinstance(content, Integral):  # bool, int, NumPy integers
        return str(int(content))
    if not hasattr(content, "__float__"):  # text; what has it are Python's, NumPy's and JAX's numbers
        return "" if content is None else str(content)
    content = float(content)
    return str(int(content)) if column == "radius" and content.is_integer() else repr(content)
