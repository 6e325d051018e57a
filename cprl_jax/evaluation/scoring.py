"""A trained model, clean and attacked: scores of test images, and the rows of the papers' tables."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from cprl_jax import attacks, fidelity, models
from cprl_jax.data.crops import draw_crops, extract
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation import statistics
from cprl_jax.robustness import metrics as robustness_metrics
from cprl_jax.runtime import parallel
from cprl_jax.runtime.files import read_cache, write_cache

_MEASURES = ("srcc", "plcc", "rmse")
_BLOCK_BYTES = 2**29  # of crops that are cut out at once
_LOWEST, _HIGHEST = 0.0, 100.0  # of the scores' scale


class Scorer:
    """Scores and attacks crops of images in batches of one shape, on every device of every process.

    Args:
      module: the network.
      batch_size: crops at once, a device.
      pgd_steps: gradient steps of PGD.
      mid: scores of images whose MOS is above it are pushed down, those of the others up.
    """

    def __init__(self, module: nn.Module, *, batch_size: int, pgd_steps: int, mid: float):
        self._batch_size, self._mid = batch_size, mid
        self._score = _on_devices(
            jax.jit(lambda variables, batch: {"scores": models.score_fn(module, variables)(_pixels(batch))})
        )
        # Not under jit here: the attacks compile their step, and loop over it in the way that suits the device.
        self._attack = {
            name: _on_devices(
                lambda variables, batch, options=options, attack=attack: self._attacked(
                    attack, options, models.score_fn(module, variables), batch
                )
            )
            for name, attack, options in (("fgsm", attacks.fgsm, {}), ("pgd", attacks.pgd, {"steps": pgd_steps}))
        }

    def scores(
        self, variables: dict, crops: UInt8[np.ndarray, "images crops size size 3"], *, progress: str = ""
    ) -> Float[np.ndarray, " images"]:
        """Clean scores: the mean over an image's crops."""
        flat = {"image": crops.reshape(-1, *crops.shape[2:])}
        scores = self._run(self._score, variables, flat, progress)["scores"]
        return scores.reshape(crops.shape[:2]).mean(axis=1)

    def attack(
        self,
        variables: dict,
        crops: UInt8[np.ndarray, "images crops size size 3"],
        mos: Float[np.ndarray, " images"],
        *,
        attack: str,
        radius: float,
        keep_images: bool = False,
        progress: str = "",
    ) -> dict[str, np.ndarray]:
        """Attacks every crop by itself, reflecting the MOS, with full knowledge of the model.

        Args:
          variables, crops: the model's, and uint8 RGB.
          mos: decides the side to which each score is pushed.
          attack: 'fgsm' or 'pgd'.
          radius: l-inf, in [0, 1] pixel units.
          keep_images: also return the attacked crops.
          progress: name of the progress bar; '' for none.

        Returns:
          For every image, `before`, `after` (scores), `ssim`, `zero_gradient_fraction`: means over its crops;
          `max_change`: the largest over its crops, [0, 1] pixel units; and `images` [images, crops, size, size, 3].
        """
        count = crops.shape[1]
        flat = {
            "image": crops.reshape(-1, *crops.shape[2:]),
            "mos": np.repeat(mos, count).astype(np.float32),
            "radius": np.full(len(mos) * count, radius, np.float32),
        }
        out = self._run(self._attack[attack], variables, flat, progress, without=() if keep_images else ("images",))
        result = {name: values.reshape(len(mos), count, *values.shape[1:]) for name, values in out.items()}
        for name in ("before", "after", "ssim", "zero_gradient_fraction"):
            result[name] = result[name].mean(axis=1)
        result["max_change"] = result["max_change"].max(axis=1)
        return result

    def _attacked(self, attack, options, score_fn, batch):
        images = _pixels(batch)
        result = attack(
            score_fn, images, radius=batch["radius"], direction=attacks.reflect(batch["mos"], self._mid), **options
        )
        return {**result._asdict(), "ssim": fidelity.ssim(result.images, images)}

    def _run(self, function: Callable, variables, arrays: dict[str, np.ndarray], progress: str, without=()):
        """Applies a function to this process's share of the rows, batch by batch, and gathers all rows."""
        total = len(next(iter(arrays.values())))
        processes, index = parallel.process_count(), parallel.process_index()
        share = math.ceil(total / processes)  # the same number of batches everywhere
        rows = np.minimum(np.arange(share * index, share * (index + 1)), total - 1)
        at_once = self._batch_size * parallel.local_device_count()
        parts: dict[str, list] = {}
        starts = range(0, share, at_once)

        def run(start: int) -> dict[str, np.ndarray]:
            padded = rows[np.minimum(np.arange(start, start + at_once), share - 1)]
            out = function(variables, {name: values[padded] for name, values in arrays.items()})
            return {name: np.asarray(values)[: share - start] for name, values in out.items() if name not in without}

        bar = tqdm(
            total=len(starts),
            desc=progress,
            unit="batch",
            dynamic_ncols=True,
            disable=not progress or not parallel.is_main_process(),
        )
        # Where one program leaves cores of a CPU idle, several share them. The first batch, which compiles, is alone.
        with bar, ThreadPoolExecutor(parallel.programs_at_once()) as pool:
            for out in itertools.chain([run(starts[0])], pool.map(run, starts[1:])):
                for name, values in out.items():
                    parts.setdefault(name, []).append(values)
                bar.update()
        return {name: parallel.gather(np.concatenate(values))[:total] for name, values in parts.items()}


