"""The tables of a CPRL run, for the terminal, the page and Markdown."""

import math
from collections.abc import Callable, Sequence

from cprl_jax.experiments.cprl import findings
from cprl_jax.experiments.cprl.results import CLEAN, Results, condition, conditions
from cprl_jax.report import agreement
from cprl_jax.report.table import Column, Table
from cprl_jax.report.values import Row, bounds, decimals, distinct, interval, number, value

WORST = 5  # images listed per method


def _subtitle(results: Results) -> Callable[[Row], str] | None:
    """The title of a row's method, by what ran."""
    return (lambda row: results.titles.get(row["method"], "")) if results.titles else None


def numbers(results: Results, note: agreement.Note = interval) -> Table:
    """Methods under each attack and radius, against MOS (Table 3 of the CPRL paper) and clean scores (Table 4)."""
    pairs, methods = conditions(results.rows), distinct(results.rows, "method")
    doubts = {(name, pair) for name in methods for pair in pairs if findings.doubtful(results, name, pair)}
    columns = agreement.columns(group="against MOS", of="mos", note=note)
    legend = "[ ] 95 % interval over the test images. " * (note is interval)
    legend += "Change: largest of any pixel, in 1/255."
    if any(map(_rounded, results.rows)):
        columns.insert(1, Column("srcc_8bit", "8 bit", group="against MOS", of="mos", text=_rounded))
        legend += " 8 bit: SRCC after the attacked images were rounded to 8 bits, where it differs."
    if any(math.isfinite(value(row, "r")) for row in results.rows):
        legend += " R: mean logarithm of the largest change of a score that its scale allows over the one made."
    if any(math.isfinite(value(row, "lowest_srcc")) for row in results.rows):
        legend += (
            " Lowest SRCC: of any order that the scores' reachable intervals allow; one that was reached, and a bound "
            "that none can undercut."
        )
    rows = [row for row in results.rows if (condition(row), row["against"]) != (CLEAN, "prediction")]
    legend += agreement.undefined(rows)
    columns += agreement.columns(group="against own clean scores", of="prediction", noted=())
    columns.append(Column("ssim", "SSIM", group="attacked"))
    columns.append(Column("max_change", "change", group="attacked", digits=2))
    columns += beyond_the_paper(rows)
    return Table(
        rows,
        columns,
        line=("attack", "radius", "method"),
        across="against",
        heading="method",
        subtitle=_subtitle(results),
        block=lambda row: results.title(condition(row)) + _how(row),
        block_heading="attack",
        flag=lambda row: (row["method"], condition(row)) in doubts,
        competes=lambda row: (row["method"], condition(row)) not in doubts,
        best_legend="best of the methods under that attack",
        legend=legend + " Rows marked ! do not compete; see the warnings." * bool(doubts),
    )


def beyond_the_paper(rows: Sequence[Row]) -> list[Column]:
    """What is measured of attacked images besides the paper's measures: a column for each that some row has."""
    columns = [
        Column("r", "R", group="attacked", text=_r),
        Column("converged", "converged", group="attacked", text=_converged),
        Column("lowest_srcc", "reached", group="lowest SRCC"),
        Column("lowest_srcc_bound", "bound", group="lowest SRCC"),
    ]
    return [column for column in columns if any(math.isfinite(value(row, column.key)) for row in rows)]


def _r(row: Row) -> str:
    """R, which is infinite where nothing was attacked."""
    return "–" if condition(row) == CLEAN else decimals(value(row, "r"), 2)


def _converged(row: Row) -> str:
    """Whether more iterations would change little, of an attack that says so."""
    converged = value(row, "converged")
    return "" if math.isnan(converged) else "yes" if converged >= 1 else "no"


def _how(row: Row) -> str:
    """' (reflect, 10 steps, 1 start)': how the attack was run, as far as the row says."""
    counts = {"step": value(row, "steps"), "start": value(row, "restarts")}
    parts = [str(row.get("direction") or "")] + [f"{n:g} {word}{'s' * (n != 1)}" for word, n in counts.items() if n > 0]
    known = ", ".join(filter(None, parts))
    return f" ({known})" if known and condition(row) != CLEAN else ""


def _rounded(row: Row) -> str:
    """The SRCC of images that were rounded to 8 bits, where it differs as printed."""
    rounded, srcc = (decimals(value(row, key), 3) for key in ("srcc_8bit", "srcc"))
    return rounded if math.isfinite(value(row, "srcc_8bit")) and rounded != srcc else ""


