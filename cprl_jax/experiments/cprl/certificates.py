"""Certified against attacked: what median smoothing proves of a method's scores, and what l2 attacks do to them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float

from cprl_jax import attacks, models
from cprl_jax.data.crops import Crops
from cprl_jax.evaluation import statistics
from cprl_jax.evaluation.table import images_over_mos_range
from cprl_jax.robustness import certify
from cprl_jax.robustness.ranking import certified_srcc, lowest_srcc
from cprl_jax.runtime.files import Arrays, read_cache, write_cache
from cprl_jax.runtime.stamps import stamp

SMOOTHING = ("sigma", "samples", "confidence")  # the fields of config.evaluation.certify that a smoothed score reads
ATTACK = ("attack_steps", "attack_draws")  # and those that the attack reads beside them
_WAYS = {"down": attacks.down, "up": attacks.up}


def certificates(
    config: ml_collections.ConfigDict,
    network: tuple[nn.Module, Mapping],
    crops: Crops,
    names: list[str],
    mos: Float[np.ndarray, " images"],
    *,
    folder: Path,
) -> dict[str, list[dict]]:
    """Bounds of the smoothed scores of test images at each l2 radius, beside what attacks of that length reach.

    The images are the first crops of test images. The attack is PGD in l2, down and up, on the mean score under noise;
    its images are scored as smoothly as the clean ones, with other noise. A bound is broken where the whole confidence
    interval of an attacked score lies outside of it. Chance does that to no image at a radius with a probability of at
    least 1 - 3 (1 - confidence), as all of these intervals hold together: a broken bound is a mistake of the program.

    Runs in this process alone.

    Args:
      config: config.evaluation.certify says what is done; nothing where `samples` is 0.
      network: module and variables.
      crops, names, mos: test images.
      folder: keeps the smoothed scores and each attack in a file of their own, read back while all that they depend on
        is the same.

    Returns:
      `summary`, a row for each radius: `radius` (l2), `grey_levels` (RMS of that), `images`, the settings, `width` (the
      mean of upper - lower, in score points) and `width_percent` (of the range of the smoothed scores), `srcc`,
      `attacked_srcc` (the lowest that was found for scores between those attacked down and up), `certified_srcc` (which
      holds for all images together) and `broken` (images); and `images`, a row for each radius and image: `radius`,
      `name`, `mos`, `score`, `lower`, `upper`, `attacked_down`, `attacked_up`, `broken`. Empty lists where it is off.
    """
    settings, batch_size = config.evaluation.certify, config.evaluation.batch_size
    if not settings.samples:
        return {"summary": [], "images": []}
    some = 0 < settings.images < len(names)
    rows = np.sort(images_over_mos_range(mos, settings.images)) if some else np.arange(len(names))
    pixels, mos = crops[rows][:, 0], mos[rows].astype(np.float64)
    images, score_fn = pixels / np.float32(255), models.score_fn(*network)
    smoothing = {name: settings[name] for name in SMOOTHING}
    key = jax.random.key(config.seed)
    model = stamp(network=network, pixels=pixels, seed=config.seed, smoothing=smoothing)

    def smooth(images: np.ndarray, draws: int, what: str) -> certify.Smoothed:
        logging.info("certificates: %d scores under noise of %d images, %s", settings.samples, len(images), what)
        draws = jax.random.fold_in(key, draws)
        return certify.median_smoothing(score_fn, images, key=draws, batch_size=batch_size, progress=what, **smoothing)

    def attack(way: str, radius: float) -> Arrays:
        target = attacks.adaptive.expectation(
            certify.under_noise(score_fn, sigma=settings.sigma), jax.random.fold_in(key, 3), settings.attack_draws
        )
        at_once, parts = max(1, batch_size // settings.attack_draws), []
        for start in range(0, len(images), at_once):
            chosen = np.minimum(np.arange(start, start + at_once), len(images) - 1)  # one shape is compiled once
            options = {"radius": radius, "norm": "l2", "direction": _WAYS[way](), "steps": settings.attack_steps}
            parts.append(np.asarray(attacks.pgd(target, images[chosen], **options).images)[: len(images) - start])
        found = smooth(np.concatenate(parts), 1 + list(_WAYS).index(way), f"attacked {way}")
        low, high = found.bounds(0.0, together=True)
        return {"score": found.score, "low": low, "high": high}

    clean = _kept(folder / "clean.npz", model, lambda: {"samples": smooth(images, 0, "clean").samples})
    smoothed = certify.Smoothed(clean["samples"], settings.sigma, settings.confidence)
    used = {name: settings[name] for name in ATTACK}
    summary, of_images = [], []
    for radius in settings.radii:
        found = {}
        for way in _WAYS:
            attack_stamp = stamp(model=model, attack=[way, float(radius)], settings=used)
            path = folder / f"{way}-{radius:g}.npz"
            found[way] = _kept(path, attack_stamp, lambda way=way, radius=radius: attack(way, radius))
        row, each = compare(smoothed, found, mos, radius=radius)
        shared = {"grey_levels": certify.grey_levels(radius, images.shape[1:]), **smoothing}
        summary.append(row | shared)
        of_images += [
            {"radius": float(radius), "name": names[place], **dict(zip(each, map(float, values), strict=True))}
            for place, values in zip(rows, np.stack(list(each.values()), axis=1), strict=True)
        ]
    return {"summary": summary, "images": of_images}


def compare(
    smoothed: certify.Smoothed, attacked: Mapping[str, Arrays], mos: Float[np.ndarray, " images"], *, radius: float
) -> tuple[dict, dict[str, np.ndarray]]:
    """What was proved and what was reached at one radius: a row of the summary, and columns for the images.

    Args:
      attacked: for 'down' and 'up', the `score` of each attacked image and the ends of its interval, `low` and `high`.
    """
    (lower, upper), score = smoothed.bounds(radius), smoothed.score
    least, most = smoothed.bounds(radius, together=True)
    broken = np.any([(each["high"] < least) | (each["low"] > most) for each in attacked.values()], axis=0)
    width = float(np.mean(upper - lower))
    attacked_srcc = certified = np.nan
    if np.ptp(mos) > 0:
        reached = [attacked[way]["score"] for way in _WAYS]
        attacked_srcc = lowest_srcc(np.minimum(score, reached[0]), np.maximum(score, reached[1]), mos).achieved
        certified = certified_srcc(least, most, mos)
    summary = {
        "radius": float(radius),
        "images": len(mos),
        "width": width,
        "width_percent": 100 * width / float(np.ptp(score)) if np.ptp(score) > 0 else np.nan,
        "srcc": float(statistics.srcc(score, mos)),
        "attacked_srcc": attacked_srcc,
        "certified_srcc": certified,
        "broken": int(broken.sum()),
    }
    columns = {"mos": mos, "score": score, "lower": lower, "upper": upper}
    columns |= {f"attacked_{way}": attacked[way]["score"] for way in _WAYS}
    return summary, columns | {"broken": broken}


def _kept(path: Path, result_stamp: str, compute: Callable[[], Arrays]) -> Arrays:
    if (found := read_cache(path, result_stamp)) is None:
        found = compute()
        write_cache(path, result_stamp, found)
    return found
