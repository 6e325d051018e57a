"""Adversarial images made elsewhere: checked, scored, and set beside the attacks of the tables.

A file is an .npz with the arrays

    images   [n, size, size, 3]: attacked test crops, uint8, or floats in [0, 1]
    names    [n]: the test image that each is of, as in scores.csv
    crop     [n]: which of that image's test crops, from 0; may be missing where a run has one crop an image
    radius   one number or [n], in 1/255: what each image promises to keep; missing: the largest radius of the table
    method   one text: the model that they are for; missing: every model of the run

A crop that nobody attacked counts as it is. Files that `cprl_jax.verify` has accepted lie in RUN/submitted.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, Shaped

from cprl_jax import attacks, fidelity
from cprl_jax.data.crops import Crops
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.evaluation.table import CLEAN, Results
from cprl_jax.runtime.cells import cached
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import Arrays
from cprl_jax.runtime.stamps import stamp

NAME = "submitted"  # the folder of a run, and the column `attack` of table.csv
TITLE = "Worst of all, with submitted images"
LEGEND = (
    "For each image the worst, seen from the side of its label, of all attacks in the table inside the radius and of "
    "those images that others have made and cprl_jax.verify has accepted."
)
_ARRAYS = {"names": ("U", "text"), "crop": ("iu", "whole number"), "radius": ("iuf", "number")}
TOLERANCE = 255e-6  # of floats, in 1/255; 8-bit images are compared in whole grey levels


class Submission(NamedTuple):
    """A file of attacked images.

    Attributes:
      images: uint8, or float32 as they came.
      names, crops: of the test image, and which of its crops.
      radius: that each promises to keep, in 1/255.
      methods: of the run, for which they are.
      hash: of the file.
    """

    images: Shaped[np.ndarray, "n size size 3"]
    names: Shaped[np.ndarray, " n"]
    crops: Int[np.ndarray, " n"]
    radius: Float[np.ndarray, " n"]
    methods: tuple[str, ...]
    hash: str

    @property
    def tolerance(self) -> float:
        """How much farther than its radius an image may be, in 1/255."""
        return 0.0 if self.images.dtype == np.uint8 else TOLERANCE


class Checked(NamedTuple):
    """Each image of a submission.

    Attributes:
      rows: of the test image; -1 where there is none of that name.
      changes: the largest change of any value, in 1/255.
      reasons: why it is rejected; '' where it is accepted.
    """

    rows: Int[np.ndarray, " n"]
    changes: Float[np.ndarray, " n"]
    reasons: Shaped[np.ndarray, " n"]

    @property
    def accepted(self) -> Bool[np.ndarray, " n"]:
        return self.reasons == ""


def read(path: Path, config: ml_collections.ConfigDict) -> Submission:
    """Reads a file for a run with this configuration.

    Raises:
      UserError: naming the file, and the array that is missing or does not fit.
    """
    arrays, content = _arrays(path)
    evaluation = config.evaluation
    for name in ("images", "names", *(["crop"] if evaluation.crops > 1 else [])):
        if name not in arrays:
            raise UserError(
                f"{path} has no array {name!r}, but {', '.join(arrays) or 'none'}; keep those that --write_crops wrote"
            )
    images, shape = arrays["images"], (evaluation.crop_size, evaluation.crop_size, 3)
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise UserError(
            f"{path}: images have the shape {images.shape}; it must be [n, {', '.join(map(str, shape))}], with n at "
            "least 1"
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UserError(f"{path}: images are {images.dtype}; they must be uint8, or floats in [0, 1]")
    count = len(images)
    arrays = {"crop": np.array(0), "radius": np.array(max(evaluation.radii, default=0.0))} | arrays
    for name, (kinds, meaning) in _ARRAYS.items():
        values = arrays[name]
        if values.dtype.kind not in kinds or values.shape not in [(count,), *[()] * (name != "names")]:
            raise UserError(
                f"{path}: {name} must be one {meaning} for each of the {count} images; it is {values.dtype} of shape "
                f"{values.shape}"
            )
    methods = tuple(config.methods)
    if "method" in arrays:
        if str(arrays["method"]) not in methods:
            raise UserError(f"{path}: method is {str(arrays['method'])!r}; it must be one of {', '.join(methods)}")
        methods = (str(arrays["method"]),)
    return Submission(
        images if images.dtype == np.uint8 else images.astype(np.float32),
        arrays["names"],
        np.broadcast_to(arrays["crop"], count).astype(int),
        np.broadcast_to(arrays["radius"], count).astype(float),
        methods,
        hashlib.sha256(content).hexdigest(),
    )


def _arrays(path: Path) -> tuple[Arrays, bytes]:
    """The arrays of a file that count, and all its bytes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("images", *_ARRAYS, "method") if name in file.files}
        return arrays, path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:  # zipfile, zlib and NumPy each have their own
        raise UserError(f"{path} is no .npz file of plain arrays, as numpy.savez writes it") from None


