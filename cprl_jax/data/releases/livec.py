"""LIVE In the Wild Image Quality Challenge Database (LIVE-C): photographs from mobile cameras, rated by many people."""

from pathlib import Path

from absl import logging

from cprl_jax.data.dataset import listing
from cprl_jax.data.releases._common import (
    NAN,
    Contents,
    Files,
    Record,
    check_lengths,
    check_range,
    check_scores,
    find_images,
    place,
    read_mat,
    warn_of_unlisted,
)

NAME = "livec"
TITLE = "LIVE-C"
BUILDER = "LiveChallenge"
FOLDERS = ("ChallengeDB_release",)
URL = "https://live.ece.utexas.edu/research/ChallengeDB/index.html"
CITATION = (
    "D. Ghadiyaram and A. C. Bovik, Massive Online Crowdsourced Study of Subjective and Objective Picture Quality, "
    "IEEE Transactions on Image Processing 25(1), 2016."
)
HOW_TO_UNPACK = "unpack it there so that ChallengeDB_release/Data/AllMOS_release.mat exists"
MAY_BE_IDENTICAL = ("",)  # none are known; but the photographs are uploads of many people
TRAINING_ROWS = 7  # the lists begin with the images that the study's subjects were trained on; they are not in the set
FULL_ROWS = 1169
SCORES = (3.42, 92.432)  # lowest and highest of the full release

_NAMES, _MOS, _STD = "AllImages_release", "AllMOS_release", "AllStdDev_release"


def looks_like(folder: Path) -> bool:
    """Whether the folder holds `Data` or `Images`."""
    return (folder / "Data").is_dir() or (folder / "Images").is_dir()


def read(release: Path) -> Contents:
    """Reads the three lists. A release with fewer rows than the full one is read as it is.

    Image files that no row lists and missing training images are logged as warnings.
    """
    problems: list[str] = []
    names, mos, mos_std = (
        read_mat(release / "Data" / f"{variable}.mat", variable, problems, kind=kind)
        for variable, kind in ((_NAMES, str), (_MOS, float), (_STD, float))
    )
    image_dir = release / "Images"
    if not image_dir.is_dir():
        problems.append("folder Images is missing")
    if names is None or not image_dir.is_dir():
        return Contents(problems=problems)
    lists = {variable: scores for variable, scores in ((_MOS, mos), (_STD, mos_std)) if scores is not None}
    if len(names) <= TRAINING_ROWS:
        problems.append(f"{_NAMES} has only {len(names)} rows; {TRAINING_ROWS} of training images come first")
    sound = check_lengths({_NAMES: names} | lists, problems) and len(lists) == 2
    if len(names) != FULL_ROWS:
        logging.info("%s: %d rows in %s; the full release has %d", TITLE, len(names), release, FULL_ROWS)
    elif sound:
        check_range(mos[TRAINING_ROWS:], *SCORES, _MOS, problems)

    files = Files(image_dir)
    _check_training_rows(names[:TRAINING_ROWS], files, Files(image_dir / "trainingImages"), problems)
    rows = range(TRAINING_ROWS + 1, len(names) + 1)
    names = names[TRAINING_ROWS:]
    labels = [place(row, name) for row, name in zip(rows, names, strict=True)]
    for variable, high, what in ((_MOS, 100, "score"), (_STD, float("inf"), "standard deviation")):
        scores = lists.get(variable, [])[TRAINING_ROWS:]
        if len(scores) == len(names):
            check_scores(scores, 0, high, problems, labels=labels, what=what)
    paths = find_images(files, names, labels, problems)
    warn_of_unlisted(TITLE, files, paths)
    if not sound:
        mos = mos_std = [NAN] * (TRAINING_ROWS + len(names))  # so that `unreadable` still sees the images
    columns = zip(rows, names, paths, mos[TRAINING_ROWS:], mos_std[TRAINING_ROWS:], strict=True)
    records = tuple(
        Record(row, name, path, mos=score, mos_raw=score, mos_std=deviation, reference=name)
        for row, name, path, score, deviation in columns
        if path is not None
    )
    return Contents(records, problems=problems)


def _check_training_rows(names: list[str], files: Files, training_files: Files, problems: list[str]) -> None:
    """The first rows are skipped, so they must be the training images."""
    missing = []
    for row, name in enumerate(names, start=1):
        try:
            training_files.find(name)
        except LookupError:
            missing.append(name)
            if name in {path.name for path in files.paths}:
                problems.append(
                    f"{place(row, name)}: the first {TRAINING_ROWS} rows must be the study's training images, but "
                    "this file lies in Images, not in Images/trainingImages"
                )
    if missing:
        logging.warning("%s: training images without a file (they are not used): %s", TITLE, listing(missing))
