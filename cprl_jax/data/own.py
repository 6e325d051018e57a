"""A user's own images as a dataset: a folder, and a CSV file with a score for each of them.

    image,mos,reference,distortion,level,std,split
    blurred/roof_1.jpg,71.5,roof,blur,1,8.2,train

Only `image` and `mos` are needed; docs/datasets.md says what the others mean.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from absl import logging

from cprl_jax.data import label_file, photographs
from cprl_jax.data.dataset import PARTS, CachedImages, NamedImages, QualityDataset, listing
from cprl_jax.data.decode import PHOTOGRAPH_SUFFIXES, VERSION, decode_photograph
from cprl_jax.data.decoded_file import DecodedImages
from cprl_jax.data.label_file import Problem, Row
from cprl_jax.data.releases._common import NAN, Record, in_threads, one_line
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path

FEW = 10  # images that may all be very bad; that more of them are is not believed
_LARGEST = 1e30  # of what is kept in float32
_LARGEST_LEVEL = 10**9  # it is kept in int32


def load(
    folder: str | os.PathLike,
    labels: str | os.PathLike = "",
    *,
    mos_worst: float = 0.0,
    mos_best: float = 100.0,
    data_dir: str = "",
    cache: str = "memory",
    cache_gib: float = 4.0,
) -> QualityDataset:
    """Loads a folder of images with the scores of a CSV file.

    `label_file.read` says how the file is written; with semicolons or tabs between the values, 3,5 is a number. Columns
    other than these are ignored:

      image: path of the image below `folder`; also its name in the dataset. JPEG, PNG, BMP, WebP or TIFF of any size,
        decoded by `decode_photograph`.
      mos: the score, on a scale from `mos_worst` to `mos_best`.
      reference: the scene that it shows, which splits keep together; without one, the image is a separate scene. If
        `folder` or `folder/references` holds an image of that name (in the latter, its suffix may be left out), that is
        the undistorted photograph of the scene.
      distortion, level: kind and level, a whole number from 0.
      std: standard deviation of the opinions, on the scale of `mos`.
      split: train, validation or test, for `config.dataset.split='official'`.

    Every image is decoded once before anything is returned.

    Args:
      folder: holds the images.
      labels: the CSV file; '' is `folder/labels.csv`. A relative path is looked up from the working directory, then
        from `folder`.
      mos_worst, mos_best: the two ends of the scale, mapped linearly to 0 and 100. `mos_worst` may be the larger one,
        for labels that grow with the damage.
      data_dir: where `cache='disk'` keeps decoded images, below `own`; '' is `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.
      cache: 'memory' keeps decoded images there, 'disk' in a memory-mapped file.
      cache_gib: how much memory decoded images may take, GiB; the others are decoded each time ('memory' only).

    Raises:
      UserError: no folder or file, or anything in them that is not as above: all problems in one message, each with the
        number of its line; scores that are all equal, or those of more than `FEW` images all at most 10 on the scale of
        0 to 100, which seem to be on another one (where the ends of the scale were given, that is a warning).
      ValueError: an unknown `cache`, a negative `cache_gib`.
    """
    if cache not in ("memory", "disk") or not cache_gib >= 0:
        raise ValueError(f"cache={cache!r}, cache_gib={cache_gib}: must be 'memory' or 'disk', and 0 or more")
    if not max(abs(mos_worst), abs(mos_best)) <= _LARGEST or mos_worst == mos_best:
        raise UserError(
            f"mos_worst={mos_worst} and mos_best={mos_best} must be two different numbers, the ends of the scale of mos"
        )
    path, folder = _find(labels, folder)
    records, scenes, problems = _read(path, folder, mos_worst, mos_best)
    if not problems:
        _check_scale(path, [record.mos_raw for record in records], mos_worst, mos_best)
    pristine = _pristine(scenes, folder, problems)
    paths = [record.path for record in records]
    contents = in_threads(_digest, [*paths, *pristine.values()], "reading images")

    def decode(row: int) -> np.ndarray:
        return decode_photograph(photographs.content(paths[row]))

    decoded, images = None, CachedImages(decode, len(paths), cache_bytes=int(cache_gib * 2**30))
    if cache == "disk":
        images = CachedImages(decode, len(paths), cache_bytes=0)
        stamp = hashlib.sha256(json.dumps([VERSION, *contents[: len(paths)]]).encode()).hexdigest()[:16]
        root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        decoded = user_path(root, field="config.dataset.data_dir") / "own" / stamp / "decoded-images"
    if decoded is None or not os.path.exists(decoded):  # that file was made of these very contents: they can be decoded
        problems += _unreadable(records, images)
    problems += _unreadable_pristine(pristine)
    label_file.refuse(f"{path} and the images in {folder} have", problems)
    _warn_of_duplicates(records, contents)
    if decoded is not None:
        images = DecodedImages(decode, len(paths), path=decoded, stamp=stamp)
    references = list(pristine.values())
    return QualityDataset(
        name="own",
        images=images,
        names=[record.name for record in records],
        mos=[record.mos for record in records],
        mos_raw=[record.mos_raw for record in records],
        mos_std=[record.mos_std for record in records],
        references=[record.reference for record in records],
        distortions=[record.distortion for record in records],
        levels=[record.level for record in records],
        parts=[record.part for record in records],
        pristine=NamedImages(
            list(pristine),
            CachedImages(
                lambda index: decode_photograph(photographs.content(references[index])),
                len(references),
                cache_bytes=int(cache_gib * 2**30),
            ),
        ),
    )


def has_computed_labels(folder: str | os.PathLike, labels: str | os.PathLike = "") -> bool:
    """Whether the file of labels says that it is one of `data.synthesize`; False where there is none."""
    try:
        with open(_find(labels, folder)[0], "rb") as file:
            return file.readline().startswith(label_file.WEAK.encode())
    except (OSError, UserError):
        return False


def _find(labels: str | os.PathLike, folder: str | os.PathLike) -> tuple[Path, Path]:
    """The CSV file and the folder."""
    if not os.fspath(folder):
        raise UserError("the dataset 'own' needs the folder of its images: --config.dataset.manual_dir=FOLDER")
    folder = user_path(folder, field="config.dataset.manual_dir")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name that of your images: --config.dataset.manual_dir=FOLDER")
    named = user_path(os.fspath(labels) or "labels.csv", field="config.dataset.labels")
    candidates = [folder / named] if not os.fspath(labels) else [named, folder / named]
    for path in candidates:
        if os.path.isfile(path):
            return path, folder
    raise UserError(
        f"there is no file {candidates[0]}; write one with a line image,mos and a line for each image, or name it with "
        "--config.dataset.labels=FILE"
    )


def _read(
    path: Path, folder: Path, mos_worst: float, mos_best: float
) -> tuple[list[Record], dict[str, int], list[Problem]]:
    """The rows that name an image file, the scenes that they name with the first line of each, and the problems."""
    rows, problems = label_file.read(path)
    records, scenes = [], {}
    for row in rows:
        wrong = _wrong_path(row.values["image"], folder)
        record, texts = _record(row, folder, mos_worst, mos_best)
        problems += [row.problem(text) for text in filter(None, [wrong, *texts])]
        if not wrong:
            records.append(record)
            if row.values.get("reference"):
                scenes.setdefault(row.values["reference"], row.line)
    return records, scenes, problems


def _check_scale(path: Path, scores: Sequence[float], mos_worst: float, mos_best: float) -> None:
    """Refuses scores that are all equal (in float32), and warns of those that seem to be on another scale.

    Refuses the latter as well if they are on a usual one, the default of 0 to 100 was not changed, and there are more
    than a `FEW`.
    """
    lowest, highest, ends = min(scores), max(scores), (mos_worst, mos_best)
    if len(scores) > 1 and np.float32(lowest) == np.float32(highest):
        raise UserError(f"{path}: mos is {lowest:g} for all {len(scores)} images; there is nothing to learn or to test")
    scale = label_file.other_scale(scores, ends)
    span = f"from {mos_worst:g} (worst) to {mos_best:g} (best)"
    if scale is not None:
        worst, best = scale if mos_worst < mos_best else reversed(scale)
        text = (
            f"{path}: all mos are from {lowest:g} to {highest:g}, but their scale is {span}; give the ends of theirs, "
            f"such as --config.dataset.mos_worst={worst} --config.dataset.mos_best={best}"
        )
        if {*ends} == {0, 100} and len(scores) > FEW:
            raise UserError(text)
        logging.warning("%s", text)
    elif len(scores) > FEW and label_file.crowded(scores, ends):
        logging.warning(
            "%s: most mos are close together on their scale %s; is it theirs? Give its ends with "
            "--config.dataset.mos_worst and --config.dataset.mos_best",
            path,
            span,
        )


def _wrong_path(name: str, folder: Path) -> str:
    """What is wrong with an image's path, or ''."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        # As it is written: links to files elsewhere are a way to keep images in one place.
        return "the path leaves the folder; write it relative to the folder, without .."
    return "" if os.path.isfile(folder / name) else "no such file in the folder"


def _record(row: Row, folder: Path, mos_worst: float, mos_best: float) -> tuple[Record, list[str]]:
    """A row's values, and what is wrong with them."""
    values, wrong = row.values, []
    mos = row.number("mos")
    low, high = sorted((mos_worst, mos_best))
    if not low <= mos <= high:  # NaN is not either
        wrong.append(f"mos is {values['mos']!r}, not a number from {low:g} to {high:g}")
    std = NAN
    if values.get("std", "").lower() not in ("", "nan"):
        std = row.number("std")
        if not 0 <= std <= _LARGEST:
            wrong.append(f"std is {values['std']!r}, not a number from 0 to {_LARGEST:g}")
    level = row.number("level", "0")
    if not (0 <= level <= _LARGEST_LEVEL and level.is_integer()):
        wrong.append(f"level is {values['level']!r}, not a whole number from 0 to {_LARGEST_LEVEL:,}")
        level = 0
    part = values.get("split", "")
    if part not in PARTS:
        wrong.append(f"split is {part!r}, not {', '.join(PARTS[:3])} or nothing")
    record = Record(
        row=row.line,
        name=values["image"],
        path=folder / values["image"],
        mos=min(max(100.0 * (mos - mos_worst) / (mos_best - mos_worst), 0.0), 100.0),  # but for rounding, within it
        mos_raw=mos,
        mos_std=std,
        reference=values.get("reference") or values["image"],
        distortion=values.get("distortion", ""),
        level=int(level),
        part=part,
    )
    return record, wrong


def _pristine(scenes: dict[str, int], folder: Path, problems: list[Problem]) -> dict[str, Path]:
    """The undistorted photographs that there are, by scene."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    if (folder / "references").is_dir():
        for path in photographs.image_files(folder / "references"):
            by_name[path.name].append(path)
            by_name[path.stem].append(path)
    found = {}
    for scene, line in scenes.items():
        inside = not PurePosixPath(scene).is_absolute() and ".." not in PurePosixPath(scene).parts
        path = folder / scene
        if inside and path.suffix.lower() in PHOTOGRAPH_SUFFIXES and os.path.isfile(path):
            found[scene] = path
        elif len(by_name[scene]) == 1:
            found[scene] = by_name[scene][0]
        elif by_name[scene]:
            names = listing([path.name for path in by_name[scene]])
            problems.append((line, f"line {line}: several files in references match {scene!r}: {names}"))
    return found


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(photographs.content(path)).hexdigest()
    except (OSError, ValueError) as error:
        return f"{path}: {error}"  # nothing else has this; decoding reports it


def _unreadable(records: Sequence[Record], images: Sequence) -> list[Problem]:
    """Decodes every image; those that the cache of `images` has room for are not decoded again."""

    def problem(index: int) -> Problem | None:
        try:
            images[index]
        except Exception as error:
            line, name = records[index].row, records[index].name
            return line, f"line {line} ({name!r}): the image cannot be read: {one_line(error)}"
        return None

    return [text for text in in_threads(problem, range(len(records)), "decoding images") if text]


def _unreadable_pristine(pristine: dict[str, Path]) -> list[Problem]:
    def problem(path: Path) -> Problem | None:
        try:
            decode_photograph(photographs.content(path))
        except Exception as error:
            return 0, f"reference {path.name!r}: the image cannot be read: {one_line(error)}"
        return None

    return [text for text in in_threads(problem, list(pristine.values()), "decoding references") if text]


def _warn_of_duplicates(records: Sequence[Record], contents: Sequence[str]) -> None:
    names_of = defaultdict(list)
    for record, digest in zip(records, contents, strict=False):  # the references come behind
        names_of[digest].append(record.name)
    for names in names_of.values():
        if len(names) > 1:
            logging.warning("own images: these files are identical, but rated separately: %s", listing(names))
