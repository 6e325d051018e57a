"""What stands behind a model's robustness in a run: landscape, trust checks and the area under its radius curves."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from cprl_jax import attacks, models
from cprl_jax.evaluation.scoring import spread
from cprl_jax.robustness import metrics, trust
from cprl_jax.robustness.landscape import landscape
from cprl_jax.runtime.files import read_cache, write_cache


def integrals(rows: list[dict], method: str) -> dict[str, float]:
    """Attack -> integral robustness of a method: the mean height of its curve of SRCC against MOS over the radius.

    Args:
      rows: of `table_rows`.
    """
    own = [row for row in rows if row["method"] == method and row["against"] == "mos"]
    clean = next(row["srcc"] for row in own if row["attack"] == "none")
    curves: dict[str, dict[float, float]] = {}
    for row in own:
        if row["attack"] != "none":
            curves.setdefault(row["attack"], {0.0: clean})[row["radius"]] = row["srcc"]
    return {
        attack: metrics.integral_robustness(sorted(curve), [curve[radius] for radius in sorted(curve)])
        for attack, curve in curves.items()
    }


def robustness(
    config: ml_collections.ConfigDict,
    method: str,
    networks: dict[str, tuple[nn.Module, dict]],
    crops: UInt8[np.ndarray, "images crops size size 3"],
    names: list[str],
    mos: Float[np.ndarray, " images"],
    *,
    cache: Path | None = None,
    identity: dict | None = None,
) -> dict:
    """The score landscape around one test image, and the trust checks on a few, of one method.

    The images are the first crops of test images that are spread evenly over the ranks of the MOS, the same for every
    method. Runs in this process alone, on its first device.

    Args:
      config: config.evaluation says what is done.
      networks: method -> (module, variables), of all methods: attacked images are transferred from another one.
      crops, names, mos: test images.
      cache: an .npz file that keeps the result, read back when it was made with the same `identity` and settings.
      identity: what the result depends on beside config.evaluation (the checkpoints' steps and the like).

    Returns:
      `method`, and what is not turned off of `checks` (those of `trust.check`, as dictionaries) and `landscape`:
      `image` (its name), `scores`, `along_gradient` and `along_random` (1/255), `zero_gradient_fraction`.
    """
    evaluation = config.evaluation
    settings = {
        name: evaluation[name]
        for name in (
            "trust_images",
            "trust_radius",
            "trust_queries",
            "landscape_points",
            "landscape_extent",
            "pgd_steps",
            "mid",
            "crop_size",
        )
    }
    stamp = json.dumps({"seed": config.seed, **settings, **(identity or {})}, sort_keys=True)
    if cache is not None and (cached := _read_cache(cache, stamp)) is not None:
        return {"method": method, **cached}
    result: dict = {}
    module, variables = networks[method]
    score_fn = models.score_fn(module, variables)
    if evaluation.landscape_points:
        (row,) = spread(mos, 1)
        logging.info("%s: score landscape of %s", method, names[row])
        found = landscape(
            score_fn,
            crops[row, 0] / np.float32(255),
            extent=evaluation.landscape_extent / 255.0,
            points=evaluation.landscape_points,
            key=jax.random.key(config.seed),
        )
        result["landscape"] = {
            "image": names[row],
            "scores": np.asarray(found.scores),
            "along_gradient": 255 * np.asarray(found.along_gradient),
            "along_random": 255 * np.asarray(found.along_random),
            "zero_gradient_fraction": float(found.zero_gradient_fraction),
        }
    if evaluation.trust_images:
        logging.info("%s: trust checks", method)
        rows = spread(mos, min(evaluation.trust_images, len(names)))
        images = crops[rows, 0] / np.float32(255)
        attack = {
            "radius": evaluation.trust_radius / 255.0,
            "steps": evaluation.pgd_steps,
            "direction": attacks.reflect(mos[rows].astype(np.float32), evaluation.mid),
        }
        other = next((name for name in networks if name != method), None)
        transferred = attacks.pgd(models.score_fn(*networks[other]), images, **attack).images if other else None
        masked = module.sort_mask.rate > 0
        checks = trust.check(
            score_fn,
            images,
            **attack,
            queries=evaluation.trust_queries,
            key=jax.random.key(config.seed),
            transfer_images=transferred,
            adaptive_score_fn=models.score_fn(module, variables, masks="straight_through") if masked else None,
        )
        result["checks"] = [check._asdict() for check in checks]
    if cache is not None:
        _write_cache(cache, stamp, result)
    return {"method": method, **result}


def _write_cache(path: Path, stamp: str, result: dict) -> None:
    arrays = {f"landscape/{name}": np.asarray(values) for name, values in result.get("landscape", {}).items()}
    if "checks" in result:
        arrays["checks"] = np.array(json.dumps(result["checks"]))
    write_cache(path, stamp, arrays)


def _read_cache(path: Path, stamp: str) -> dict | None:
    arrays = read_cache(path, stamp)
    if arrays is None:
        return None
    result = {}
    if "checks" in arrays:
        result["checks"] = json.loads(str(arrays["checks"]))
    shown = {key.removeprefix("landscape/"): values for key, values in arrays.items() if key.startswith("landscape/")}
    if shown:
        shown["image"] = str(shown["image"])
        shown["zero_gradient_fraction"] = float(shown["zero_gradient_fraction"])
        result["landscape"] = shown
    return result
