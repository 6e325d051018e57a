"""What images, labels and weights a run was trained with, so that no later command goes on with others unnoticed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cprl_jax.data.dataset import QualityDataset, each_image
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file

_WEIGHTS = "config.model.weights"


def check_training_data(
    path: Path, dataset: QualityDataset, parts: Mapping[str, Sequence[int]], *, weights: Path | None
) -> None:
    """Writes what a run is trained with, or compares it with what an earlier call wrote.

    That is part, MOS and a hash of the pixels of each image, and a hash of the file of weights.

    Args:
      path: the file, JSON.
      dataset: holds the images.
      parts: the rows of each part that trains or validates, by its name.
      weights: the file that config.model.weights means, if there is one.

    Raises:
      UserError: the weights are others now, or the first image that is another one now, which is named.
    """
    described = {}
    if weights is not None:
        with open(weights, "rb") as file:
            described[_WEIGHTS] = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    for part, rows in parts.items():
        for row, content in zip(rows, each_image(_hash, dataset.images, rows), strict=True):
            described[str(dataset.names[row])] = [part, float(dataset.mos[row]), content]
    if not path.exists():
        write_file(path, json.dumps(described, indent=0, ensure_ascii=False))
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        before.setdefault(_WEIGHTS, described.get(_WEIGHTS))  # which a version before this one did not write
        changed = [name for name in before.keys() | described if before.get(name) != described.get(name)]
        changed.sort(key=lambda name: (name != _WEIGHTS, name))
        if changed and changed[0] != _WEIGHTS:
            what = _change(before.get(changed[0]), described.get(changed[0]))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to go on with the images as they are now") from None
    if changed and changed[0] == _WEIGHTS:
        raise UserError(
            f"{weights} no longer holds the weights that the run in {path.parent} started from; put those back, train "
            "in a new --workdir, judge the models as they are with --config.job=evaluate, or delete "
            f"{path.name} there to go on"
        )
    if changed:
        others = f" ({len(changed)} images in all)" if len(changed) > 1 else ""
        raise UserError(
            f"the training data are no longer those of {path}: {changed[0]!r} {what}{others}; put them back, train in "
            "a new --workdir, judge the models as they are with --config.job=evaluate, or delete that file to go on"
        )


def _change(before: list | None, now: list | None) -> str:
    (part, mos, _), (new_part, new_mos, _) = before or ("no part", 0, ""), now or ("no part", 0, "")
    if part != new_part:
        return f"was in {part} and is in {new_part}"
    return f"had MOS {mos:g} and has {new_mos:g}" if mos != new_mos else "has other pixels"


def _hash(image: np.ndarray) -> str:
    """Not `runtime.stamps`: another version of the package may go on with the same images."""
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:32]
