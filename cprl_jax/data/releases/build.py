"""From an official release to a `QualityDataset`: found, checked, built once as a TFDS dataset, and read from there.

The records are ArrayRecord files with the bytes of the original images, read through `as_data_source`: no TensorFlow.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import numpy as np
from absl import logging

from cprl_jax.data.dataset import CachedImages, NamedImages, QualityDataset, decode_rgb, listing
from cprl_jax.data.releases import _common
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path, utf8_path

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from cprl_jax.data.releases import _builder

VERSION = "2.0.0"  # of what is built
MOST_PROBLEMS = 20  # named in one message
_PRISTINE = "references"  # the split of the undistorted photographs


def builder_of(release: _common.Release) -> "type[_builder.QualityBuilder]":
    """The TFDS builder of a release, which its module describes.

    Raises:
      UserError: TFDS or ArrayRecord is not installed: the latter is not made for Windows.
    """
    try:
        from cprl_jax.data.releases import _builder
    except ImportError as error:
        raise UserError(
            f"{release.TITLE} needs the packages tensorflow_datasets and array_record ({_common.one_line(error)}): "
            "install them, on Windows in WSL, since there is no array_record for it; or make a CSV file of the release "
            "and read it with --config=configs/own.py"
        ) from error
    return _builder.of(release)


def load(
    release: _common.Release,
    *,
    manual_dir: str = "",
    data_dir: str = "",
    cache: str = "memory",
    cache_gib: float = 4.0,
    **options: str,
) -> QualityDataset:
    """Loads a dataset, after building it from its official release if that has not been done.

    A build lies in `data_dir/<builder>/<options and stamp of labels and file contents>`, so that another or a
    changed release never meets an older build. Before one is made, every list and image is checked and nothing is
    written if there is a problem. Processes that share `data_dir` wait for one another.

    Args:
      release: the module of the dataset, such as `cprl_jax.data.releases.livec`.
      manual_dir: the folder that holds the release's folder, or that folder itself; '' is TFDS's own manual
        directory, `data_dir/downloads/manual`. With '' and no release there, the one existing build is read.
      data_dir: where TFDS keeps datasets; '' is `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      cache: 'memory' keeps decoded images there, 'disk' in a memory-mapped file beside the build.
      cache_gib: how much memory decoded images may take, GiB; the others are decoded each time ('memory' only). Rated
        images and undistorted photographs are counted separately.
      options: what the release's `read` takes.

    Raises:
      UserError: no release, a release that contradicts itself (all problems in one message), or no place to write.
      ValueError: an unknown `cache`, a negative `cache_gib`.
    """
    if cache not in ("memory", "disk") or not cache_gib >= 0:
        raise ValueError(f"cache={cache!r}, cache_gib={cache_gib}: must be 'memory' or 'disk', and 0 or more")
    builder = builder_of(release)
    data_path = utf8_path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", field="config.dataset.data_dir"
    )
    prefix = "".join(f"{value}-" for value in options.values())
    if not manual_dir:
        manual_dir = data_path / "downloads" / "manual"
        builds = _builds(data_path / builder.name, prefix)
        if len(builds) == 1 and not any(map(release.looks_like, _candidates(release, manual_dir))):
            logging.info("%s: no release in %s; reading the build in %s", release.TITLE, manual_dir, builds[0])
            return _read(release, builds[0], cache, cache_gib)
    folder = find_release(release, manual_dir)
    contents = release.read(folder, **options)
    digest_of = _common.digests(_paths(contents))
    problems = contents.problems + _duplicates(release, contents, digest_of)
    if not contents.records and not problems:
        problems = ["it has no rated images"]
    build = data_path / builder.name / (prefix + _stamp(contents, digest_of)) / VERSION
    if problems or not build.exists():
        _refuse(release, folder, problems + _common.unreadable(contents))
        _build(builder, contents, build, data_path)
    dataset = _read(release, build, cache, cache_gib)
    records = sorted(contents.records, key=lambda record: record.row)
    expected = [(record.name, np.float32(record.mos)) for record in records]
    if list(zip(dataset.names.tolist(), dataset.mos, strict=True)) != expected:
        raise UserError(f"the {release.TITLE} build in {build} is not what was built there; delete it to build again")
    return dataset


def find_release(release: _common.Release, manual_dir: str | os.PathLike) -> Path:
    """The release folder in, or at, the manual directory.

    Raises:
      UserError: neither looks like the release.
    """
    for folder in _candidates(release, manual_dir):
        if release.looks_like(folder):
            return folder
    raise UserError(
        f"no {release.TITLE} release in {manual_dir}: get {release.FOLDERS[0]} from {release.URL} and "
        f"{release.HOW_TO_UNPACK}, or name the folder that holds {release.FOLDERS[0]} with "
        "--config.dataset.manual_dir=FOLDER"
    )


def _candidates(release: _common.Release, manual_dir: str | os.PathLike) -> list[Path]:
    manual_path = user_path(manual_dir, field="config.dataset.manual_dir")
    return [*(manual_path / name for name in release.FOLDERS), manual_path]


def _builds(folder: Path, prefix: str) -> list[Path]:
    """The builds made with the options of `prefix`: a stamp has no hyphen."""
    builds = folder.glob(f"{prefix}*/{VERSION}")
    return [path for path in builds if path.is_dir() and "-" not in path.parent.name.removeprefix(prefix)]


def _paths(contents: _common.Contents) -> list[Path]:
    return [record.path for record in contents.records] + list(contents.pristine.values())


def _pristine_records(contents: _common.Contents) -> tuple[_common.Record, ...]:
    unrated = {"mos": _common.NAN, "mos_raw": _common.NAN, "mos_std": _common.NAN}
    return tuple(
        _common.Record(row, scene, path, reference=scene, **unrated)
        for row, (scene, path) in enumerate(contents.pristine.items(), start=1)
    )


def _duplicates(release: _common.Release, contents: _common.Contents, digest_of: dict[Path, str]) -> list[str]:
    problems, warnings = _common.identical(contents, digest_of, release.MAY_BE_IDENTICAL)
    for text in warnings:
        logging.warning("%s: %s", release.TITLE, text)
    return problems


def _stamp(contents: _common.Contents, digest_of: dict[Path, str]) -> str:
    """The stamp of the labels and file contents, wherever the files lie."""
    rows = []
    for record in (*contents.records, *_pristine_records(contents)):
        columns = vars(record) | {"path": digest_of[record.path]}
        rows.append([columns[key] for key in sorted(columns)])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _refuse(release: _common.Release, folder: Path, problems: list[str]) -> None:
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        shown = listing(problems, most=MOST_PROBLEMS, separator="; ")
        raise UserError(f"the {release.TITLE} release in {folder} has {count}; correct it or unpack it again: {shown}")


def _build(builder: "type[_builder.QualityBuilder]", contents: _common.Contents, build: Path, data_path: Path) -> None:
    try:
        build.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(build.parent / "lock"), tempfile.TemporaryDirectory() as download_dir:
            if build.exists():
                return  # another process was faster
            for leftover in build.parent.glob("incomplete.*"):  # left by a process that was killed
                shutil.rmtree(leftover)
            made = builder.named(build.parent.name, data_dir=data_path)
            made.contents = contents
            made.download_and_prepare(download_dir=download_dir)
    except OSError as error:
        raise UserError(
            f"{builder.release.TITLE} could not be written to {build} ({_common.one_line(error)}); make room there or "
            "choose another folder with --config.dataset.data_dir=FOLDER"
        ) from error


def _read(release: _common.Release, build: Path, cache: str, cache_gib: float) -> QualityDataset:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(build)
        labels, images = _read_split(builder, "train", cache, cache_gib)
        scenes, photographs = [], []
        if _PRISTINE in builder.info.splits:
            scenes, photographs = _read_split(builder, _PRISTINE, cache, cache_gib)
    except UserError:  # no room for decoded images
        raise
    except Exception as error:  # ArrayRecord, TFDS and the file system have no common class
        reason = _common.one_line(error)
        raise UserError(
            f"the {release.TITLE} build in {build} is damaged ({reason}); delete it to build again"
        ) from error
    texts = {key: [label[key].decode() for label in labels] for key in ("name", "reference", "distortion", "part")}
    return QualityDataset(
        name=release.NAME,
        images=images,
        names=texts["name"],
        mos=[label["mos"] for label in labels],
        mos_raw=[label["mos_raw"] for label in labels],
        mos_std=[label["mos_std"] for label in labels],
        references=texts["reference"],
        distortions=texts["distortion"],
        levels=[label["level"] for label in labels],
        parts=texts["part"],
        pristine=NamedImages([scene["name"].decode() for scene in scenes], photographs),
    )


def _read_split(builder: "tfds.core.DatasetBuilder", split: str, cache: str, cache_gib: float):
    """The labels of a split in the order of its rows, and its images, decoded when asked for."""
    import tensorflow_datasets as tfds

    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    labels = [{key: value for key, value in example.items() if key != "image"} for example in source]
    order = np.argsort([label["row"] for label in labels])  # TFDS shuffles what it stores

    def decode(index: int) -> np.ndarray:
        return decode_rgb(source[int(order[index])]["image"])

    if cache == "disk":
        from cprl_jax.data.decoded_file import DecodedImages

        folder = Path(builder.data_path).parent  # its name holds the stamp of this build
        images = DecodedImages(decode, len(order), path=folder / f"decoded-{split}", stamp=folder.name)
    else:
        images = CachedImages(decode, len(order), cache_bytes=int(cache_gib * 2**30))
    return [labels[i] for i in order], images
