"""The tables' numbers of a trained model: every test image under every attack, and the rows that follow from them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import ml_collections
import numpy as np
from jaxtyping import Float, UInt8

from cprl_jax import models
from cprl_jax.evaluation import reachable, statistics, table_attacks
from cprl_jax.evaluation.scoring import Crops, Scorer
from cprl_jax.evaluation.table_attacks import Condition, Context
from cprl_jax.methods import adaptive_score_fn
from cprl_jax.robustness import metrics as robustness_metrics
from cprl_jax.runtime import cells
from cprl_jax.runtime.files import Arrays
from cprl_jax.runtime.stamps import stamp

CLEAN = ("none", 0.0)
_SCALE = {"lowest": 0.0, "highest": 100.0}

Results = dict[tuple[str, float], Arrays]
"""(attack, radius in 1/255) -> arrays over images: `before`, `after`, `after_8bit`, `ssim`, `max_change`,
`zero_gradient_fraction`, and what else an attack returns; `rows`, the places of those images among the test images,
where an attack is for some only. `CLEAN` comes first."""


@dataclasses.dataclass(frozen=True)
class _Cell:
    """All test images under one condition; None is no attack."""

    condition: Condition | None
    path: Path
    stamp: str

    @property
    def key(self) -> tuple[str, float]:
        return (self.condition.label, self.condition.radius) if self.condition else CLEAN

    def __str__(self) -> str:
        attack, radius = self.key
        return f"{attack} at {radius:g}/255" if radius else attack if self.condition else "clean scores"


def evaluate(
    config: ml_collections.ConfigDict,
    method: str,
    networks: Mapping[str, tuple[nn.Module, Mapping]],
    crops: Crops,
    mos: Float[np.ndarray, " images"],
    *,
    folder: Path,
    training_crops: Callable[[int], UInt8[np.ndarray, "count size size 3"]],
) -> Results:
    """Scores every test image under every condition.

    Args:
      config: config.evaluation says what is done.
      method: the model's name in `networks`.
      networks: module and variables of every method, in the order of training: attacks may come from another model.
      crops, mos: test images and their labels.
      folder: keeps one file per condition, read back as long as what it depends on stays the same: the variables, the
        pixels, the labels (where the attack knows them), the attack's settings and the package's version.
      training_crops: `(count) -> crops` of the training part, for attacks that are made on it.
    """
    evaluation = config.evaluation
    module, variables = networks[method]
    scorer = Scorer(module, batch_size=evaluation.batch_size, mid=evaluation.mid, seed=config.seed)
    score_fns = {name: models.score_fn(network, weights) for name, (network, weights) in networks.items()}
    context = Context(
        score_fn=score_fns.pop(method),
        others=score_fns,
        training_crops=training_crops,
        adaptive=adaptive_score_fn(method, module, variables),
    )
    pixels = crops if isinstance(crops, np.ndarray) else crops.stamp
    model = stamp(module=module, variables=variables, crops=pixels)

    def cell(condition: Condition) -> _Cell:
        attack = condition.attack
        used = attack.used(condition.settings, condition.variant)
        attack_stamp = stamp(
            model=model,
            attack=[attack.name, condition.variant, condition.radius, used],
            mid=evaluation.mid,
            seed=config.seed,
            mos=mos if attack.direction == "reflect" or condition.images else None,
            prepared_from=attack.depends_on(context, condition),
        )
        return _Cell(condition, folder / condition.file, attack_stamp)

    def compute(cell: _Cell) -> Arrays:
        if condition := cell.condition:
            options = {"prepared": condition.attack.prepare(context, condition), "progress": str(cell)}
            options["parts"] = cells.Parts(cell.path, cell.stamp)
            if condition.images:
                rows = images_over_mos_range(mos, min(condition.images, len(mos)))
                return scorer.attack(variables, crops, mos, condition, rows=rows, **options) | {"rows": rows}
            return scorer.attack(variables, crops, mos, condition, **options)
        clean = scorer.scores(variables, crops, progress=str(cell))
        nothing = np.zeros_like(clean)
        scores = dict.fromkeys(("before", "after", "after_8bit"), clean)
        return scores | {"ssim": nothing + 1, "max_change": nothing, "zero_gradient_fraction": nothing}

    wanted = [_Cell(None, folder / "none.npz", stamp(model=model))]
    wanted += [cell(condition) for condition in table_attacks.conditions(evaluation)]
    results = cells.compute(wanted, compute, job=f"evaluate {method}", describe=str, shared=True)
    return {cell.key: arrays for cell, arrays in zip(wanted, results, strict=True)}


def table_rows(
    config: ml_collections.ConfigDict, method: str, results: Results, mos: Float[np.ndarray, " images"]
) -> list[dict[str, Any]]:
    """The rows of table.csv for one method: every condition, against MOS and against the clean prediction.

    Intervals are 95 % percentile bootstrap intervals over test images. `r` is R of `robustness.metrics` on 0..100 with
    the natural logarithm, infinite where some score did not change, NaN for a model whose scores have left their scale.
    `srcc_8bit` and the like are of attacked images rounded to 8 bits inside the radius: below 1/255 these are the clean
    images, which no file can come closer to. The rows of `reach:low` also have `lowest_srcc` and its bound.
    """
    asked = table_attacks.conditions(config.evaluation)
    columns = {(condition.label, condition.radius): condition.columns for condition in asked}
    no_attack = {"direction": "", "steps": 0, "restarts": 0}
    summaries = {(condition.label, condition.radius): condition.attack.summary for condition in asked}
    options = {"seed": config.seed, "resamples": config.evaluation.resamples}
    rows = []
    all_clean = results[CLEAN]["after"]
    has_scale = _SCALE["lowest"] <= np.median(all_clean) <= _SCALE["highest"]
    for (attack, radius), result in results.items():
        chosen = result.get("rows", slice(None))
        clean = all_clean[chosen]
        for against, target in (("mos", mos[chosen]), ("prediction", clean)):
            row = {"method": method, "attack": attack, "radius": radius, "against": against}
            row |= statistics.measures_with_intervals(result["after"], target, **options)
            row["ssim"] = float(result["ssim"].mean())
            row["max_change"] = float(result["max_change"].max() * 255.0)
            row["zero_gradient_fraction"] = float(result["zero_gradient_fraction"].mean())
            row["score_std"] = float(result["after"].std())
            has_r = has_scale and np.all(np.isfinite([clean, result["after"]]))
            row["r"] = robustness_metrics.r_robustness(clean, result["after"], **_SCALE) if has_r else math.nan
            row["images"] = len(clean)
            row |= columns.get((attack, radius), no_attack)
            row |= summaries[attack, radius](result) if (attack, radius) in summaries else {}
            for name, statistic in statistics.MEASURES.items():
                row[f"{name}_8bit"] = float(statistic(result["after_8bit"], target))
            row |= reachable.lowest_columns(results, attack, radius, target)
            rows.append(row)
    return rows


def score_rows(method: str, results: Results, names: list[str], mos: np.ndarray) -> list[dict[str, Any]]:
    """The rows of scores.csv for one method: every image under every condition."""
    clean = results[CLEAN]["after"]
    return [
        {
            "method": method,
            "attack": attack,
            "radius": radius,
            "name": names[i],
            "mos": float(mos[i]),
            "clean": float(clean[i]),
            "score": float(result["after"][place]),
            "ssim": float(result["ssim"][place]),
            "max_change": float(result["max_change"][place] * 255.0),
            "score_8bit": float(result["after_8bit"][place]),
        }
        for (attack, radius), result in results.items()
        for place, i in enumerate(result.get("rows", range(len(names))))
    ]


def examples(
    config: ml_collections.ConfigDict,
    method: str,
    module: nn.Module,
    variables: Mapping,
    crops: Crops,
    names: list[str],
    mos: Float[np.ndarray, " images"],
) -> list[dict[str, Any]]:
    """A few test images and their attacked twins (first crop, PGD at config.evaluation.example_radius).

    The images are the same for every method: evenly over the ranks of the MOS.
    """
    evaluation = config.evaluation
    rows = images_over_mos_range(mos, min(evaluation.examples, len(names)))
    if len(rows) == 0:
        return []
    images = crops[rows][:, :1]
    scorer = Scorer(module, batch_size=evaluation.batch_size, mid=evaluation.mid, seed=config.seed)
    attack = table_attacks.ATTACKS["pgd"]
    condition = attack.at(evaluation.example_radius, **attack.read(evaluation))
    result = scorer.attack(variables, images, mos[rows], condition, keep_images=True)
    return [
        {
            "method": method,
            "name": names[row],
            "attack": condition.label,
            "radius": condition.radius,
            "mos": float(mos[row]),
            "before": float(result["before"][i]),
            "after": float(result["after"][i]),
            "image": images[i, 0],
            "attacked": result["images"][i, 0],
        }
        for i, row in enumerate(rows)
    ]


def images_over_mos_range(mos: Float[np.ndarray, " images"], count: int) -> np.ndarray:
    """Rows of `count` different images, evenly over the ranks of the MOS; the extremes where there are no others."""
    left_out = 1 if count <= len(mos) - 2 else 0
    places = np.linspace(0, len(mos) - 1, count + 2 * left_out)[left_out : left_out + count]
    return np.argsort(mos, kind="stable")[np.round(places).astype(int)]
