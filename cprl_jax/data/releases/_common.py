"""What the readers of official releases share: records, files found by name, MATLAB lists, checks.

A reader never raises for what is wrong inside a release. It appends a description to a list of problems and continues,
so that all of them come in one message; the records are fit for use only if that list is empty. A description is one
line that begins with the place: `row 14 ('16.JPG'): ...` (see `place`), or the file: `Data/AllMOS_release.mat ...`.

    problems = []
    names = read_mat(release / "lists.mat", "names", problems, kind=str)
    scores = read_mat(release / "lists.mat", "scores", problems)
    if names is None or scores is None:
        return Contents(problems=problems)
    check_count(len(names), 3000, "images in lists.mat", problems)
    if not check_lengths({"names": names, "scores": scores}, problems):
        return Contents(problems=problems)
    labels = [place(row, name) for row, name in enumerate(names, start=1)]
    check_scores(scores, 0, 9, problems, labels=labels)
    check_range(scores, 0.24242, 7.21429, "the scores", problems)
    paths = find_images(Files(release / "images"), names, labels, problems)  # None where there is a problem
    pristine = find_pristine(Files(release / "references"), references, problems)
"""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import scipy.io
import tqdm
from absl import logging

from cprl_jax.data.dataset import decode_rgb, listing

IMAGE_SUFFIXES = (".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff")
NAN = float("nan")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Record:
    """One rated image of a release.

    Attributes:
      row: its place in the release's list, from 1; unique. Where a release has several lists, they count as one, in
        the order in which the reader goes through them. The images of a dataset come in this order.
      name: its name in the dataset, unique.
      path: the image file.
      mos: mean opinion score, 0..100, higher is better.
      mos_raw: the label as the release gives it, on its own scale and in its own direction.
      mos_std: standard deviation of the opinions, on the scale of `mos_raw`; NaN where the release gives none.
      reference: the scene that the image shows; the image's own name if it is authentic.
      distortion: the kind of distortion; '' where there is none to name.
      level: its level, 1 the mildest; 0 where there is none to name.
      part: 'train', 'validation' or 'test' where the release assigns one, else ''.
    """

    row: int
    name: str
    path: Path
    mos: float
    mos_raw: float
    mos_std: float
    reference: str
    distortion: str = ""
    level: int = 0
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a reader returns: records, the undistorted photograph of each scene, and a line for every problem."""

    records: tuple[Record, ...] = ()
    pristine: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)


class Release(Protocol):
    """What the file of a dataset defines; nothing else names that file.

    Attributes:
      NAME: its name in configs and of the dataset ('livec').
      TITLE: its name in messages ('LIVE-C').
      BUILDER: its name for TFDS: builds of 'LiveChallenge' lie in live_challenge/.
      FOLDERS: the names that the release's folder may have, the usual one first.
      URL: where to get it.
      CITATION: what its authors ask to be cited.
      HOW_TO_UNPACK: ends the sentence "get it from URL and ..."; says which file must exist where.
      MAY_BE_IDENTICAL: kinds of distortion ('' is none) of which the official release may hold identical files under
        different names; these are warned of. All other identical files are a problem, and so are identical versions
        of different scenes. Usually ().
      OPTIONS: the release's fields of config.dataset, which `read` takes as arguments; may be left out.
    """

    NAME: str
    TITLE: str
    BUILDER: str
    FOLDERS: tuple[str, ...]
    URL: str
    CITATION: str
    HOW_TO_UNPACK: str
    MAY_BE_IDENTICAL: tuple[str, ...]

    def looks_like(self, folder: Path) -> bool:
        """Whether the folder is this release, sound or not: it holds one of its files or folders."""

    def read(self, release: Path, **options: str) -> Contents:
        """Reads the lists and matches them with the files, apart from decoding those. Never raises for its content."""


def place(row: int, name: str, source: str = "") -> str:
    """How a problem names its place: `row 14 ('16.JPG')`, or `dmos.csv, row 14 ('16.JPG')` with a source."""
    return f"{source}, row {row} ({name!r})" if source else f"row {row} ({name!r})"


def one_line(error: Exception) -> str:
    """The error's text without line breaks."""
    return " ".join(str(error).split())


