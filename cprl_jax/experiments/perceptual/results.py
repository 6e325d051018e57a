"""What the cells of a perceptual attack come to: counterexamples, tables, notes. Plain rows, on the host."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from cprl_jax.attacks.perceptual import PerceptualResult, select_counterexample
from cprl_jax.evaluation import statistics
from cprl_jax.experiments.perceptual.inputs import HIGHEST, LOWEST, Cell, Target, as_floats
from cprl_jax.robustness import metrics as robustness_metrics

Arrays = dict[str, np.ndarray]
Rows = list[dict[str, Any]]

MOVED, ALIKE = 1.0, 0.98  # an image counts as moved when its score changes by more than 1 of 10 at an SSIM of 0.98
_ROUNDING = 1e-6  # of a float32 distance that is a multiple of 1/255
_LOGARITHMS = {"e": "natural", "2": "binary", "10": "decimal"}


def select(arrays: Arrays, threshold: float) -> tuple[int, bool]:
    """The candidate with the largest change of score among those below the threshold, and whether there is any.

    This is where observers come in: the verdicts of a study go to `select_counterexample(imperceptible=...)`.
    """
    columns = {
        name: arrays[name][:, None] for name in PerceptualResult._fields if name not in ("images", "multipliers")
    }
    pixels = np.zeros((len(arrays["multipliers"]), 1, 1, 1, 3), np.float32)  # not needed to choose
    result = PerceptualResult(images=pixels, multipliers=arrays["multipliers"], **columns)
    chosen = select_counterexample(result, threshold + _ROUNDING)
    return int(chosen.candidates[0]), bool(chosen.found[0])


def candidate_rows(cell: Cell, arrays: Arrays, chosen: int, exists: bool, *, folder: Path) -> Iterable[dict[str, Any]]:
    """A row for each candidate of a cell. `imperceptible` is left to observers; the pixels are in `file`, `images`."""
    for index in range(len(arrays["multipliers"])):
        yield {
            "model": cell.target.name,
            "fidelity": cell.fidelity.name,
            "image": cell.picture.name,
            "candidate": index,
            "multiplier": arrays["multipliers"][index],
            "step_size": arrays["step_sizes"][index],
            "before": arrays["before"][index],
            "after": arrays["after"][index],
            "change": arrays["after"][index] - arrays["before"][index],
            "after_unquantized": arrays["after_unquantized"][index],
            "distance": arrays["distances"][index],
            "distance_unquantized": arrays["distances_unquantized"][index],
            "ssim": arrays["ssim"][index],
            "max_change": 255 * arrays["max_change"][index],
            "zero_gradient_fraction": arrays["zero_gradient_fraction"][index],
            "below_threshold": bool(arrays["distances"][index] <= cell.fidelity.threshold + _ROUNDING),
            "selected": exists and index == chosen,
            "imperceptible": "",
            "file": cell.path.relative_to(folder).as_posix(),
        }


def counterexample_row(cell: Cell, arrays: Arrays, chosen: int, exists: bool) -> dict[str, Any]:
    """What was chosen in a cell; with `found` False, the candidate nearest to the original."""
    before, after = float(arrays["before"][chosen]), float(arrays["after"][chosen])
    return {
        "model": cell.target.name,
        "fidelity": cell.fidelity.name,
        "image": cell.picture.name,
        "mos": cell.picture.mos,
        "found": exists,
        "candidate": chosen,
        "before": before,
        "after": after,
        "change": after - before,
        "distance": float(arrays["distances"][chosen]),
        "ssim": float(arrays["ssim"][chosen]),
        "max_change": 255 * float(arrays["max_change"][chosen]),
        "zero_gradient_fraction": float(arrays["zero_gradient_fraction"][chosen]),
        "seconds": float(arrays["seconds"]),
    }


def intra_rows(counterexamples: Rows, *, base: str) -> Rows:
    """Each model on the counterexamples made for it (Table 1 of the paper), a row per model and fidelity.

    Only images whose counterexample was found count. `srcc` is over originals and counterexamples together, which keep
    the MOS of their originals; `srcc_before` over the originals; NaN without labels. `moved` counts the images moved by
    more than one of ten points at an SSIM of at least 0.98.
    """
    rows = []
    for (model, fidelity), every in _grouped(counterexamples, "model", "fidelity").items():
        kept = [row for row in every if row["found"]]
        rows.append(
            {
                "model": model,
                "fidelity": fidelity,
                "images": len(kept),
                "of": len(every),
                **_numbers(kept, base),
                "mean_ssim": _mean([row["ssim"] for row in kept]),
                "lowest_ssim": min((row["ssim"] for row in kept), default=math.nan),
                "moved": sum(abs(row["change"]) > MOVED and row["ssim"] >= ALIKE for row in kept),
                "seconds": sum(row["seconds"] for row in every),
            }
        )
    return rows


def transfer_rows(counterexamples: Rows, scores: dict[tuple[str, int], tuple[float, float]], *, base: str) -> Rows:
    """Each model on the counterexamples made for another one (Table 2): `model` is tested, `attacked` was attacked.

    Args:
      scores: (tested model, place of the counterexample) -> its score before and after.
    """
    rows = []
    for tested in dict.fromkeys(name for name, _ in scores):
        places = [place for name, place in scores if name == tested and counterexamples[place]["found"]]
        entries = [
            {**counterexamples[place], "before": scores[tested, place][0], "after": scores[tested, place][1]}
            for place in places
        ]
        for (attacked, fidelity), kept in _grouped(entries, "model", "fidelity").items():
            names = {"model": tested, "attacked": attacked, "fidelity": fidelity}
            rows.append({**names, "images": len(kept), **_numbers(kept, base)})
    return rows


def transfer_scores(
    targets: Sequence[Target], cells: Sequence[Cell], attacked: Sequence[np.ndarray]
) -> dict[tuple[str, int], tuple[float, float]]:
    """Scores of all originals and counterexamples by the models that they were not made for.

    Args:
      attacked: the counterexample of each cell, uint8 [height, width, 3].

    Returns:
      (model under test, place of the cell) -> its scores before and after.
    """
    scores = {}
    for target in targets:
        score_fn = jax.jit(target.score_fn)
        clean: dict[str, float] = {}
        for place, (cell, pixels) in enumerate(zip(cells, attacked, strict=True)):
            if cell.target.name == target.name:
                continue
            name = cell.picture.name
            if name not in clean:
                clean[name] = float(score_fn(as_floats(cell.picture.pixels[None]))[0])
            scores[target.name, place] = clean[name], float(score_fn(as_floats(pixels[None]))[0])
    return scores


def _numbers(rows: Rows, base: str) -> dict[str, float]:
    before, after, mos = (np.array([row[key] for row in rows]) for key in ("before", "after", "mos"))
    labelled = before.size >= statistics.MIN_IMAGES and np.all(np.isfinite(mos))
    both = np.concatenate([before, after])
    return {
        "srcc_before": float(statistics.srcc(before, mos)) if labelled else math.nan,
        "srcc": float(statistics.srcc(both, np.concatenate([mos, mos]))) if labelled else math.nan,
        "r": _r(before, after, base),
        "mean_change": _mean(np.abs(after - before)),
    }


def _r(before: np.ndarray, after: np.ndarray, base: str) -> float:
    """R of Eq. 6; NaN without images and for a model whose scores have left its scale."""
    if not before.size or not LOWEST <= np.median(before) <= HIGHEST:
        return math.nan
    return robustness_metrics.r_robustness(
        before, after, lowest=LOWEST, highest=HIGHEST, base="e" if base == "e" else float(base)
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _grouped(rows: Rows, *keys: str) -> dict[tuple, Rows]:
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def examples(cells: Sequence[Cell], attacked: Sequence[np.ndarray], counterexamples: Rows, *, count: int) -> Rows:
    """The same few images under every attack, evenly over the list of images."""
    names = list(dict.fromkeys(cell.picture.name for cell in cells))
    count = min(count, len(names))
    shown = {names[int(place)] for place in np.round(np.linspace(0, len(names) - 1, count + 2)[1:-1])}
    return [
        {**row, "pixels": cell.picture.pixels, "attacked": pixels}
        for cell, pixels, row in zip(cells, attacked, counterexamples, strict=True)
        if cell.picture.name in shown
    ]


def notes(config: ml_collections.ConfigDict, counterexamples: Rows) -> list[str]:
    options = config.perceptual
    thresholds = ", ".join(
        f"{name} {options.thresholds[name]:g}{'/255' if name == 'chebyshev' else ''}" for name in options.fidelities
    )
    texts = [
        f"No observer looked at the candidates. Declared thresholds stand in for them: {thresholds}. candidates.csv "
        "has every candidate, with a column for verdicts.",
        f"R (Eq. 6) uses the {_LOGARITHMS[options.logarithm]} logarithm; the paper does not state its base.",
        f"Sign steps for Chebyshev, {'sign' if options.norm == 'linf' else 'Euclidean'} steps for the others.",
    ]
    if options.vgg16_weights == "random" and {"lpips", "dists"} & set(options.fidelities):
        texts.insert(0, "LPIPS and DISTS ran on a random VGG-16: their numbers show that the path works, nothing else.")
    if not all(math.isfinite(row["mos"]) for row in counterexamples):
        texts.append("No labels for these images, hence no SRCC.")
    elif not options.images and config.dataset.name == "embedded":
        texts.append("The labels of the embedded data set come from a full-reference formula, not from people.")
    if missed := sum(not row["found"] for row in counterexamples):
        texts.insert(
            0,
            f"{missed} of {len(counterexamples)} counterexamples were not found: no candidate below the "
            "threshold. The numbers leave these images out.",
        )
    if blind := sum(row["zero_gradient_fraction"] == 1 for row in counterexamples):
        texts.insert(
            0,
            f"In {blind} of {len(counterexamples)} cells the gradient of the score was exactly 0: the attack was blind "
            "there, and its failure is no robustness.",
        )
    return texts