def check(submission: Submission, names: Sequence[str], crops: Crops, *, largest: float) -> Checked:
    """Looks at each image by itself: is it a test crop, a picture, and as near to the clean crop as it promises?

    Args:
      names, crops: of the test images.
      largest: the largest radius of the table, in 1/255.
    """
    place = {name: row for row, name in enumerate(names)}
    rows = np.array([place.get(str(name), -1) for name in submission.names], int)
    changes, reasons = np.full(len(rows), np.nan), np.full(len(rows), "", object)
    cuts: dict[int, np.ndarray] = {}
    for index in np.argsort(rows, kind="stable"):
        image, row, crop = submission.images[index], int(rows[index]), int(submission.crops[index])
        if row < 0:
            reasons[index] = f"{str(submission.names[index])!r} is no test image of the run"
        elif not 0 <= crop < crops.shape[1]:
            reasons[index] = f"there is no crop {crop}: an image has {crops.shape[1]}, from 0"
        elif not np.isfinite(image).all():
            reasons[index] = "it has values that are not finite numbers"
        elif image.dtype != np.uint8 and (image.min() < 0 or image.max() > 1):
            reasons[index] = f"it has values from {image.min():g} to {image.max():g}, outside [0, 1]"
        else:
            if row not in cuts:
                cuts = {row: crops[row]}  # in their order: each image is cut once
            clean = cuts[row][crop].astype(float)
            changes[index] = np.abs((image if image.dtype == np.uint8 else 255.0 * image) - clean).max()
            limit = submission.radius[index]
            if not changes[index] <= limit + submission.tolerance:
                reasons[index] = f"it changes a value by {changes[index]:g}/255, more than its radius of {limit:g}/255"
            elif not changes[index] <= largest + submission.tolerance:
                reasons[index] = f"it changes a value by {changes[index]:g}/255; the table ends at {largest:g}/255"
    return Checked(rows, changes, reasons.astype(str))


def evaluate(
    config: ml_collections.ConfigDict,
    method: str,
    network: tuple[nn.Module, Mapping],
    results: Results,
    names: Sequence[str],
    crops: Crops,
    mos: Float[np.ndarray, " images"],
    *,
    run: Path,
) -> Results:
    """For each radius that a file in RUN/submitted has images for, the worst of them and of the attacks of the table.

    Args:
      network: module and variables of the method.
      results: of the method, from `evaluation.table.evaluate`.
      names, crops, mos: of the test images.
    """
    evaluation, kept = config.evaluation, []
    for path in sorted((run / NAME).glob("*.npz")):
        try:
            submission = read(path, config)
        except UserError as error:  # another crop size than the one that it was made for
            logging.warning("%s; it is left out of the table", error)
            continue
        if method in submission.methods:
            found = effects(config, method, network, submission, names, crops, folder=run / method)
            kept.append((found, submission.tolerance))
    away, rows = np.where(mos > evaluation.mid, -1.0, 1.0), {}
    for radius in evaluation.radii:
        inside = [
            {name: values[arrays["change"] <= radius + tolerance] for name, values in arrays.items()}
            for arrays, tolerance in kept
        ]
        if any(len(arrays["row"]) for arrays in inside):
            joined = {name: np.concatenate([arrays[name] for arrays in inside]) for name in inside[0]}
            own = _of_images(results[CLEAN], joined, away, crops=crops.shape[1])
            attacked = [arrays for (_, r), arrays in results.items() if 0 < r <= radius]
            rows[NAME, float(radius)] = worst([own, results[CLEAN], *attacked], away)
    return rows