class Files:
    """The image files of one folder by name, exact or else without regard to case.

    Attributes:
      folder: the folder.
      paths: all of them, in the order of their names; none if there is no such folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        files = sorted(folder.iterdir()) if folder.is_dir() else ()
        self.paths = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        self._exact = {path.name: path for path in self.paths}
        self._folded = defaultdict(list)
        for path in self.paths:
            self._folded[path.name.lower()].append(path)

    def find(self, name: str) -> Path:
        """The file of that name.

        Raises:
          LookupError: there is none, or several differ from it in case alone; the text is the end of a problem.
        """
        if name in self._exact:
            return self._exact[name]
        alike = self._folded.get(name.lower(), [])
        if len(alike) > 1:
            raise LookupError(f"several files of {self.folder.name} match: {listing([p.name for p in alike])}")
        if not alike:
            raise LookupError(f"no such image file in {self.folder.name}")
        return alike[0]


def find_images(files: Files, names: Sequence[str], labels: Sequence[str], problems: list[str]) -> list[Path | None]:
    """The file of each row; None and a problem where there is none, or where an earlier row has the same file.

    Args:
      labels: the place of each row, as `place` gives it.
    """
    paths: list[Path | None] = []
    label_of: dict[Path, str] = {}
    for name, label in zip(names, labels, strict=True):
        paths.append(None)
        try:
            path = files.find(name)
        except LookupError as error:
            problems.append(f"{label}: {error}")
            continue
        if path in label_of:
            problems.append(f"{label}: listed before, in {label_of[path]}")
            continue
        label_of[path] = label
        paths[-1] = path
    return paths


def find_pristine(files: Files, names: Iterable[str], problems: list[str]) -> dict[str, Path]:
    """The undistorted photograph of every scene by the scene's name, its file name without the suffix.

    Args:
      names: file names, any number of times each.
    """
    pristine = {}
    for name in sorted(set(names)):
        try:
            pristine[Path(name).stem] = files.find(name)
        except LookupError as error:
            problems.append(f"reference {name!r}: {error}")
    return pristine


def warn_of_unlisted(title: str, files: Files, listed: Iterable[Path | None]) -> None:
    """Logs the image files of a folder that nothing refers to; they are not read."""
    listed = set(listed)
    names = [path.name for path in files.paths if path not in listed]
    if names:
        logging.warning("%s: %d images in %s that no row lists: %s", title, len(names), files.folder, listing(names))


def read_mat(path: Path, variable: str, problems: list[str], *, kind: type = float) -> list | None:
    """The values of one variable of a MATLAB file as a flat list, or None and what is wrong with it in `problems`.

    Cells that hold one value count as that value. Messages name the file with its folder.

    Args:
      kind: `float`, for a list of numbers; or `str`, for names, whose surrounding blanks are removed.
    """
    label = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        problems.append(f"{label} is missing")
        return None
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:  # SciPy has no common exception for damaged files
        problems.append(f"{label} is not a readable MATLAB file ({one_line(error)})")
        return None
    if variable not in content:
        present = [name for name in content if not name.startswith("__")]
        problems.append(f"{label} has no variable {variable}, only {listing(present) or 'none at all'}")
        return None
    accepted, expected = (str, "image name") if kind is str else (int | float, "number")
    values = [_single(value) for value in content[variable].ravel().tolist()]
    wrong = [row for row, value in enumerate(values, start=1) if not isinstance(value, accepted)]
    if wrong:
        problems.append(f"{label} holds no {expected} in row {listing(wrong)}")
        return None
    return [value.strip() for value in values] if kind is str else [float(value) for value in values]


def _single(value):
    """What a cell holds if that is one value, however deeply it is nested."""
    while isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return value


def check_lengths(lists: Mapping[str, Sequence], problems: list[str]) -> bool:
    """Whether all lists are as long as the first; a problem for each that is not."""
    (first, values), *others = lists.items()
    wrong = [(name, len(other)) for name, other in others if len(other) != len(values)]
    problems += [f"the lists differ in length: {first} has {len(values)} rows, {name} {count}" for name, count in wrong]
    return not wrong


def check_count(count: int, expected: int, what: str, problems: list[str]) -> None:
    """A problem if there are not as many as the official release has: `rows of dmos: 981, but the release has 982`."""
    if count != expected:
        problems.append(f"{what}: {count}, but the release has {expected}")


def check_scores(
    scores: Sequence[float], low: float, high: float, problems: list[str], *, labels: Sequence[str], what: str = "score"
) -> bool:
    """Whether every score is a number within low..high; a problem for each that is not.

    Args:
      low, high: the ends of the scale, both allowed; `high=inf` allows every finite number of `low` or more.
      labels: the place of each score, as `place` gives it.
      what: what the message calls the number ('score', 'standard deviation').
    """
    allowed = f"within {low:g}..{high:g}" if high < np.inf else f"a number of {low:g} or more"
    known = len(problems)
    for label, score in zip(labels, scores, strict=True):
        if not (low <= score <= high and score < np.inf):  # NaN is not either
            problems.append(f"{label}: the {what} is {score}, not {allowed}")
    return len(problems) == known


def check_range(scores: Sequence[float], low: float, high: float, what: str, problems: list[str]) -> None:
    """A problem if the whole list does not span the published range: other scores, or another scale or direction.

    Args:
      low, high: the published minimum and maximum; a thousandth of their distance is allowed for rounding.
    """
    slack = (high - low) / 1000
    if len(scores) and (abs(min(scores) - low) > slack or abs(max(scores) - high) > slack):
        problems.append(
            f"{what} range over {min(scores):g}..{max(scores):g}, but those of the release over {low:g}..{high:g}"
        )


def unreadable(contents: Contents) -> list[str]:
    """Decodes every image to its last pixel, rated and pristine, and describes those that fail."""
    images = [(place(record.row, record.name), record.path) for record in contents.records]
    images += [(f"reference {path.name!r}", path) for path in contents.pristine.values()]

    def problem(image: tuple[str, Path]) -> str | None:
        label, path = image
        try:
            decode_rgb(path.read_bytes())
        except Exception as error:  # a broken file surfaces as almost any exception, depending on its format
            return f"{label}: the image cannot be read: {one_line(error)}"
        return None

    return [text for text in in_threads(problem, images, "decoding images") if text]


def digests(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file's content; of a file that cannot be read, the reason (it is `unreadable`)."""

    def digest(path: Path) -> str:
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            return f"{path}: {error}"  # no build can have this, so `unreadable` gets to see the file

    paths = list(dict.fromkeys(paths))
    return dict(zip(paths, in_threads(digest, paths, "reading images"), strict=True))


def identical(
    contents: Contents, digest_of: Mapping[Path, str], allowed: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Describes the image files that have the same content under different names: problems, and warnings.

    Args:
      allowed: as `Release.MAY_BE_IDENTICAL`.
    """
    rated, pristine = defaultdict(list), defaultdict(list)
    for record in contents.records:
        rated[digest_of[record.path]].append((record.name, record.reference, record.distortion))
    for scene, path in contents.pristine.items():
        pristine[digest_of[path]].append((scene, scene, None))
    problems, warnings = [], []
    for images in (*rated.values(), *pristine.values()):
        if len(images) > 1:
            names, scenes, kinds = zip(*images, strict=True)
            plausible = set(kinds) <= set(allowed) and (names == scenes or len(set(scenes)) == 1)
            (warnings if plausible else problems).append(f"these image files are identical: {listing(names)}")
    return problems, warnings


def in_threads(function: Callable[[T], object], items: Sequence[T], what: str) -> list:
    """Maps in threads, with a progress bar if it takes more than a few seconds."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(tqdm.tqdm(pool.map(function, items), total=len(items), desc=what, delay=3, leave=False))
