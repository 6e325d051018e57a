"""Photographs and distorted versions of them, labelled by full-reference measures: no human is asked.

`cprl_jax.data.synthesize` makes the distorted ones; the photographs themselves belong to the set, with the label 100.
"""

import csv
import hashlib
import io
import os
from collections.abc import Sequence

from absl import logging

from cprl_jax.data import own, photographs
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.synthesize import synthesize
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path, write_file

DISTORTIONS = ("kadid/white-noise", "kadid/gaussian-blur", "kadid/jpeg", "kadid/jpeg2000")
"""Those of Zhang et al., NeurIPS 2022, footnote 4."""

_ALL = "all.csv"  # labels.csv, and the photographs


def load(
    folder: str | os.PathLike,
    *,
    distortions: Sequence[str] = DISTORTIONS,
    label: str = "mean",
    keep: str | os.PathLike = "",
    data_dir: str = "",
    workers: int = 0,
    **cache,
) -> QualityDataset:
    """Makes the set out of a folder of photographs, or reads it where it was made before.

    Args:
      folder: the photographs, see `photographs.image_files`.
      distortions: names of the registry of distortions, each at its five levels; () are `DISTORTIONS`.
      label: the rule, one of `weak_labels.RULES`.
      keep: the folder that the set is written to; '' is one in `distorted` below `data_dir`, for these photographs,
        distortions and rule.
      data_dir: '' is `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      workers: processes; 0 is one for each core.
      cache: see `own.load`.

    Raises:
      UserError: as `synthesize` and `own.load`.
    """
    if not os.fspath(folder):
        raise UserError("the dataset 'distorted' needs undistorted photographs: --config.dataset.photographs=FOLDER")
    folder = user_path(folder, field="config.dataset.photographs")
    if not folder.is_dir() or not photographs.image_files(folder):
        raise UserError(f"config.dataset.photographs: there are no photographs in {folder}; give the folder of some")
    distortions = tuple(distortions) or DISTORTIONS
    if not os.fspath(keep):
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in photographs.image_files(folder)]
        stamp = hashlib.sha256(repr([str(folder.resolve()), files, distortions, label]).encode()).hexdigest()[:16]
        root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        keep = user_path(root, field="config.dataset.data_dir") / "distorted" / stamp
    keep = user_path(keep, field="config.dataset.manual_dir")
    synthesize(folder, keep, distortions=distortions, label=label, workers=workers)
    logging.info("distorted photographs: %s", keep)
    text = io.StringIO()
    text.write((keep / "labels.csv").read_text(encoding="utf-8"))
    names = [path.stem for path in photographs.image_files(keep / "references")]
    csv.writer(text, lineterminator="\n").writerows([f"references/{name}.png", 100, name, "", 0] for name in names)
    write_file(keep / _ALL, text.getvalue())
    return own.load(keep, keep / _ALL, data_dir=data_dir, **cache)
