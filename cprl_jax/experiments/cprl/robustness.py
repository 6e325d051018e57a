"""What stands behind a model's robustness in a run: landscape, trust checks and the area under its radius curves."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float

from cprl_jax import attacks, models
from cprl_jax.evaluation.scoring import Crops
from cprl_jax.evaluation.table import images_over_mos_range
from cprl_jax.methods import adaptive_score_fn
from cprl_jax.robustness import metrics, trust
from cprl_jax.robustness.landscape import landscape
from cprl_jax.runtime import parallel
from cprl_jax.runtime.files import read_cache, write_cache
from cprl_jax.runtime.stamps import stamp

# The fields of config.evaluation that `robustness` reads beside the choice of images.
SETTINGS = ("trust_radius", "trust_queries", "landscape_points", "landscape_extent", "pgd_steps", "mid")


def integrals(rows: list[dict], method: str) -> dict[str, float]:
    """Attack -> integral robustness of a method: the mean height of its curve of SRCC against MOS over the radius.

    Args:
      rows: from `evaluation.table.table_rows`.
    """
    rows = [row for row in rows if row["method"] == method and row["against"] == "mos"]
    clean = next(row["srcc"] for row in rows if row["attack"] == "none")
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["radius"] > 0:  # neither the clean images nor an attack without radius
            curves.setdefault(row["attack"], [(0.0, clean)]).append((row["radius"], row["srcc"]))
    return {attack: metrics.integral_robustness(*zip(*sorted(curve), strict=True)) for attack, curve in curves.items()}


def robustness(
    config: ml_collections.ConfigDict,
    method: str,
    networks: Mapping[str, tuple[nn.Module, Mapping]],
    crops: Crops,
    names: list[str],
    mos: Float[np.ndarray, " images"],
    *,
    cache: Path,
) -> dict:
    """The score landscape around one test image, and the trust checks on a few, for one method.

    The images are the first crops of test images evenly over the ranks of the MOS, the same for every method. Runs in
    this process alone, on its first device, in float32.

    Args:
      config: config.evaluation says what is done.
      networks: method -> (module, variables), for all methods: attacked images are transferred from another one.
      crops, names, mos: test images.
      cache: an .npz file that keeps the result, read back while all that it depends on is the same.

    Returns:
      plain lists and numbers: `method`, and unless turned off `checks` (those of `trust.check`, as dictionaries) and
      `landscape`: `image` (its name), `scores`, `along_gradient` and `along_random` (1/255), `zero_gradient_fraction`.
    """
    evaluation = config.evaluation
    other = next((name for name in networks if name != method), None)
    landscape_rows = images_over_mos_range(mos, 1 if evaluation.landscape_points else 0)
    rows = images_over_mos_range(mos, min(evaluation.trust_images, len(names)))
    result_stamp = stamp(
        network=networks[method],
        other=networks[other] if other and len(rows) else None,
        adaptive=adaptive_score_fn(method, *networks[method]),
        seed=config.seed,
        pixels=[crops[landscape_rows][:, 0], crops[rows][:, 0]],
        names=[names[row] for row in landscape_rows],
        mos=mos[rows],
        settings={name: evaluation[name] for name in SETTINGS},
        checks=trust.NAMES if len(rows) else (),
    )
    if (kept := read_cache(cache, result_stamp)) is not None:
        return json.loads(str(kept["result"]))
    networks = {name: (module, parallel.uncommitted(variables)) for name, (module, variables) in networks.items()}
    score_fn, adaptive = models.score_fn(*networks[method]), adaptive_score_fn(method, *networks[method])
    result: dict = {"method": method}
    for row in landscape_rows:
        logging.info("%s: score landscape of %s", method, names[row])
        plane = landscape(
            score_fn,
            crops[row][0] / np.float32(255),
            extent=evaluation.landscape_extent / 255.0,
            points=evaluation.landscape_points,
            key=jax.random.key(config.seed),
        )
        result["landscape"] = {
            "image": names[row],
            "scores": plane.scores.tolist(),
            "along_gradient": (255 * plane.along_gradient).tolist(),
            "along_random": (255 * plane.along_random).tolist(),
            "zero_gradient_fraction": float(plane.zero_gradient_fraction),
        }
    if len(rows):
        logging.info("%s: trust checks", method)
        images = crops[rows][:, 0] / np.float32(255)
        attack = {
            "radius": evaluation.trust_radius / 255.0,
            "steps": evaluation.pgd_steps,
            "direction": attacks.reflect(mos[rows].astype(np.float32), evaluation.mid),
        }
        transferred = attacks.pgd(models.score_fn(*networks[other]), images, **attack).images if other else None
        checks = trust.check(
            score_fn,
            images,
            **attack,
            queries=evaluation.trust_queries,
            key=jax.random.key(config.seed),
            transfer_images=transferred,
            adaptive_score_fn=adaptive,
            gateless_score_fn=_gateless_score_fn(*networks[method]),
        )
        result["checks"] = [check._asdict() for check in checks]
    write_cache(cache, result_stamp, {"result": np.array(json.dumps(result))})
    return result


def _gateless_score_fn(module: nn.Module, variables: Mapping):
    """The network with the same parameters and nothing masked; None where SortMask masks nothing anyway."""
    sort_mask = getattr(module, "sort_mask", None)
    if not sort_mask or sort_mask.rate == 0:
        return None
    return models.score_fn(module.clone(sort_mask=dataclasses.replace(sort_mask, rate=0.0)), variables)