def _pixels(batch):
    return jnp.asarray(batch["image"]).astype(jnp.float32) / 255.0


def _on_devices(function: Callable) -> Callable:
    """`function(variables, batch)` on all local devices; called as it is where there is one device."""
    if parallel.local_device_count() == 1:
        return function
    mapped = parallel.map_batch(function)
    return lambda variables, batch: parallel.unshard(mapped(variables, parallel.shard(batch)))


def score_images(
    scorer: Scorer,
    variables: dict,
    dataset: QualityDataset,
    rows: Sequence[int],
    evaluation: ml_collections.ConfigDict,
    *,
    seed: int,
    progress: str = "",
) -> Float[np.ndarray, " rows"]:
    """Clean scores of any number of images: means over crops, which are cut out block by block.

    Args:
      scorer, variables: of the model.
      dataset, rows: the images.
      evaluation: config.evaluation: `crops` and `crop_size`.
      seed: of the crops' places.
      progress: name of the progress bar; '' for none.
    """
    rows = np.asarray(rows)
    at_once = max(1, _BLOCK_BYTES // (evaluation.crops * 3 * evaluation.crop_size**2))
    scores = []
    for block in tqdm(
        np.split(rows, range(at_once, len(rows), at_once)),
        desc=progress,
        unit="block",
        dynamic_ncols=True,
        disable=not progress or not parallel.is_main_process(),
    ):
        drawn = draw_crops(dataset, block, crops=evaluation.crops, crop_size=evaluation.crop_size, seed=seed)
        scores.append(scorer.scores(variables, extract(drawn, dataset, evaluation.crops)))
    return np.concatenate(scores)


def conditions(config: ml_collections.ConfigDict) -> Iterator[tuple[str, float]]:
    """Every (attack, radius in units of 1/255) that is evaluated, beginning with ('none', 0.0)."""
    yield "none", 0.0
    for attack in config.evaluation.attacks:
        for radius in config.evaluation.radii:
            yield attack, float(radius)


def evaluate(
    config: ml_collections.ConfigDict,
    module: nn.Module,
    variables: dict,
    crops: UInt8[np.ndarray, "images crops size size 3"],
    mos: Float[np.ndarray, " images"],
    *,
    label: str,
    cache: Path | None = None,
    identity: dict | None = None,
) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """Scores every test image under every condition.

    Args:
      config: config.evaluation says what is done.
      module, variables: the model.
      crops, mos: test images and their labels.
      label: shown by the progress bars.
      cache: an .npz file that keeps the result, read back when it was made with the same `identity` and settings.
      identity: what the result depends on beside config.evaluation (the checkpoint's step and the like).

    Returns:
      (attack, radius) -> arrays over images: before, after, ssim, max_change, zero_gradient_fraction.
    """
    evaluation = config.evaluation
    settings = {name: evaluation[name] for name in ("attacks", "radii", "pgd_steps", "mid", "crops", "crop_size")}
    stamp = json.dumps({**settings, **(identity or {})}, sort_keys=True)
    if cache is not None and (cached := _read_cache(cache, stamp)) is not None:
        return cached
    scorer = Scorer(module, batch_size=evaluation.batch_size, pgd_steps=evaluation.pgd_steps, mid=evaluation.mid)
    clean = scorer.scores(variables, crops, progress=f"{label}: clean")
    ones = np.ones_like(clean)
    results = {
        ("none", 0.0): {
            "before": clean,
            "after": clean,
            "ssim": ones,
            "max_change": 0 * ones,
            "zero_gradient_fraction": 0 * ones,
        }
    }
    for attack, radius in conditions(config):
        if attack != "none":
            results[attack, radius] = scorer.attack(
                variables,
                crops,
                mos,
                attack=attack,
                radius=radius / 255.0,
                progress=f"{label}: {attack} at {radius:g}/255",
            )
    if cache is not None and parallel.is_main_process():
        _write_cache(cache, stamp, results)
    return results


def table_rows(
    method: str,
    results: dict[tuple[str, float], dict[str, np.ndarray]],
    mos: Float[np.ndarray, " images"],
    *,
    seed: int,
    resamples: int,
) -> list[dict]:
    """The rows of table.csv for one method: every condition, against MOS and against the clean prediction.

    The columns are those of `cprl_jax.report`; intervals are 95 % percentile bootstrap intervals over test images. `r`
    is R of `robustness.metrics` on 0..100 with the natural logarithm, infinite where some score did not change.
    """
    rows = []
    clean = results["none", 0.0]["after"]
    for (attack, radius), result in results.items():
        for against, target in (("mos", mos), ("prediction", clean)):
            row = {"method": method, "attack": attack, "radius": radius, "against": against}
            for name in _MEASURES:
                statistic = getattr(statistics, name)
                row[name] = float(statistic(result["after"], target))
                row[f"{name}_low"], row[f"{name}_high"] = statistics.bootstrap_interval(
                    result["after"], target, statistic, seed=seed, resamples=resamples
                )
            row["ssim"] = float(result["ssim"].mean())
            row["max_change"] = float(result["max_change"].max() * 255.0)
            row["zero_gradient_fraction"] = float(result["zero_gradient_fraction"].mean())
            row["score_std"] = float(result["after"].std())
            row["r"] = _r(clean, result["after"])
            row["images"] = len(mos)
            rows.append(row)
    return rows


def score_rows(method: str, results: dict, names: list[str], mos: np.ndarray) -> list[dict]:
    """The rows of scores.csv for one method: every image under every condition."""
    clean = results["none", 0.0]["after"]
    return [
        {
            "method": method,
            "attack": attack,
            "radius": radius,
            "name": names[i],
            "mos": float(mos[i]),
            "clean": float(clean[i]),
            "score": float(result["after"][i]),
            "ssim": float(result["ssim"][i]),
            "max_change": float(result["max_change"][i] * 255.0),
        }
        for (attack, radius), result in results.items()
        for i in range(len(names))
    ]


def examples(
    config: ml_collections.ConfigDict,
    method: str,
    module: nn.Module,
    variables: dict,
    crops: UInt8[np.ndarray, "images crops size size 3"],
    names: list[str],
    mos: Float[np.ndarray, " images"],
) -> list[dict]:
    """A few test images and their attacked twins (first crop, PGD at config.evaluation.example_radius).

    The images are the same for every method: spread evenly over the ranks of the MOS.
    """
    evaluation = config.evaluation
    count = min(evaluation.examples, len(names))
    if count == 0:
        return []
    chosen = spread(mos, count)
    scorer = Scorer(module, batch_size=count, pgd_steps=evaluation.pgd_steps, mid=evaluation.mid)
    result = scorer.attack(
        variables,
        crops[chosen, :1],
        mos[chosen],
        attack="pgd",
        radius=evaluation.example_radius / 255.0,
        keep_images=True,
    )
    return [
        {
            "method": method,
            "name": names[row],
            "attack": "pgd",
            "radius": float(evaluation.example_radius),
            "mos": float(mos[row]),
            "before": float(result["before"][i]),
            "after": float(result["after"][i]),
            "image": crops[row, 0],
            "attacked": result["images"][i, 0],
        }
        for i, row in enumerate(chosen)
    ]


def spread(mos: Float[np.ndarray, " images"], count: int) -> np.ndarray:
    """Rows of `count` images, evenly over the ranks of the MOS, the extremes left out."""
    places = np.linspace(0, 1, count + 2)[1:-1] * (len(mos) - 1)
    return np.argsort(mos, kind="stable")[np.round(places).astype(int)]


def _r(before: Float[np.ndarray, " images"], after: Float[np.ndarray, " images"]) -> float:
    """R, NaN for a model whose scores have left their scale."""
    if not _LOWEST <= np.median(before) <= _HIGHEST or not np.all(np.isfinite([before, after])):
        return math.nan
    return robustness_metrics.r(before, after, lowest=_LOWEST, highest=_HIGHEST)


def _write_cache(path: Path, stamp: str, results: dict) -> None:
    arrays = {
        f"{attack}/{radius!r}/{name}": values
        for (attack, radius), result in results.items()
        for name, values in result.items()
    }
    write_cache(path, stamp, arrays)


def _read_cache(path: Path, stamp: str) -> dict | None:
    arrays = read_cache(path, stamp)
    if arrays is None:
        return None
    results: dict = {}
    for key, values in arrays.items():
        attack, radius, name = key.split("/")
        results.setdefault((attack, float(radius)), {})[name] = values
    return results
