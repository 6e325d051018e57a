"""From the cells of a perceptual attack to rows: candidates, counterexamples, tables, notes. On the host."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float
from PIL import Image

from cprl_jax.attacks.perceptual import PerceptualResult, select_counterexample
from cprl_jax.evaluation import statistics
from cprl_jax.experiments.perceptual import observers
from cprl_jax.experiments.perceptual.inputs import HIGHEST, LOWEST, Cell
from cprl_jax.robustness import metrics as robustness_metrics
from cprl_jax.runtime.files import Arrays, file_name

Rows = list[dict[str, Any]]
Others = Mapping[tuple[str, str, str, str], tuple[float, Float[np.ndarray, " candidates"]]]
"""(tested model, attacked model, fidelity, image) -> what the tested one says of the image and of all candidates."""

MOVED, ALIKE = 1.0, 0.98  # an image counts as moved when its score changes by more than 1 of 10 at an SSIM of 0.98
_ROUNDING = 1e-6  # a float32 distance that is a multiple of 1/255 may exceed it by less than this
_COLUMNS = {"before": "before", "after": "after", "distances": "distance"}
_LOGARITHMS = {"e": "natural", "2": "binary", "10": "decimal"}


def candidate_rows(cell: Cell, arrays: Arrays, *, folder: Path) -> Rows:
    """A row for each candidate of a cell; its pixels are in `file`, relative to `folder`, under `images`.

    `selected`, and what observers said, are filled in by `choose`.
    """
    names = {"model": cell.target.name, "fidelity": cell.fidelity.name, "image": cell.picture.name}
    rows = []
    for index in range(len(arrays["multipliers"])):
        numbers = {name: float(values[index]) for name, values in arrays.items() if name != "seconds"}
        rows.append(
            {
                **names,
                "network": cell.target.network,
                "candidate": index,
                "multiplier": numbers["multipliers"],
                "step_size": numbers["step_sizes"],
                "before": numbers["before"],
                "after": numbers["after"],
                "change": numbers["after"] - numbers["before"],
                "after_unquantized": numbers["after_unquantized"],
                # Rounding takes 1 - SSIM of nearly equal images below 0.
                "distance": max(numbers["distances"], 0.0),
                "distance_unquantized": max(numbers["distances_unquantized"], 0.0),
                "ssim": numbers["ssim"],
                "max_change": 255 * numbers["max_change"],
                "zero_gradient_fraction": numbers["zero_gradient_fraction"],
                "below_threshold": numbers["distances"] <= cell.fidelity.threshold + _ROUNDING,
                "selected": False,
                "imperceptible": "",
                "file": cell.path.relative_to(folder).as_posix(),
            }
        )
    return rows


def choose(
    rows: Rows, *, mos: float, seconds: float, observations: observers.Observations | None = None
) -> dict[str, Any]:
    """The row of the counterexample among the candidates of one cell, which is marked in `rows`.

    It is the candidate with the largest change of score among those below the threshold on the distance or, with
    observations, below the JND: a candidate that equals its original is, and one that nobody was asked about is not.
    Where none is, `found` is False and the counterexample is the nearest one.
    """
    names = {key: rows[0][key] for key in ("model", "fidelity", "image")}
    if observations is None:
        allowed = [bool(row["below_threshold"]) for row in rows]
    else:
        seen, asked = (counts.sum(axis=0) for counts in observations.of(tuple(names.values()), len(rows)))
        verdicts = observers.judge(seen, asked, observations.limit)
        allowed = [bool(below) or row["max_change"] == 0 for below, row in zip(verdicts.below, rows, strict=True)]
        for place, row in enumerate(rows):
            row |= {"answers": int(asked[place]), "seen": int(seen[place]), "share_seen": float(verdicts.share[place])}
            row |= {"share_seen_low": float(verdicts.low[place]), "share_seen_high": float(verdicts.high[place])}
            row["imperceptible"] = allowed[place] if asked[place] or allowed[place] else ""
    columns = {key: np.array([[row[name]] for row in rows], np.float32) for key, name in _COLUMNS.items()}
    unused = dict.fromkeys(PerceptualResult._fields, np.zeros((len(rows), 1, 1, 1, 3), np.float32))
    result = PerceptualResult(**(unused | columns))
    chosen = select_counterexample(result, math.inf, imperceptible=np.array(allowed)[:, None])
    index, found = int(chosen.candidates[0]), bool(chosen.found[0])
    for place, row in enumerate(rows):
        row["selected"] = found and place == index
    copied = ("before", "after", "change", "distance", "ssim", "max_change", "zero_gradient_fraction", "imperceptible")
    counterexample = {**names, "network": rows[0].get("network", ""), "mos": mos, "found": found, "candidate": index}
    return counterexample | {key: rows[index][key] for key in copied} | {"seconds": seconds}


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
                "network": group[0].get("network", ""),
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


def transfer_rows(others: Others, counterexamples: Rows, *, base: str) -> Rows:
    """Each model on the counterexamples made for another one (Table 2): `model` is tested, `attacked` was attacked."""
    rows = []
    for tested in dict.fromkeys(tested for tested, *_ in others):
        scored = []
        for row in counterexamples:
            scores = others.get((tested, row["model"], row["fidelity"], row["image"]))
            if scores is not None and row["found"]:
                before, after = scores
                scored.append({**row, "before": before, "after": float(after[row["candidate"]])})
        for (model, fidelity), group in _grouped(scored).items():
            names = {"model": tested, "attacked": model, "fidelity": fidelity}
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


def transfer_scores(others: Others) -> Rows:
    """`others` as rows, for a file."""
    return [
        {
            **dict(zip(("model", "attacked", "fidelity", "image"), names, strict=True)),
            "candidate": candidate,
            "before": before,
            "after": float(score),
        }
        for names, (before, after) in others.items()
        for candidate, score in enumerate(after)
    ]


def examples(counterexamples: Rows, candidates: Rows, *, count: int, folder: Path) -> Rows:
    """The counterexamples of the same few images under every attack, evenly over the list of images.

    Each has its `pixels` and those of the `attacked` image, out of the run's `folder`.
    """
    names = list(dict.fromkeys(row["image"] for row in counterexamples))
    count = min(count, len(names))
    shown = {names[int(place)] for place in np.round(np.linspace(0, len(names) - 1, count + 2)[1:-1])}
    files = {(row["model"], row["fidelity"], row["image"]): folder / row["file"] for row in candidates}
    rows = []
    for row in counterexamples:
        if row["image"] in shown:
            with Image.open(folder / "originals" / f"{file_name(row['image'])}.png") as image:
                pixels = np.array(image.convert("RGB"))
            # One candidate of a cell at a time: all of them together would not fit into memory.
            with np.load(files[row["model"], row["fidelity"], row["image"]], allow_pickle=False) as file:
                rows.append({**row, "pixels": pixels, "attacked": file["images"][row["candidate"]]})
    return rows


def notes(
    config: ml_collections.ConfigDict, counterexamples: Rows, observations: observers.Observations | None = None
) -> list[str]:
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
            f"{'threshold' if observations is None else 'JND'}. The numbers leave these images out."
        )
    if options.vgg16_weights == "random" and {"lpips", "dists"} & set(options.fidelities):
        texts.append("LPIPS and DISTS ran on a random VGG-16: their numbers show that the path works, nothing else.")
    thresholds = ", ".join(
        f"{name} {options.thresholds[name]:g}{'/255' if name == 'chebyshev' else ''}" for name in options.fidelities
    )
    if observations is None:
        texts.append(
            f"No observer looked at the candidates. Declared thresholds stand in for them: {thresholds}. "
            "candidates.csv has every candidate, with a column for verdicts."
        )
    else:
        texts.append(
            f"{len(observations.observers)} observers decided what is invisible: a candidate is below the JND if a "
            f"difference was seen in fewer than {100 * observations.limit:g} % of the answers to it. candidates.csv "
            "has the share of each with its 95 % interval (Wilson's)."
        )
    texts += [
        "Intervals (low, high) in the CSV files are 95 % bootstrap intervals over images"
        + (", and over observers: each draw of them chooses its own counterexamples" if observations else "")
        + "; that of SRCC takes ten images.",
        f"R (Eq. 6) uses the {_LOGARITHMS[options.logarithm]} logarithm; the paper does not state its base.",
        f"Sign steps for Chebyshev, {'sign' if options.norm == 'linf' else 'Euclidean'} steps for the others.",
    ]
    if not all(math.isfinite(row["mos"]) for row in counterexamples):
        texts.append("No labels for these images, hence no SRCC.")
    elif not options.images and config.dataset.name == "embedded":
        texts.append("The labels of the embedded data set come from a full-reference formula, not from people.")
    return texts