def differences(results: Results, note: agreement.Note | None = None) -> Table:
    """SRCC of each method less that of the baseline, a line per condition."""
    rows = results.differences
    reference = "".join(distinct(rows, "baseline")[:1])
    tested = "" if note else ", with its 95 % interval (paired bootstrap): where that holds 0, it may be chance"
    note = note or (lambda row, key: bounds(value(row, "low"), value(row, "high")))
    columns = [
        Column(
            "difference",
            method,
            of=method,
            text=lambda row: decimals(value(row, "difference"), 2, signed=True),
            note=lambda row: note(row, "difference"),
            tone=lambda row: value(row, "difference"),
        )
        for method in distinct(rows, "method")
    ]
    return Table(
        rows,
        columns,
        line=("attack", "radius"),
        across="method",
        heading=f"SRCC less {reference}'s",
        name=lambda row: results.title(condition(row)),
        legend=f"SRCC against MOS less that of {reference} on the same images{tested}.",
    )


def zero_shot(results: Results, note: agreement.Note = interval) -> Table:
    """Methods on data sets that they were not trained on."""
    return agreement.zero_shot(results.zero_shot, note=note, subtitle=_subtitle(results))


def over_splits(row: Row, key: str) -> str:
    """Small print of a median: '[0.790, 0.830] (0.751 to 0.842)', with the number of runs that have it if not all."""
    if not row.get(f"{key}_count"):
        return ""
    names = ("quartile_1", "quartile_3", "min", "max")
    digits = agreement.METRICS.get(key, 2)
    lower, upper, smallest, largest = (decimals(value(row, f"{key}_{name}"), digits) for name in names)
    defined, runs = row[f"{key}_count"], row["runs"]
    return f"[{lower}, {upper}] ({smallest} to {largest})" + (f" in {defined} of {runs}" if defined < runs else "")


def areas(results: Results) -> Table:
    """A line per method: the area under each of its curves over the radius, and R under the headline attack."""
    attacks = list(dict.fromkeys(attack for entry in results.robustness for attack in entry.get("integrals", {})))
    columns = [Column(attack, results.attack_title(attack), group="Integral robustness") for attack in attacks]
    if results.headline:
        columns.append(Column("r", results.title(results.headline), group="R", digits=2))
    lines = []
    for entry in results.robustness if attacks else ():
        r = value(results.find(entry["method"], results.headline), "r")
        lines.append({**entry.get("integrals", {}), "method": entry["method"], "r": r})
    return Table(lines, columns, line=("method",), heading="method")


def worst(results: Results) -> Table:
    """The images whose score the headline attack moved farthest, a block per method."""
    moved = [{**row, "change": number(row["score"]) - number(row["clean"])} for row in results.headline_scores]
    moved = sorted((row for row in moved if math.isfinite(row["change"])), key=lambda row: -abs(row["change"]))
    columns = [Column(key, title, digits=1) for key, title in (("mos", "MOS"), ("clean", "before"), ("score", "after"))]
    columns.append(Column("change", "change", text=lambda row: decimals(row["change"], 1, signed=True)))
    return Table(
        [row for name in distinct(moved, "method") for row in [r for r in moved if r["method"] == name][:WORST]],
        [*columns, Column("ssim", "SSIM")],
        line=("method", "name"),
        heading="image",
        block=lambda row: str(row["method"]),
    )


def certificates(results: Results) -> Table:
    """A line per method and l2 radius: how wide the certified intervals are, and which SRCC they leave."""
    return Table(
        results.certificates("summary"),
        [
            Column("width", "points", group="mean width", digits=2),
            Column("width_percent", "% of range", group="mean width", digits=1),
            Column("srcc", "no attack", group="SRCC, smoothed"),
            Column("attacked_srcc", "attacked", group="SRCC, smoothed"),
            Column("certified_srcc", "certified", group="SRCC, smoothed", best=1),
            Column("broken", "broken", digits=0, tone=lambda row: "alarm" if value(row, "broken") else ""),
        ],
        line=("radius", "method"),
        heading="method",
        subtitle=_subtitle(results),
        block=lambda row: (
            f"l2 {row['radius']:g} ({row['grey_levels']:.2g} grey levels RMS; sigma {row['sigma']:g}, "
            f"{row['samples']} samples, {row['images']} images)"
        ),
        block_heading="radius",
        legend="Median smoothing: no change of a crop of that l2 length takes a smoothed score out of its interval, "
        "with the confidence asked for, image by image; of the certified SRCC, for all images together. Attacked: the "
        "lowest SRCC of scores between those that PGD reaches downwards and upwards. Broken: images whose attacked "
        "score left its interval, which must be 0.",
    )


def trust(results: Results) -> Table:
    """The checks for masked gradients as lines, the methods as columns: verdict and explanation."""
    tones = {"suspicious": "alarm", "not run": "soft"}
    rows = results.checks
    look = {
        "text": lambda row: str(row["verdict"]),
        "note": lambda row: str(row["explanation"]),
        "tone": lambda row: tones.get(row["verdict"], ""),
        "wrapped": True,
    }
    columns = [Column("verdict", method, of=method, **look) for method in distinct(rows, "method")]
    return Table(rows, columns, line=("name",), across="method", heading="check")
