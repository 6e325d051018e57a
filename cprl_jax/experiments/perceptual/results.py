"""From the cells of a perceptual attack to rows: candidates, counterexamples, tables, notes. On the host."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jaxtyping import UInt8

from cprl_jax.attacks.perceptual import PerceptualResult, select_counterexample
from cprl_jax.evaluation import statistics
from cprl_jax.experiments.perceptual.inputs import HIGHEST, LOWEST, Cell, Target, as_floats
from cprl_jax.robustness import metrics as robustness_metrics
from cprl_jax.runtime.files import Arrays

Rows = list[dict[str, Any]]
Attacked = Sequence[tuple[Cell, UInt8[np.ndarray, "height width 3"], dict[str, Any]]]
"""Cells with their counterexample and its row."""

MOVED, ALIKE = 1.0, 0.98  # an image counts as moved when its score changes by more than 1 of 10 at an SSIM of 0.98
_ROUNDING = 1e-6  # a float32 distance that is a multiple of 1/255 may exceed it by less than this
_LOGARITHMS = {"e": "natural", "2": "binary", "10": "decimal"}


def select(arrays: Arrays, threshold: float) -> tuple[int, bool]:
    """The candidate with the largest change of score among those below the threshold, and whether there is any.

    The verdicts of observers, if there were some, would go to `select_counterexample(imperceptible=...)`.
    """
    columns = {
        name: arrays[name][:, None] for name in PerceptualResult._fields if name not in ("images", "multipliers")
    }
    pixels = np.zeros((len(arrays["multipliers"]), 1, 1, 1, 3), np.float32)  # not needed to choose
    result = PerceptualResult(images=pixels, multipliers=arrays["multipliers"], **columns)
    chosen = select_counterexample(result, threshold + _ROUNDING)
    return int(chosen.candidates[0]), bool(chosen.found[0])


def cell_rows(cell: Cell, arrays: Arrays, *, folder: Path) -> tuple[Rows, dict[str, Any]]:
    """A row for each candidate of a cell, and one for its counterexample.

    Of a candidate, `imperceptible` is left to observers; its pixels are in `file`, relative to `folder`, under
    `images`. Where no candidate is below the threshold, `found` is False and the counterexample is the nearest one.
    """
    chosen, exists = select(arrays, cell.fidelity.threshold)
    names = {"model": cell.target.name, "fidelity": cell.fidelity.name, "image": cell.picture.name}
    rows = []
    for index in range(len(arrays["multipliers"])):
        numbers = {name: float(values[index]) for name, values in arrays.items() if name != "seconds"}
        rows.append(
            {
                **names,
                "candidate": index,
                "multiplier": numbers["multipliers"],
                "step_size": numbers["step_sizes"],
                "before": numbers["before"],
                "after": numbers["after"],
                "change": numbers["after"] - numbers["before"],
                "after_unquantized": numbers["after_unquantized"],
                "distance": numbers["distances"],
                "distance_unquantized": numbers["distances_unquantized"],
                "ssim": numbers["ssim"],
                "max_change": 255 * numbers["max_change"],
                "zero_gradient_fraction": numbers["zero_gradient_fraction"],
                "below_threshold": numbers["distances"] <= cell.fidelity.threshold + _ROUNDING,
                "selected": exists and index == chosen,
                "imperceptible": "",
                "file": cell.path.relative_to(folder).as_posix(),
            }
        )
    copied = ("before", "after", "change", "distance", "ssim", "max_change", "zero_gradient_fraction")
    counterexample = {**names, "mos": cell.picture.mos, "found": exists, "candidate": chosen}
    counterexample |= {key: rows[chosen][key] for key in copied} | {"seconds": float(arrays["seconds"])}
    return rows, counterexample


def intra_rows(counterexamples: Rows, *, base: str) -> Rows:
    """Each model on the counterexamples made for it (Table 1 of the paper), a row per model and fidelity.

    Only images whose counterexample was found count. `srcc` is over originals and counterexamples together, which keep
    the MOS of their originals; `srcc_before` over the originals; NaN without labels. `moved` counts the images moved by
    more than one of ten points at an SSIM of at least 0.98.
    """
    rows = []
    for (model, fidelity), group in _grouped(counterexamples).items():
        kept = [row for row in group if row["found"]]
        rows.append(
            {
                "model": model,
                "fidelity": fidelity,
                "images": len(kept),
                "of": len(group),
                **_numbers(kept, base),
                "mean_ssim": _mean([row["ssim"] for row in kept]),
                "lowest_ssim": min((row["ssim"] for row in kept), default=math.nan),
                "moved": sum(abs(row["change"]) > MOVED and row["ssim"] >= ALIKE for row in kept),
                "seconds": sum(row["seconds"] for row in group),
            }
        )
    return rows


def transfer_rows(targets: Sequence[Target], attacked: Attacked, *, base: str) -> Rows:
    """Each target on the counterexamples made for another one (Table 2): `model` is tested, `attacked` was attacked."""
    rows = []
    for target in targets:
        score_fn = jax.jit(target.score_fn)
        before: dict[str, float] = {}
        scored = []
        for cell, pixels, row in attacked:
            if cell.target.name == target.name or not row["found"]:
                continue
            name = cell.picture.name
            if name not in before:
                before[name] = float(score_fn(as_floats(cell.picture.pixels[None]))[0])
            scored.append({**row, "before": before[name], "after": float(score_fn(as_floats(pixels[None]))[0])})
        for (model, fidelity), group in _grouped(scored).items():
            names = {"model": target.name, "attacked": model, "fidelity": fidelity}
            rows.append({**names, "images": len(group), **_numbers(group, base)})
    return rows


def _numbers(rows: Rows, base: str) -> dict[str, float]:
    """SRCC before and after; R of Eq. 6, NaN without images and for a model whose scores have left its scale."""
    before, after, mos = (np.array([row[key] for row in rows]) for key in ("before", "after", "mos"))
    labelled = before.size >= statistics.MIN_IMAGES and np.all(np.isfinite(mos))
    both = np.concatenate([before, after])
    r = math.nan
    if before.size and LOWEST <= np.median(before) <= HIGHEST:
        number = "e" if base == "e" else float(base)
        r = robustness_metrics.r_robustness(before, after, lowest=LOWEST, highest=HIGHEST, base=number)
    return {
        "srcc_before": float(statistics.srcc(before, mos)) if labelled else math.nan,
        "srcc": float(statistics.srcc(both, np.concatenate([mos, mos]))) if labelled else math.nan,
        "r": r,
        "mean_change": _mean(np.abs(after - before)),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _grouped(rows: Rows) -> dict[tuple[str, str], Rows]:
    groups: dict[tuple[str, str], Rows] = {}
    for row in rows:
        groups.setdefault((row["model"], row["fidelity"]), []).append(row)
    return groups


def examples(attacked: Attacked, *, count: int) -> Rows:
    """The same few images under every attack, evenly over the list of images."""
    names = list(dict.fromkeys(cell.picture.name for cell, _, _ in attacked))
    count = min(count, len(names))
    shown = {names[int(place)] for place in np.round(np.linspace(0, len(names) - 1, count + 2)[1:-1])}
    return [
        {**row, "pixels": cell.picture.pixels, "attacked": pixels}
        for cell, pixels, row in attacked
        if cell.picture.name in shown
    ]


def notes(config: ml_collections.ConfigDict, counterexamples: Rows) -> list[str]:
    """What a reader of the report has to know, one sentence or two each, the gravest first."""
    options, texts = config.perceptual, []
    if blind := sum(row["zero_gradient_fraction"] == 1 for row in counterexamples):
        texts.append(
            f"In {blind} of {len(counterexamples)} cells the gradient of the score was exactly 0: the attack was blind "
            "there, and its failure is no robustness."
        )
    if missed := sum(not row["found"] for row in counterexamples):
        texts.append(
            f"{missed} of {len(counterexamples)} counterexamples were not found: no candidate below the "
            "threshold. The numbers leave these images out."
        )
    if options.vgg16_weights == "random" and {"lpips", "dists"} & set(options.fidelities):
        texts.append("LPIPS and DISTS ran on a random VGG-16: their numbers show that the path works, nothing else.")
    thresholds = ", ".join(
        f"{name} {options.thresholds[name]:g}{'/255' if name == 'chebyshev' else ''}" for name in options.fidelities
    )
    texts += [
        f"No observer looked at the candidates. Declared thresholds stand in for them: {thresholds}. candidates.csv "
        "has every candidate, with a column for verdicts.",
        f"R (Eq. 6) uses the {_LOGARITHMS[options.logarithm]} logarithm; the paper does not state its base.",
        f"Sign steps for Chebyshev, {'sign' if options.norm == 'linf' else 'Euclidean'} steps for the others.",
    ]
    if not all(math.isfinite(row["mos"]) for row in counterexamples):
        texts.append("No labels for these images, hence no SRCC.")
    elif not options.images and config.dataset.name == "embedded":
        texts.append("The labels of the embedded data set come from a full-reference formula, not from people.")
    return texts
