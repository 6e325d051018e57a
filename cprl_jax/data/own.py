"""A user's own images as a dataset: a folder, and a CSV file with a score for each of them.

    image,mos,reference,distortion,level,std,split
    blurred/roof_1.jpg,71.5,roof,blur,1,8.2,train

Only `image` and `mos` are needed; docs/datasets.md says what the others mean.
"""

import csv
import hashlib
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from absl import logging

from cprl_jax.data.dataset import PARTS, CachedImages, NamedImages, QualityDataset, listing
from cprl_jax.data.decode import PHOTOGRAPH_SUFFIXES, decode_photograph
from cprl_jax.data.decoded_file import DecodedImages
from cprl_jax.data.releases._common import NAN, Record, in_threads, one_line
from cprl_jax.runtime.errors import UserError

COLUMNS = ("image", "mos", "reference", "distortion", "level", "std", "split")
MOST_PROBLEMS = 20  # named in one message

_Problem = tuple[int, str]  # the line it is in, for their order, and its text


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

    The file is UTF-8, its values separated by commas, semicolons or tabs (with the latter two, 3,5 is a number). Lines
    that begin with # may come first, then a line that names the columns, in any order; others than these are ignored:

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
        number of its line.
      ValueError: an unknown `cache`, a negative `cache_gib`.
    """
    if cache not in ("memory", "disk") or not cache_gib >= 0:
        raise ValueError(f"cache={cache!r}, cache_gib={cache_gib}: must be 'memory' or 'disk', and 0 or more")
    if not (math.isfinite(mos_worst) and math.isfinite(mos_best)) or mos_worst == mos_best:
        raise UserError(
            f"mos_worst={mos_worst} and mos_best={mos_best} must be two different numbers, the ends of the scale of mos"
        )
    path, folder = _find(labels, folder)
    records, scenes, problems = _read(path, folder, mos_worst, mos_best)
    pristine = _pristine(scenes, folder, problems)
    paths = [record.path for record in records]
    contents = in_threads(_digest, [*paths, *pristine.values()], "reading images")

    def decode(row: int) -> np.ndarray:
        return decode_photograph(paths[row].read_bytes())

    decoded, images = None, CachedImages(decode, len(paths), cache_bytes=int(cache_gib * 2**30))
    if cache == "disk":
        images = CachedImages(decode, len(paths), cache_bytes=0)
        stamp = hashlib.sha256(json.dumps(contents[: len(paths)]).encode()).hexdigest()[:16]
        root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        decoded = root / "own" / stamp / "decoded-images"
    if decoded is None or not decoded.exists():  # that file was made of these very contents: they can be decoded
        problems += _unreadable(records, images)
    problems += _unreadable_pristine(pristine)
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        shown = listing([text for _, text in sorted(problems)], most=MOST_PROBLEMS, separator="; ")
        raise UserError(f"{path} and the images in {folder} have {count}; correct them: {shown}")
    _warn_of_duplicates(records, contents)
    if decoded is not None:
        images = DecodedImages(decode, len(paths), path=decoded, stamp=stamp)
    photographs = list(pristine.values())
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
                lambda index: decode_photograph(photographs[index].read_bytes()),
                len(photographs),
                cache_bytes=int(cache_gib * 2**30),
            ),
        ),
    )


def _find(labels: str | os.PathLike, folder: str | os.PathLike) -> tuple[Path, Path]:
    """The CSV file and the folder."""
    if not os.fspath(folder):
        raise UserError("the dataset 'own' needs the folder of its images: --config.dataset.manual_dir=FOLDER")
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name that of your images: --config.dataset.manual_dir=FOLDER")
    named = Path(os.fspath(labels) or "labels.csv").expanduser()
    candidates = [folder / named] if not os.fspath(labels) else [named, folder / named]
    for path in candidates:
        if path.is_file():
            return path, folder
    raise UserError(
        f"there is no file {candidates[0]}; write one with a line image,mos and a line for each image, or name it with "
        "--config.dataset.labels=FILE"
    )


def _read(
    path: Path, folder: Path, mos_worst: float, mos_best: float
) -> tuple[list[Record], dict[str, int], list[_Problem]]:
    """The rows that name an image file, the scenes that they name with the first line of each, and the problems."""
    try:
        lines = list(io.StringIO(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it as CSV UTF-8") from None
    start = next((index for index, line in enumerate(lines) if line.strip() and not line.startswith("#")), None)
    if start is None:
        raise UserError(f"{path} is empty; it needs a line image,mos and a line for each image")
    columns, delimiter = _header(path, start + 1, lines[start])
    reader = csv.reader(lines[start + 1 :], delimiter=delimiter, strict=True)
    records, scenes, problems = [], {}, []
    line_of_name: dict[str, int] = {}
    while True:
        line = start + 2 + reader.line_num
        try:
            values = next(reader, None)
        except csv.Error as error:
            problems.append((line, f"line {line}: {error}"))
            continue
        if values is None:
            break
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(columns):
            problems.append((line, f"line {line}: {len(values)} values in {len(columns)} columns"))
            continue
        row = {column: value.strip() for column, value in zip(columns, values, strict=True)}
        row["image"] = str(PurePosixPath(row["image"].replace("\\", "/"))) if row["image"] else ""
        wrong = _wrong_path(row["image"], folder)
        if not wrong and row["image"] in line_of_name:
            wrong = f"the image is listed before, in line {line_of_name[row['image']]}"
        line_of_name.setdefault(row["image"], line)
        record, texts = _record(row, line, folder, delimiter, mos_worst, mos_best)
        problems += [(line, f"line {line} ({row['image']!r}): {text}") for text in filter(None, [wrong, *texts])]
        if not wrong:
            records.append(record)
            if row.get("reference"):
                scenes.setdefault(row["reference"], line)
    if not records and not problems:
        raise UserError(f"{path} names no image; write a line for each image below the line of the columns")
    return records, scenes, problems


def _wrong_path(name: str, folder: Path) -> str:
    """What is wrong with an image's path, or ''."""
    if not name:
        return "it names no image"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        # As it is written: links to files elsewhere are a way to keep images in one place.
        return "the path leaves the folder; write it relative to the folder, without .."
    return "" if (folder / name).is_file() else "no such file in the folder"


