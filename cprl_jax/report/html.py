"""The report as one HTML page that needs nothing beside it: figures as inline SVG, photographs as embedded PNG."""

import base64
import html
import importlib.resources
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import Any

from PIL import Image

from cprl_jax.report import figures, findings, tables
from cprl_jax.report.glossary import GLOSSARY
from cprl_jax.report.results import (
    AGAINST,
    CLEAN,
    Condition,
    Row,
    attack_name,
    condition,
    condition_name,
    conditions,
    decimals,
    find,
    headline,
    methods,
    number,
    value,
)

LARGEST_SIDE = 360  # pixels of an embedded photograph
WORST = 5  # images listed per method


def page(
    *,
    title: str,
    summary: Sequence[str],
    rows: Sequence[Row],
    scores: Sequence[Row],
    examples: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    curves: Sequence[figures.Panel],
    scatters: Sequence[figures.Panel],
    changes: Sequence[figures.Panel],
    training: Sequence[figures.Panel],
    robustness: Sequence[Mapping[str, Any]] = (),
    landscapes: Sequence[figures.Panel] = (),
    strengths: Sequence[figures.Panel] = (),
    sections: str = "",
    config_text: str,
    notes: Sequence[str],
) -> str:
    """The page; sections without content are left out. Text that comes in is escaped, `sections` is HTML."""
    template = Template(importlib.resources.files(__package__).joinpath("template.html").read_text("utf-8"))
    return template.substitute(
        title=html.escape(title),
        summary="\n".join(f'<p class="soft">{html.escape(text)}</p>' for text in summary),
        verdict=_verdict(rows),
        falls=_falls(rows, names),
        warnings=_warnings(rows, robustness),
        table=_table(rows),
        curves=section(
            "How the ranking falls with the radius",
            f"{_term('SRCC')} against {_term('MOS')}; radius 0 is no attack. The band is the {_term('95 % interval')}.",
            panel_grid(curves, "pairs") + _summary_of_curves(rows, robustness),
        ),
        examples=_examples(examples),
        scores=_score_section(scores, scatters, changes),
        worst=_worst(scores),
        sections=sections,
        robustness=_landscape_section(robustness, landscapes) + _trust_section(robustness, strengths),
        training=section(
            "Training",
            "The faint line is the loss of each step, the strong one its running mean. Losses of different objectives "
            "are not on one scale: compare their course, not their height.",
            panel_grid(training),
        ),
        notes=notes_section(notes),
        configuration=configuration_section(config_text),
        glossary=section("What the words mean", "", _glossary()),
    )


def _verdict(rows: Sequence[Row]) -> str:
    return re.sub(r"(−?\d\.\d\d|–) → (−?\d\.\d\d|–)", r"<b>\g<0></b>", prose(findings.verdict(rows)))