def effects(
    config: ml_collections.ConfigDict,
    method: str,
    network: tuple[nn.Module, Mapping],
    submission: Submission,
    names: Sequence[str],
    crops: Crops,
    *,
    folder: Path,
) -> Arrays:
    """What the accepted images of a submission do to the scores of a model, kept in its folder of the run.

    Returns:
      for each accepted image: `row`, `crop`, `change` (1/255), `ssim`, and what is added to the score of the clean
      crop: `effect`, and `effect_8bit` once the image is rounded to 8 bits, no farther than it has gone.
    """
    module, variables = network
    evaluation = config.evaluation

    def compute() -> Arrays:
        checked = check(submission, names, crops, largest=max(evaluation.radii, default=0.0))
        kept = checked.accepted
        rows, numbers, images = checked.rows[kept], submission.crops[kept], submission.images[kept]
        clean = np.empty(images.shape, np.uint8)
        for row in np.unique(rows):
            clean[rows == row] = crops[row][numbers[rows == row]]
        before, after, after_8bit, ssim = (np.zeros(len(images)) for _ in range(4))
        scorer = Scorer(module, batch_size=evaluation.batch_size)
        for start in range(0, len(images), evaluation.batch_size):
            part = slice(start, start + evaluation.batch_size)
            original = jnp.asarray(clean[part] / np.float32(255))
            changed = images[part] if images.dtype != np.uint8 else images[part] / np.float32(255)
            limit = (np.floor(checked.changes[kept][part] + TOLERANCE) / 255).astype(np.float32)
            rounded = 255 * np.asarray(attacks.round_to_8_bit(changed, original, limit))
            for scores, pixels in ((before, 255 * original), (after, 255 * changed), (after_8bit, rounded)):
                scores[part] = scorer.scores(variables, np.asarray(pixels, np.float32)[:, np.newaxis])
            ssim[part] = fidelity.ssim(jnp.asarray(changed), original)
        found = {"row": rows, "crop": numbers, "change": checked.changes[kept], "ssim": ssim}
        return found | {"effect": after - before, "effect_8bit": after_8bit - before}

    depends_on = {"module": module, "variables": variables, "crops": crops.stamp, "file": submission.hash}
    result_stamp = stamp(**depends_on, names=list(names), radii=list(evaluation.radii))
    return cached(place(folder, submission), result_stamp, compute)


def place(folder: Path, submission: Submission) -> Path:
    """Where the effects on a model are kept in its folder of the run."""
    return folder / "evaluation" / f"{NAME}-{submission.hash[:16]}.npz"


def worst(candidates: Sequence[Arrays], away: Float[np.ndarray, " images"]) -> Arrays:
    """For each image that of the candidates whose score lies farthest `away` (1: up, -1: down); what the first has."""
    gains = np.stack([away * arrays["after"] for arrays in candidates])
    which = np.where(np.isnan(gains), -np.inf, gains).argmax(axis=0)
    images = np.arange(len(away))
    return {name: np.stack([arrays[name] for arrays in candidates])[which, images] for name in candidates[0]}


def _of_images(clean: Arrays, kept: Arrays, away: np.ndarray, *, crops: int) -> Arrays:
    """Scores of the test images, each crop replaced by the worst that is submitted for it; others as they are."""
    gains = away[kept["row"]] * kept["effect"]
    order = np.lexsort((-gains, kept["crop"], kept["row"]))
    _, first = np.unique(np.stack([kept["row"], kept["crop"]])[:, order], axis=1, return_index=True)
    chosen = order[first]
    chosen = chosen[gains[chosen] > 0]
    row = kept["row"][chosen]

    def added(values):
        return np.bincount(row, values[chosen], len(away)) / crops

    change = np.zeros(len(away))
    np.maximum.at(change, row, kept["change"][chosen] / 255)
    return {
        "before": clean["after"],
        "after": clean["after"] + added(kept["effect"]),
        "after_8bit": clean["after"] + added(kept["effect_8bit"]),
        "ssim": 1 + added(kept["ssim"] - 1),
        "max_change": change,
        "zero_gradient_fraction": np.full(len(away), np.nan),
    }
