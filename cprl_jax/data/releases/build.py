"""From an official release to a `QualityDataset`: found, checked, built once as a TFDS dataset, and read from there.

The records are ArrayRecord files with the bytes of the original images, read through `as_data_source`: no TensorFlow.
"""

import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import filelock
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from cprl_jax.data.dataset import CachedImages, NamedImages, QualityDataset, decode_rgb, listing
from cprl_jax.data.releases import _common
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path, utf8_path

MOST_PROBLEMS = 20  # named in one message
_PRISTINE = "references"  # the split of the undistorted photographs


class QualityBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder that all releases share: `train`, all rated images, and `references`, the undistorted photographs.

    `builder_of` makes the subclass of a release. The split `references` is absent
    where there are none; its examples have a name (the scene) and no labels. `load` is the way in: it names the build
    by the release's content and picks the file format. Used directly, `file_format='array_record'` must be given
    wherever TensorFlow is not installed, and the release is read with its default options.
    """

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": "One schema for all datasets.", "1.0.0": "LIVE-C alone."}
    release: ClassVar[_common.Release]

    contents: _common.Contents | None = None  # set by `load`, which has checked them

    @property
    def MANUAL_DOWNLOAD_INSTRUCTIONS(self) -> str:  # noqa: N802 - TFDS's name
        return f"Get {self.release.FOLDERS[0]} from {self.release.URL} and {self.release.HOW_TO_UNPACK}."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.release.TITLE}: images with quality labels.",
            homepage=self.release.URL,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "name": tfds.features.Text(),
                    "row": np.int32,
                    "mos": np.float32,
                    "mos_raw": np.float32,
                    "mos_std": np.float32,
                    "reference": tfds.features.Text(),
                    "distortion": tfds.features.Text(),
                    "level": np.int32,
                    "part": tfds.features.Text(),
                }
            ),
            citation=self.release.CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        contents = self.contents
        if contents is None:
            folder = find_release(self.release, dl_manager.manual_dir)
            contents = self.release.read(folder)
            duplicates = _duplicates(self.release, contents, _common.digests(_paths(contents)))
            _refuse(self.release, folder, contents.problems + duplicates + _common.unreadable(contents))
        splits = {"train": self._generate_examples(contents.records)}
        if contents.pristine:
            splits[_PRISTINE] = self._generate_examples(_pristine_records(contents))
        return splits

    def _generate_examples(self, records: tuple[_common.Record, ...]):
        for record in records:
            columns = {key: getattr(record, key) for key in self.info.features if key != "image"}
            yield record.row, {"image": record.path} | columns


@functools.cache
def builder_of(release: _common.Release) -> type[QualityBuilder]:
    """The TFDS builder of a release, which its module describes."""
    return type(release.BUILDER, (QualityBuilder,), {"__doc__": f"{release.TITLE}.", "release": release})


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
    data_path = utf8_path(data_dir or tfds.core.constants.DATA_DIR, field="config.dataset.data_dir")
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
    build = data_path / builder.name / (prefix + _stamp(contents, digest_of)) / str(builder.VERSION)
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
    builds = folder.glob(f"{prefix}*/{QualityBuilder.VERSION}")
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


def _build(builder: type[QualityBuilder], contents: _common.Contents, build: Path, data_path: Path) -> None:
    try:
        build.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(build.parent / "lock"), tempfile.TemporaryDirectory() as download_dir:
            if build.exists():
                return  # another process was faster
            for leftover in build.parent.glob("incomplete.*"):  # left by a process that was killed
                shutil.rmtree(leftover)
            config = tfds.core.BuilderConfig(name=build.parent.name, version=builder.VERSION)
            made = builder(config=config, data_dir=data_path, file_format="array_record")
            made.contents = contents
            made.download_and_prepare(download_dir=download_dir)
    except OSError as error:
        raise UserError(
            f"{builder.release.TITLE} could not be written to {build} ({_common.one_line(error)}); make room there or "
            "choose another folder with --config.dataset.data_dir=FOLDER"
        ) from error


def _read(release: _common.Release, build: Path, cache: str, cache_gib: float) -> QualityDataset:
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


def _read_split(builder: tfds.core.DatasetBuilder, split: str, cache: str, cache_gib: float):
    """The labels of a split in the order of its rows, and its images, decoded when asked for."""
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