def _falls(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Per method a line from -1 to 1 with a ring at the clean SRCC and a dot at the attacked one."""
    pair = headline(conditions(rows))
    lines = []
    for method in methods(rows) if pair else []:
        before, row = find(rows, method, CLEAN, "mos"), find(rows, method, pair, "mos")
        clean, attacked = value(before, "srcc"), value(row, "srcc")
        marks = []
        low, high = value(row, "srcc_low"), value(row, "srcc_high")
        if math.isfinite(low) and math.isfinite(high):
            marks.append(_mark("band", low, high))
        if math.isfinite(clean) and math.isfinite(attacked):
            marks.append(_mark("way", min(clean, attacked), max(clean, attacked)))
        marks += [_mark(kind, at) for kind, at in (("before", clean), ("after", attacked)) if math.isfinite(at)]
        text = f"{number_text(clean, 2)} → {number_text(attacked, 2)}"
        lines.append(
            f'<div class="fall" style="--tone: {figures.colour(names, method)}">'
            f'<div class="name">{name_tag(method)}{_flag(rows, method, pair)}</div>'
            f'<div class="track" role="img" aria-label="SRCC {text}"><i class="zero"></i>{"".join(marks)}</div>'
            f'<div class="values">{text}</div></div>'
        )
    if not lines:
        return ""
    ends = ((0, "−1 reversed"), (50, "0"), (100, "1 right order"))
    scale = "".join(f'<span style="left: {left}%">{text}</span>' for left, text in ends)
    lines.append(f'<div class="fall scale"><div class="name"></div><div class="track">{scale}</div></div>')
    hint = (
        f"{_term('SRCC')} against {_term('MOS')}: ring without attack, dot under {html.escape(condition_name(pair))}, "
        f"band its {_term('95 % interval')}."
    )
    return f'<div class="card falls">{"".join(lines)}<p class="hint">{hint}</p></div>'


def _mark(kind: str, start: float, end: float | None = None) -> str:
    left = 50 + 50 * start
    width = "" if end is None else f"; width: {50 * (end - start):.2f}%"
    return f'<i class="{kind}" style="left: {left:.2f}%{width}"></i>'


def _warnings(rows: Sequence[Row], robustness: Sequence[Mapping[str, Any]]) -> str:
    found = findings.warnings(rows, robustness)
    if not found:
        return ""
    items = "".join(f"<li>{prose(text)}</li>" for text in found)
    return f'<section class="warnings"><h2>Read these numbers with care</h2><ul>{items}</ul></section>'


def _table(rows: Sequence[Row]) -> str:
    head = (
        "<thead><tr><th></th>"
        f'<th class="span" colspan="3">against {_term("MOS")}</th>'
        f'<th class="span" colspan="3">against its {_term("Own clean scores", "own clean scores")}</th>'
        '<th class="span" colspan="2">attacked images</th></tr><tr><th>method</th>'
        + 2 * f'<th class="gap">{_term("SRCC")}</th><th>{_term("PLCC")}</th><th>{_term("RMSE")}</th>'
        + f'<th class="gap">{_term("SSIM")}</th><th>change</th></tr></thead>'
    )
    body = []
    for pair in conditions(rows):
        lines = [_table_row(rows, name, pair) for name in methods(rows)]
        if any(lines):
            title = (
                f'<tr class="condition"><th colspan="9" scope="rowgroup">{html.escape(condition_name(pair))}</th></tr>'
            )
            body.append(f"<tbody>{title}{''.join(lines)}</tbody>")
    if not body:
        return ""
    hint = f"In brackets the {_term('95 % interval')}. Change is the largest of any pixel, in 1/255."
    if len(methods(rows)) > 1:
        doubts = any(findings.doubtful(rows, name, pair) for name in methods(rows) for pair in conditions(rows))
        flagged = ', where rows marked <span class="flag">!</span> do not compete' if doubts else ""
        hint += f" Bold is the best of the methods under that attack{flagged}."
    return section("The numbers", hint, f'<div class="card scroll"><table>{head}{"".join(body)}</table></div>')


def _table_row(rows: Sequence[Row], name: str, pair: Condition) -> str:
    found = {against: find(rows, name, pair, against) for against in AGAINST}
    either = found["mos"] or found["prediction"]
    if either is None:
        return ""
    cells = [f'<th scope="row">{name_tag(name)}{_flag(rows, name, pair)}</th>']
    for against, row in found.items():
        for metric in tables.METRICS:
            content = value(row, metric)
            trivial = pair == CLEAN and against == "prediction"  # clean scores against themselves
            kind, heat = ("trivial", 0) if trivial else _heat(metric, content)
            best = " best" if name in tables.best(rows, pair, against, metric) else ""
            interval = tables.interval(row, metric).replace("-", "−") if metric == "srcc" else ""
            shown = number_text(content, tables.DIGITS[metric])
            cells.append(
                f'<td class="heat {kind}{best}" style="--heat: {heat:.2f}">{shown}'
                + (f"<small>{interval}</small></td>" if interval else "</td>")
            )
    cells.append(f'<td class="gap">{number_text(value(either, "ssim"), 3)}</td>')
    cells.append(f"<td>{number_text(value(either, 'max_change'), 2)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _heat(metric: str, content: float) -> tuple[str, float]:
    """Colour and opacity of a cell: blue for correlation, orange for its reverse and for error."""
    if not math.isfinite(content):
        return "good", 0.0
    if metric == "rmse":
        return "bad", 0.42 * min(1.0, content / 50)
    return "good" if content > 0 else "bad", 0.42 * abs(content)


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    order = list(dict.fromkeys(entry["name"] for entry in examples))  # what the methods say of one image, side by side
    cards = [_example(entry) for entry in sorted(examples, key=lambda entry: order.index(entry["name"]))]
    hint = (
        "Left the image, in the middle its attacked twin, right their difference, amplified; grey is no change. Point "
        "at the twin, or tap it, to lay the original over it: what flickers is the attack."
    )
    body = f'<div class="examples">{"".join(cards)}</div>' if cards else ""
    return section("What an attack looks like", hint, body)


def _example(entry: Mapping[str, Any]) -> str:
    shown = figures.views(entry)
    before, after, mos = (number(entry[key]) for key in ("before", "after", "mos"))
    moved = decimals(after - before, 1)
    signed = prose(moved if moved.startswith("-") else f"+{moved}")
    captions = (
        f"score <b>{number_text(before, 1)}</b><br>MOS {number_text(mos, 1)}",
        f"score <b>{number_text(after, 1)}</b><br>{signed} points",
        f"difference<br>× {shown.factor}",
    )
    places = ('class="original"', 'class="attacked" tabindex="0"', "")
    labels = ("image", "attacked image", "difference")
    images = "".join(
        f"<div {place}>{image_tag(pixels, label)}<p>{caption}</p></div>"
        for place, pixels, label, caption in zip(places, shown[:3], labels, captions, strict=True)
    )
    title = f"<b>{name_tag(entry['method'])}</b> under {html.escape(condition_name(condition(entry)))}"
    return (
        f'<figure class="card example"><figcaption>{title}, {name_tag(entry["name"])}</figcaption>'
        f'<div class="views">{images}</div></figure>'
    )


def image_tag(pixels: Any, label: str) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    kind = ' class="small"' if image.width < 160 else ""
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img{kind} alt="{label}" width="{image.width}" height="{image.height}" src="data:image/png;base64,{data}">'


def _score_section(scores: Sequence[Row], scatters: Sequence[figures.Panel], changes: Sequence[figures.Panel]) -> str:
    pair = headline(conditions(scores))
    where = html.escape(condition_name(pair)) if pair else ""
    hint = (
        f"Every dot is a test image, before and after {where}. On the dashed line nothing changed. An attack that "
        "works turns the cloud: good images (bright) sink, bad ones (dark) rise. The last panel shows how far scores "
        "moved, with median and middle half."
    )
    return section("Where the scores went", hint, panel_grid([*scatters, *changes]))


def _worst(scores: Sequence[Row]) -> str:
    pair, lines = headline(conditions(scores)), []
    for method in methods(scores):
        rows = [row for row in scores if row["method"] == method and condition(row) == pair]
        moved = [(number(row["score"]) - number(row["clean"]), row) for row in rows]
        moved = sorted((item for item in moved if math.isfinite(item[0])), key=lambda item: -abs(item[0]))[:WORST]
        for place, (change, row) in enumerate(moved):
            sign = "" if change < 0 else "+"
            before, after, mos = (number_text(number(row[key]), 1) for key in ("clean", "score", "mos"))
            lines.append(
                f'<tr{"" if place else " class=first"}><th scope="row">{"" if place else name_tag(method)}</th>'
                f"<td>{name_tag(row['name'])}</td><td>{mos}</td><td>{before}</td><td>{after}</td>"
                f"<td><b>{sign}{number_text(change, 1)}</b></td><td>{number_text(value(row, 'ssim'), 3)}</td></tr>"
            )
    if not lines:
        return ""
    head = (
        f"<thead><tr><th>method</th><th>image</th><th>{_term('MOS')}</th><th>before</th><th>after</th><th>change</th>"
        f"<th>{_term('SSIM')}</th></tr></thead>"
    )
    table = f'<div class="card scroll"><table class="worst">{head}<tbody>{"".join(lines)}</tbody></table></div>'
    hint = f"The images whose score {html.escape(condition_name(pair))} moved farthest, per method."
    return section("Worst cases", hint, table)


def _summary_of_curves(rows: Sequence[Row], robustness: Sequence[Mapping[str, Any]]) -> str:
    """A line per method: the area under each of its curves, and R under the headline attack."""
    attacks = list(dict.fromkeys(attack for entry in robustness for attack in entry.get("integrals", {})))
    pair = headline(conditions(rows))
    if not attacks or not pair:
        return ""
    head = "".join(f"<th>{html.escape(attack_name(attack))}</th>" for attack in attacks)
    lines = []
    for entry in robustness:
        cells = [number_text(number(entry.get("integrals", {}).get(attack)), 3) for attack in attacks]
        r = value(find(rows, entry["method"], pair, "mos"), "r")
        cells.append("∞" if r == math.inf else number_text(r, 2))
        lines.append(
            f'<tr><th scope="row">{name_tag(entry["method"])}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        )
    table = (
        f'<thead><tr><th></th><th class="span" colspan="{len(attacks)}">{_term("Integral robustness")}</th>'
        f'<th class="gap">{_term("R")}</th></tr><tr><th>method</th>{head}'
        f'<th class="gap">{html.escape(condition_name(pair))}</th></tr></thead><tbody>{"".join(lines)}</tbody>'
    )
    return f'<div class="card scroll beneath"><table>{table}</table></div>'


def _landscape_section(robustness: Sequence[Mapping[str, Any]], landscapes: Sequence[figures.Panel]) -> str:
    shown = [entry["landscape"] for entry in robustness if entry.get("landscape")]
    if not shown:
        return ""
    hint = (
        f"{_term('Score landscape')} of {name_tag(shown[0]['image'])} (the cross): every value moves by as much along "
        "the gradient's sign, which is where FGSM goes, as along random signs. One scale of colours for all."
    )
    blind = [
        entry["method"]
        for entry in robustness
        if entry.get("landscape") and entry["landscape"]["zero_gradient_fraction"] == 1
    ]
    if blind:
        hint += f" Without a gradient there is nothing to move along: {', '.join(map(name_tag, blind))}."
    return section("The scores around one image", hint, panel_grid(landscapes))


def _trust_section(robustness: Sequence[Mapping[str, Any]], strengths: Sequence[figures.Panel]) -> str:
    """The checks as rows, the methods as columns: verdict and explanation."""
    checked = {
        entry["method"]: {found["name"]: found for found in entry["checks"]}
        for entry in robustness
        if entry.get("checks")
    }
    if not checked:
        return ""
    head = "".join(f"<th>{name_tag(method)}</th>" for method in checked)
    lines = []
    for name in dict.fromkeys(name for found in checked.values() for name in found):
        cells = "".join(_check_cell(found.get(name)) for found in checked.values())
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    table = f'<table class="trust"><thead><tr><th>check</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    hint = (
        f"Signs of a {_term('Masked gradient', 'masked gradient')}. Each line is something that holds where attacks "
        "find what there is to find; where it does not, the attacks were misled and the attacked scores prove little. "
        "Strengths are mean changes of the score in the attack's direction, in points of 100, on a few test images."
    )
    return section(
        "Robust, or only hiding its gradient?",
        hint,
        f'<div class="card scroll">{table}</div>{panel_grid(strengths, "beneath")}',
    )


def _check_cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "<td></td>"
    verdict, explanation = str(found["verdict"]), prose(found["explanation"])
    return f'<td class="{_anchor(verdict)}"><b>{html.escape(verdict)}</b><small>{explanation}</small></td>'


def notes_section(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return section("Notes", "", f"<ul>{items}</ul>" if items else "")


def configuration_section(config_text: str) -> str:
    if not config_text.strip():
        return ""
    hint = (
        "These values fix the split of the data, the training and the attacks, seeds included: the same command with "
        "them repeats this run."
    )
    body = f"<summary>The whole configuration</summary><pre>{html.escape(config_text)}</pre>"
    return section("How to repeat this", hint, f'<details class="card">{body}</details>')


def _glossary() -> str:
    entries = (f'<dt id="{_anchor(term)}">{term}</dt><dd>{prose(text)}</dd>' for term, text in GLOSSARY.items())
    return f"<dl>{''.join(entries)}</dl>"


def section(title: str, hint: str, content: str) -> str:
    """A section with a line of explanation (HTML), or nothing when it has no content."""
    if not content:
        return ""
    explained = f'<p class="hint">{hint}</p>' if hint else ""
    return f"<section><h2>{title}</h2>{explained}{content}</section>"


def panel_grid(panels: Sequence[figures.Panel], kind: str = "") -> str:
    cards = []
    for panel in panels:
        svg = figures.to_svg(panel, f"{_anchor(panel.name)}-")
        opened = f'<svg role="img" aria-label="{html.escape(panel.alt)}"'
        cards.append(f'<figure class="card">{svg.replace("<svg", opened, 1)}</figure>')
    return f'<div class="panels {kind}">{"".join(cards)}</div>' if cards else ""


def _term(term: str, shown: str | None = None) -> str:
    """A word that explains itself: on hover, and by a link to the glossary."""
    return f'<a class="term" href="#{_anchor(term)}" title="{html.escape(GLOSSARY[term])}">{shown or term}</a>'


def _anchor(name: str) -> str:
    return "x" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _flag(rows: Sequence[Row], method: str, pair: Condition) -> str:
    return ' <span class="flag" title="see the warnings">!</span>' if findings.doubtful(rows, method, pair) else ""


def name_tag(name: Any) -> str:
    """A method's or file's name, escaped, that may break after an underscore."""
    return html.escape(str(name)).replace("_", "_<wbr>")


def number_text(content: float, digits: int) -> str:
    return decimals(content, digits).replace("-", "−")


def prose(text: str) -> str:
    """Escaped, with true minus signs, percent signs that stay with their number, and names that may break."""
    text = re.sub(r"(?<!\w)-(?=\d)", "−", html.escape(text))
    return text.replace(" %", "\N{NO-BREAK SPACE}%").replace("_", "_<wbr>")