def _record(
    row: dict[str, str], line: int, folder: Path, delimiter: str, mos_worst: float, mos_best: float
) -> tuple[Record, list[str]]:
    """A row's values, and what is wrong with them."""
    wrong = []
    mos = _number(row["mos"], delimiter)
    low, high = sorted((mos_worst, mos_best))
    if not low <= mos <= high:  # NaN is not either
        wrong.append(f"mos is {row['mos']!r}, not a number from {low:g} to {high:g}")
    std = NAN
    if row.get("std", "").lower() not in ("", "nan"):
        std = _number(row["std"], delimiter)
        if not 0 <= std < math.inf:
            wrong.append(f"std is {row['std']!r}, not a number of 0 or more")
    level = _number(row.get("level") or "0", delimiter)
    if not (level >= 0 and level.is_integer()):
        wrong.append(f"level is {row['level']!r}, not a whole number of 0 or more")
        level = 0
    part = row.get("split", "")
    if part not in PARTS:
        wrong.append(f"split is {part!r}, not {', '.join(PARTS[:3])} or nothing")
    record = Record(
        row=line,
        name=row["image"],
        path=folder / row["image"],
        mos=min(max(100.0 * (mos - mos_worst) / (mos_best - mos_worst), 0.0), 100.0),  # but for rounding, within it
        mos_raw=mos,
        mos_std=std,
        reference=row.get("reference") or row["image"],
        distortion=row.get("distortion", ""),
        level=int(level),
        part=part,
    )
    return record, wrong


def _header(path: Path, line: int, text: str) -> tuple[list[str], str]:
    """The columns, in lower case, and what separates them."""
    for delimiter in (",", ";", "\t"):
        columns = [column.strip().lower() for column in next(csv.reader([text], delimiter=delimiter))]
        if {"image", "mos"} <= set(columns):
            twice = sorted({column for column in columns if column in COLUMNS and columns.count(column) > 1})
            if twice:
                raise UserError(f"{path}, line {line}: column {listing(twice)} occurs twice; name each column once")
            if unknown := [column for column in columns if column not in COLUMNS]:
                logging.info("%s: columns that are ignored: %s", path, listing(unknown))
            return columns, delimiter
    raise UserError(
        f"{path}, line {line}: {text.strip()[:80]!r} must name the columns image and mos, and may name "
        f"{', '.join(COLUMNS[2:])}, separated by commas, semicolons or tabs"
    )


def _number(text: str, delimiter: str) -> float:
    """The number, or NaN. A comma that does not separate values is a decimal point, as in many countries' tables."""
    try:
        return float(text if delimiter == "," else text.replace(",", "."))
    except ValueError:
        return NAN


def _pristine(scenes: dict[str, int], folder: Path, problems: list[_Problem]) -> dict[str, Path]:
    """The undistorted photographs that there are, by scene."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    if (folder / "references").is_dir():
        for path in sorted((folder / "references").iterdir()):
            if path.suffix.lower() in PHOTOGRAPH_SUFFIXES and path.is_file():
                by_name[path.name].append(path)
                by_name[path.stem].append(path)
    photographs = {}
    for scene, line in scenes.items():
        inside = not PurePosixPath(scene).is_absolute() and ".." not in PurePosixPath(scene).parts
        path = folder / scene
        if inside and path.suffix.lower() in PHOTOGRAPH_SUFFIXES and path.is_file():
            photographs[scene] = path
        elif len(by_name[scene]) == 1:
            photographs[scene] = by_name[scene][0]
        elif by_name[scene]:
            names = listing([path.name for path in by_name[scene]])
            problems.append((line, f"line {line}: several files in references match {scene!r}: {names}"))
    return photographs


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"{path}: {error}"  # nothing else has this; decoding reports it


def _unreadable(records: Sequence[Record], images: Sequence) -> list[_Problem]:
    """Decodes every image; those that the cache of `images` has room for are not decoded again."""

    def problem(index: int) -> _Problem | None:
        try:
            images[index]
        except Exception as error:
            line, name = records[index].row, records[index].name
            return line, f"line {line} ({name!r}): the image cannot be read: {one_line(error)}"
        return None

    return [text for text in in_threads(problem, range(len(records)), "decoding images") if text]


def _unreadable_pristine(pristine: dict[str, Path]) -> list[_Problem]:
    def problem(path: Path) -> _Problem | None:
        try:
            decode_photograph(path.read_bytes())
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
