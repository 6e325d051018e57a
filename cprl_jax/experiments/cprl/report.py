"""The report of a CPRL run: methods side by side under every attack, as a page, Markdown, CSV and text."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from cprl_jax.experiments.cprl import figures as pictures
from cprl_jax.experiments.cprl import findings, tables
from cprl_jax.experiments.cprl.results import CLEAN, DIFFERENCE_KEYS, KEYS, SCORE_KEYS, Results, condition
from cprl_jax.report import agreement, figures, page
from cprl_jax.report.page import Card, Range, Section
from cprl_jax.report.table import Table, csv_text
from cprl_jax.report.values import decimals, distinct, interval, number, value

WORDS = agreement.WORDS | {
    "95 % interval": "Where the number would mostly fall had other test images been drawn (percentile bootstrap over "
    "images; of a difference, the same images for both methods). It does not cover training again with another seed.",
    "Radius": "The most that an attack may change any colour value of any pixel; 1/255 is one grey level of a usual "
    "image file.",
    "Own clean scores": "Comparing attacked scores with the model's own scores before the attack shows how steady it "
    "is, apart from how right it was.",
    "SSIM": "Structural similarity of the image and its attacked twin: 1 is identical, and the closer to 1, the harder "
    "the attack is to see.",
    "Integral robustness": "The mean height of the curve of SRCC over the radius, from no attack to the largest one. 1 "
    "is a ranking that no radius disturbs. Comparable only between attacks with the same radii.",
    "R": "Mean logarithm (natural) of how far a score could have moved on 0..100, over how far the attack moved it. 0: "
    "as far as possible; every point more is a change 2.7 times as small. It does not ask whether the score was right.",
    "Score landscape": "The score of one image that is moved along two directions at once: one that raises the score "
    "fastest, and a random one. A robust model's is flat in both.",
    "Certified SRCC": "What an attacker cannot break: the lowest SRCC of any scores inside the certified intervals.",
    "Masked gradient": "A gradient that is zero or leads nowhere. Attacks that follow it fail although the scores "
    "could be moved, and a weak model looks robust.",
}
MEDIANS = (
    "Median over the splits, [lower and upper quartile], (smallest to largest). Each split is trained separately, with "
    "another seed or test part; a difference is taken on each split."
)

Parts = list[str | Table | Section]


def write(
    folder: str | os.PathLike,
    results: Results,
    *,
    title: str,
    summary: str | Sequence[str],
    config_text: str,
    notes: str | Sequence[str],
) -> Path:
    """Writes table.csv, scores.csv, the other CSV files, table.md, figures/*.png and report.html.

    Beside them, settings.json has the configuration that they were made with. Each file appears whole or not at all,
    the CSV files first. Figures of an earlier report that this one does not have are removed. What has nothing to show
    is left out. Returns the page's path.

    Args:
      folder: made if it does not exist.
      title, summary, config_text, notes: see `report.page.Page`.

    Raises:
      ValueError: an example's images do not fit together. Nothing has been written then.
    """
    checks = [
        {"method": row["method"], "check": row["name"], "verdict": row["verdict"], "explanation": row["explanation"]}
        | {"numbers": json.dumps(row["numbers"])}
        for row in results.checks
    ]
    certified = results.certificates("summary")
    return page.write(
        folder,
        page.Page(
            title,
            _sections(results),
            summary=summary,
            verdict=findings.verdict(results),
            notes=notes,
            config_text=config_text,
            words=WORDS | {results.attack_title(attack): text for attack, text in results.attack_legends.items()},
        ),
        files={
            "table.csv": csv_text(results.rows, KEYS),
            "scores.csv": csv_text(results.scores, SCORE_KEYS),
            "differences.csv": csv_text(results.differences, DIFFERENCE_KEYS),
            "trust.csv": csv_text(checks, ()) if checks else "",
            "certificates.csv": csv_text(certified, ("method", "radius")) if certified else "",
            "certified_scores.csv": csv_text(results.certificates("images"), ("method", "radius")) if certified else "",
            "zero_shot.csv": tables.zero_shot(results).csv() if results.zero_shot else "",
            "table.md": page.markdown(title, _parts(results)),
            "settings.json": config_text,
        },
        figure_names=pictures.NAMES,
    )


def terminal(results: Results) -> str:
    """The tables, warnings and verdicts for a terminal, about 110 columns wide."""
    return page.terminal([*_parts(results), findings.verdict(results), findings.trust_verdict(results)])


def medians(results: Results) -> Parts:
    """The parts of a report over several splits, for `report.page.terminal` and `markdown`.

    The `rows`, `zero_shot` and `differences` of these results are medians, from `experiments.repeats.summarize`.
    """
    return [*_parts(results, tables.over_splits), MEDIANS]


def _parts(results: Results, over_splits: agreement.Note | None = None) -> Parts:
    """What the terminal and table.md show."""
    legends = [f"{results.attack_title(attack)}: {text}" for attack, text in results.attack_legends.items()]
    return [
        tables.numbers(results, over_splits or interval),
        Section("Methods", [_methods(results)]),
        Section("Attacks", [legends]),
        Section("Warnings", [findings.warnings(results)]),
        tables.differences(results, over_splits),
        tables.zero_shot(results, over_splits or interval),
        tables.certificates(results),
    ]


def _sections(results: Results) -> list[Section]:
    """The page."""
    numbers, differences, zero_shot = tables.numbers(results), tables.differences(results), tables.zero_shot(results)
    where = results.title(results.headline)
    return [
        Section(
            "", [_falls(results)], f"SRCC against MOS: ring without attack, dot under {where}, band its 95 % interval."
        ),
        Section("Read these numbers with care", [findings.warnings(results)], kind="warnings"),
        Section("What was compared", [_methods(results)], "What ran under each name, its budget, and its checkpoint."),
        Section(
            "How the ranking falls with the radius",
            [pictures.curves(results), tables.areas(results)],
            "SRCC against MOS; radius 0 is no attack. The band is the 95 % interval.",
        ),
        Section("The numbers", [numbers], numbers.explained()),
        Section("Differences, image by image", [differences], differences.explained()),
        Section("On data sets that training did not see", [zero_shot], zero_shot.explained()),
        Section(
            "What an attack looks like",
            [_cards(results)],
            "Left the image, in the middle its attacked twin, right their difference, amplified; grey is no change. "
            "Point at the twin, or tap it, to lay the original over it: what flickers is the attack.",
        ),
        Section(
            "Where the scores went",
            [pictures.scatters(results) + pictures.changes(results)],
            f"Every dot is a test image, before and after {where}. On the dashed line nothing changed. An attack that "
            "works tilts the cloud: good images (bright) sink, bad ones (dark) rise. The last panel shows how far "
            "scores moved, with median and middle half.",
        ),
        Section("Worst cases", [tables.worst(results)], f"The images whose score {where} moved farthest, per method."),
        Section("The scores around one image", [pictures.landscapes(results)], _landscape_hint(results)),
        Section(
            "What the attack does inside",
            [pictures.activations(results)],
            "Mean activation of each channel of the last map of the trunk, over a few test images, the channels by "
            "their activation without attack. Where the thin line leaves the thick one, the attack moved what the "
            "score is made of.",
        ),
        Section(
            "Robust, or only hiding its gradient?",
            [tables.trust(results), pictures.strengths(results)],
            "Signs of a masked gradient. Each line is something that holds where attacks find what there is to find; "
            "where it does not, the attacks were misled and the attacked scores prove little. Strengths are mean "
            "changes of the score in the attack's direction, in points of 100, on a few test images.",
        ),
        Section(
            "Certified against attacked",
            [_broken(results), tables.certificates(results), pictures.certificates(results)],
            "What is proved and what was reached. Bars: no change of a crop of that l2 length takes the smoothed "
            "score, the median under Gaussian noise, out of them. Triangles: where PGD in l2 took it. A triangle "
            "far inside its bar: the bound is loose, or the attack is weak. One outside is a mistake of the program.",
        ),
        Section(
            "Training",
            [figures.training(results.histories, results.methods)],
            "The faint line is the loss of each step, the strong one its running mean. Losses of different objectives "
            "are not on one scale: compare their course, not their height.",
        ),
    ]


def _methods(results: Results) -> list[str]:
    """A line for each method: what ran, and its budget."""
    texts = {name: (results.titles.get(name), results.budgets.get(name)) for name in results.methods}
    return [f"{name}: {'; '.join(filter(None, known))}" for name, known in texts.items() if any(known)]


def _broken(results: Results) -> list[str]:
    """The loudest warning again, where the certificates are."""
    return [text for method in results.methods if (text := findings.broken(results, method))]


def _falls(results: Results) -> list[Range]:
    """Per method the way from its clean SRCC to the attacked one."""
    falls = []
    for method in distinct(results.rows, "method") if results.headline else ():
        clean, attacked = (results.find(method, pair) for pair in (CLEAN, results.headline))
        numbers = value(clean, "srcc"), *(value(attacked, key) for key in ("srcc", "srcc_low", "srcc_high"))
        flagged = findings.doubtful(results, method, results.headline)
        falls.append(Range(method, figures.colour(results.methods, method), *numbers, flagged))
    return falls


def _cards(results: Results) -> list[Card]:
    """What the methods say of one image stands together."""
    order = distinct(results.examples, "name")
    cards = []
    for index, row in sorted(enumerate(results.examples, start=1), key=lambda item: order.index(str(item[1]["name"]))):
        before, after, mos = (number(row[key]) for key in ("before", "after", "mos"))
        card = page.attacked_card(
            f"example_{index:02d}_{row['method']}",
            f"{row['method']} under {results.title(condition(row))}, {row['name']}",
            row["image"],
            row["attacked"],
            before=[f"score {decimals(before, 1)}", f"MOS {decimals(mos, 1)}"],
            after=[f"score {decimals(after, 1)}", f"{decimals(after - before, 1, signed=True)} points"],
        )
        cards.append(card)
    return cards


def _landscape_hint(results: Results) -> str:
    shown = results.landscapes
    blind = [method for method, landscape in shown.items() if landscape["zero_gradient_fraction"] == 1]
    image = next((landscape["image"] for landscape in shown.values()), "")
    return (
        f"Score landscape of {image} (the cross): every value moves by as much along the gradient's sign, which is "
        "where FGSM goes, as along random signs. One scale of colours for all."
        + (f" Without a gradient there is nothing to move along: {', '.join(blind)}." if blind else "")
    )
