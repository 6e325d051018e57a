"""LIVE In the Wild Image Quality Challenge Database (LIVE-C): read from the official release, kept as a TFDS dataset.

Nothing here needs TensorFlow: the records are ArrayRecord files, read through `as_data_source`.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

import filelock
import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from absl import logging

from cprl_jax.data.dataset import CachedImages, QualityDataset, decode_rgb, listing
from cprl_jax.errors import UserError

URL = "https://live.ece.utexas.edu/research/ChallengeDB/index.html"
FOLDER = "ChallengeDB_release"
TRAINING_ROWS = 7  # the lists begin with the images that the study's subjects were trained on; they are not in the set
FULL_ROWS = 1169
MOST_PROBLEMS = 20  # named in one message

_NAMES, _MOS, _STD = "AllImages_release", "AllMOS_release", "AllStdDev_release"
_IMAGE_SUFFIXES = (".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Record:
    """One rated image: its row in the release's lists (the first is 1), name, file, score (0..100) and deviation."""

    row: int
    name: str
    path: Path
    mos: float
    mos_std: float


class LiveChallenge(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of LIVE-C: one split, `train`, of all rated images, as the bytes of the original files.

    `load` is the way in: it names the build by the release's content and picks the file format. Used directly,
    `file_format='array_record'` must be given wherever TensorFlow is not installed.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Get {FOLDER} from {URL} and unpack it into the manual directory."

    records: tuple[Record, ...] | None = None  # set by `load`, which has checked them

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photographs with authentic distortions from mobile cameras, rated by crowdsourcing.",
            homepage=URL,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "name": tfds.features.Text(),
                    "row": np.int32,
                    "mos": np.float32,
                    "mos_std": np.float32,
                }
            ),
            citation=(
                "D. Ghadiyaram and A. C. Bovik, Massive Online Crowdsourced Study of Subjective and Objective Picture "
                "Quality, IEEE Transactions on Image Processing 25(1), 2016."
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        records = self.records
        if records is None:
            release = find_release(dl_manager.manual_dir)
            records, problems = read_release(release)
            _refuse(problems + unreadable(records), release)
        return {"train": self._generate_examples(records)}

    def _generate_examples(self, records: tuple[Record, ...]):
        for record in records:
            example = {"image": record.path, "name": record.name, "row": record.row}
            yield record.row, example | {"mos": record.mos, "mos_std": record.mos_std}


def load(*, manual_dir: str = "", data_dir: str = "") -> QualityDataset:
    """Loads LIVE-C, after building it from the release if that has not been done.

    A build lies in `data_dir/live_challenge/<fingerprint of names, scores and file contents>`, so that another or a
    changed release never meets an older build. Before one is made, every list and image is checked and nothing is
    written if there is a problem. Processes that share `data_dir` wait for one another.

    Args:
      manual_dir: the folder that holds `ChallengeDB_release`, or that folder itself; '' is TFDS's own manual
        directory, `data_dir/downloads/manual`. With '' and no release there, the one existing build is read.
      data_dir: where TFDS keeps datasets; '' is `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
      UserError: no release, a release that contradicts itself (all problems in one message), or no place to write.
    """
    data_path = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if not manual_dir:
        manual_dir = data_path / "downloads" / "manual"
        builds = [path for path in (data_path / LiveChallenge.name).glob(f"*/{LiveChallenge.VERSION}") if path.is_dir()]
        if len(builds) == 1 and not any(map(_looks_like_a_release, _candidates(manual_dir))):
            logging.info("LIVE-C: no release in %s; reading the build in %s", manual_dir, builds[0])
            return _read(builds[0])
    release = find_release(manual_dir)
    records, problems = read_release(release)
    build = data_path / LiveChallenge.name / _fingerprint(records) / str(LiveChallenge.VERSION)
    if problems or not build.exists():
        _refuse(problems + unreadable(records), release)
        _build(records, build, data_path)
    dataset = _read(build)
    expected = [(record.name, np.float32(record.mos)) for record in records]
    if list(zip(dataset.names.tolist(), dataset.mos, strict=True)) != expected:
        raise UserError(f"the LIVE-C build in {build} is not what was built there; delete it to build anew")
    return dataset


def find_release(manual_dir: str | os.PathLike) -> Path:
    """The release folder in, or at, the manual directory.

    Raises:
      UserError: neither holds `Data` or `Images`.
    """
    for folder in _candidates(manual_dir):
        if _looks_like_a_release(folder):
            return folder
    raise UserError(
        f"no LIVE-C release in {manual_dir}: get {FOLDER} from {URL} and unpack it so that "
        f"{Path(manual_dir) / FOLDER / 'Data' / _MOS}.mat exists, or name the folder that holds {FOLDER} with "
        "--config.dataset.manual_dir=FOLDER"
    )


def read_release(release: Path) -> tuple[tuple[Record, ...], list[str]]:
    """Reads the three lists and matches them with the files, apart from decoding those.

    File names match exactly or else without regard to case. Image files that no row lists and missing training
    images are logged as warnings.

    Returns:
      a record of every row that has a file, in the order of the lists, and a description of every problem. The records
      are fit for use only if there is no problem.
    """
    problems: list[str] = []
    names, mos, mos_std = (_read_mat(release, variable, problems) for variable in (_NAMES, _MOS, _STD))
    image_dir = release / "Images"
    if not image_dir.is_dir():
        problems.append("folder Images is missing")
    if names is None or not image_dir.is_dir():
        return (), problems
    for variable, scores in ((_MOS, mos), (_STD, mos_std)):
        if scores is not None and len(scores) != len(names):
            problems.append(f"the lists differ in length: {_NAMES} has {len(names)} rows, {variable} {len(scores)}")
    mos, mos_std = (scores if scores and len(scores) == len(names) else None for scores in (mos, mos_std))
    if len(names) <= TRAINING_ROWS:
        problems.append(f"{_NAMES} has only {len(names)} rows; {TRAINING_ROWS} of training images come first")
    if len(names) != FULL_ROWS:
        logging.info("LIVE-C: %d rows in %s; the full release has %d", len(names), release, FULL_ROWS)

    files = _Files(image_dir)
    _check_training_rows(names[:TRAINING_ROWS], files, _Files(image_dir / "trainingImages"), problems)
    records = []
    row_of: dict[Path, int] = {}
    for index, name in enumerate(names[TRAINING_ROWS:], start=TRAINING_ROWS):
        row, label = index + 1, f"row {index + 1} ({name!r})"
        if mos is not None and not 0 <= mos[index] <= 100:  # NaN is not either
            problems.append(f"{label}: the score is {mos[index]}, not within 0..100")
        if mos_std is not None and not 0 <= mos_std[index] < np.inf:
            problems.append(f"{label}: the standard deviation is {mos_std[index]}, not a number of 0 or more")
        try:
            path = files.find(name)
        except LookupError as error:
            problems.append(f"{label}: {error}")
            continue
        if path in row_of:
            problems.append(f"{label}: listed before, in row {row_of[path]}")
            continue
        row_of[path] = row
        scores = [float("nan") if column is None else column[index] for column in (mos, mos_std)]
        records.append(Record(row, name, path, *scores))
    unlisted = sorted(path.name for path in files.paths if path not in row_of)
    if unlisted:
        logging.warning("LIVE-C: %d images in %s that no row lists: %s", len(unlisted), image_dir, listing(unlisted))
    return tuple(records), problems


def unreadable(records: tuple[Record, ...]) -> list[str]:
    """Decodes every image to its last pixel and describes those that fail."""

    def problem(record: Record) -> str | None:
        try:
            decode_rgb(record.path.read_bytes())
        except Exception as error:  # a broken file surfaces as almost any exception, depending on its format
            return f"row {record.row} ({record.name!r}): the image cannot be read: {_one_line(error)}"
        return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return [text for text in pool.map(problem, records) if text]


class _Files:
    """The image files of one folder by name, exact or else without regard to case."""

    def __init__(self, folder: Path):
        self._folder = folder
        files = folder.iterdir() if folder.is_dir() else ()
        self.paths = [path for path in files if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file()]
        self._exact = {path.name: path for path in self.paths}
        self._folded = defaultdict(list)
        for path in self.paths:
            self._folded[path.name.lower()].append(path)

    def find(self, name: str) -> Path:
        if name in self._exact:
            return self._exact[name]
        alike = self._folded.get(name.lower(), [])
        if len(alike) > 1:
            raise LookupError(f"several files of {self._folder.name} match: {listing(sorted(p.name for p in alike))}")
        if not alike:
            raise LookupError(f"no such image file in {self._folder.name}")
        return alike[0]


def _candidates(manual_dir: str | os.PathLike) -> tuple[Path, Path]:
    manual_path = Path(manual_dir).expanduser()
    return manual_path / FOLDER, manual_path


def _looks_like_a_release(folder: Path) -> bool:
    return (folder / "Data").is_dir() or (folder / "Images").is_dir()


def _read_mat(release: Path, variable: str, problems: list[str]) -> list | None:
    """The values of one list, or None and what is wrong with it in `problems`."""
    path, label = release / "Data" / f"{variable}.mat", f"Data/{variable}.mat"
    if not path.is_file():
        problems.append(f"{label} is missing")
        return None
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:  # SciPy has no common exception for damaged files
        problems.append(f"{label} is not a readable MATLAB file ({_one_line(error)})")
        return None
    if variable not in content:
        present = [name for name in content if not name.startswith("__")]
        problems.append(f"{label} has no variable {variable}, only {listing(present) or 'none at all'}")
        return None
    kind, expected = (str, "image name") if variable == _NAMES else (int | float, "number")
    values = content[variable].ravel().tolist()
    values = [value.item() if isinstance(value, np.ndarray) and value.size == 1 else value for value in values]
    wrong = [row for row, value in enumerate(values, start=1) if not isinstance(value, kind)]
    if wrong:
        problems.append(f"{label} holds no {expected} in row {listing(wrong)}")
        return None
    return [value.strip() for value in values] if variable == _NAMES else [float(value) for value in values]


def _check_training_rows(names: list[str], files: _Files, training_files: _Files, problems: list[str]) -> None:
    """The first rows are skipped, so they had better be the training images."""
    missing = []
    for row, name in enumerate(names, start=1):
        try:
            training_files.find(name)
        except LookupError:
            missing.append(name)
            if name in {path.name for path in files.paths}:
                problems.append(
                    f"row {row} ({name!r}): the first {TRAINING_ROWS} rows must be the study's training images, but "
                    "this file lies in Images, not in Images/trainingImages"
                )
    if missing:
        logging.warning("LIVE-C: training images without a file (they are not used): %s", listing(missing))


def _fingerprint(records: tuple[Record, ...]) -> str:
    """A name for exactly these rows, scores and file contents."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, records))
    names_of_digest = defaultdict(list)
    for record, digest in zip(records, digests, strict=True):
        names_of_digest[digest].append(record.name)
    for names in names_of_digest.values():
        if len(names) > 1:
            logging.warning("LIVE-C: these image files are identical: %s", listing(names))
    rows = [[record.row, record.name, record.mos, record.mos_std] for record in records]
    return hashlib.sha256(json.dumps([rows, digests]).encode()).hexdigest()[:16]


def _digest(record: Record) -> str:
    try:
        return hashlib.sha256(record.path.read_bytes()).hexdigest()
    except OSError as error:
        return f"{record.name}: {error}"  # no build can have this, so `unreadable` gets to see the file


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _refuse(problems: list[str], release: Path) -> None:
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        shown = listing(problems, most=MOST_PROBLEMS, separator="; ")
        raise UserError(f"the LIVE-C release in {release} has {count}; mend or unpack it again: {shown}")


def _build(records: tuple[Record, ...], build: Path, data_path: Path) -> None:
    try:
        build.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(build.parent / "lock"), tempfile.TemporaryDirectory() as download_dir:
            if build.exists():
                return  # another process was faster
            for leftover in build.parent.glob("incomplete.*"):  # of a process that was killed
                shutil.rmtree(leftover)
            config = tfds.core.BuilderConfig(name=build.parent.name, version=LiveChallenge.VERSION)
            builder = LiveChallenge(config=config, data_dir=data_path, file_format="array_record")
            builder.records = records
            builder.download_and_prepare(download_dir=download_dir)
    except OSError as error:
        raise UserError(
            f"LIVE-C could not be written to {build} ({_one_line(error)}); make room there or choose another folder "
            "with --config.dataset.data_dir=FOLDER"
        ) from error


def _read(build: Path) -> QualityDataset:
    try:
        builder = tfds.builder_from_directory(build)
        source = builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})
        labels = [{key: value for key, value in example.items() if key != "image"} for example in source]
    except Exception as error:  # ArrayRecord, TFDS and the file system each have their own
        reason = _one_line(error)
        raise UserError(f"the LIVE-C build in {build} is damaged ({reason}); delete it to build anew") from error
    order = np.argsort([label["row"] for label in labels])  # TFDS shuffles what it stores
    labels = [labels[i] for i in order]
    names = [label["name"].decode() for label in labels]
    mos = [label["mos"] for label in labels]
    return QualityDataset(
        name="livec",
        images=CachedImages(lambda i: decode_rgb(source[int(order[i])]["image"]), len(names)),
        names=names,
        mos=mos,
        mos_raw=mos,
        mos_std=[label["mos_std"] for label in labels],
        references=names,
        distortions=[""] * len(names),
        levels=[0] * len(names),
    )
