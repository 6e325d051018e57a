"""KonIQ-10k: 10 073 photographs from the web, authentic distortions, rated by crowdsourcing.

The scores file has two labels: `MOS`, 1..5, and `MOS_zscore`, 0..100, which corrects for how each person uses the
scale. In `koniq10k_distributions_sets.csv`, which the authors publish with their code, the column `MOS` holds the
0..100 label; only the official split (`set`) is read from it.
"""

from pathlib import Path

import numpy as np
from absl import logging

from cprl_jax.config.field import Field
from cprl_jax.data.dataset import listing
from cprl_jax.data.releases import _common, _tables

NAME = "koniq"
TITLE = "KonIQ-10k"
BUILDER = "Koniq"
FOLDERS = ("koniq10k", "KonIQ-10k", "koniq-10k", "koniq")
URL = "https://database.mmsp-kn.de/koniq-10k-database.html"
CITATION = (
    "V. Hosu, H. Lin, T. Sziranyi and D. Saupe, KonIQ-10k: An Ecologically Valid Database for Deep Learning of Blind "
    "Image Quality Assessment, IEEE Transactions on Image Processing 29, 2020."
)
HOW_TO_UNPACK = (
    "unpack the archives of the scores and of the images (1024x768 or 512x384) there so that "
    "koniq10k/koniq10k_scores_and_distributions.csv and koniq10k/1024x768 exist"
)
MAY_BE_IDENTICAL = ("",)  # none are known; but the photographs are uploads of many people

ROWS = 10_073
FOLDERS_OF_IMAGES = ("1024x768", "512x384")  # the first that exists is read
SCALES = {"zscore": ("MOS_zscore", _tables.Scale(0, 100)), "mos": ("MOS", _tables.Scale(1, 5))}
OPTIONS = {
    "koniq_scores": Field("zscore", "koniq: MOS_zscore, or 'mos' (1..5, stretched to 0..100)", choices=tuple(SCALES))
}
SCORE_RANGE = (1.096, 4.310)  # lowest and highest of the published MOS, 1..5
PARTS = {"training": ("train", 7058), "validation": ("validation", 1000), "test": ("test", 2015)}
DISTORTIONS = ()

_SCORES, _SETS = "koniq10k_scores_and_distributions.csv", "koniq10k_distributions_sets.csv"
_VOTES = ("c1", "c2", "c3", "c4", "c5")  # how many people chose each score


def looks_like(folder: Path) -> bool:
    """Whether the folder is this release, sound or not."""
    return any(_tables.find_inside(folder, name) for name in (_SCORES, _SETS))


def read(release: Path, koniq_scores: str = OPTIONS["koniq_scores"].default) -> _common.Contents:
    """Reads the scores, and the official split if its file exists, and matches them with the files.

    Files may lie in the release or in one folder below, as each archive unpacks.

    Args:
      koniq_scores: 'zscore' for the column `MOS_zscore`, already 0..100; its standard deviations are not given (NaN),
        as `SD` is on the scale of the other. 'mos' for the column `MOS`, 1..5 mapped linearly to 0..100, with `SD`.

    Raises:
      UserError: another value of `koniq_scores`.
    """
    OPTIONS["koniq_scores"].check("config.dataset.koniq_scores", koniq_scores)
    problems: list[str] = []
    scores_path = _tables.find_inside(release, _SCORES)
    if scores_path is None:
        hint = f": {_SETS} has other scores and does not replace it" if _tables.find_inside(release, _SETS) else ""
        return _common.Contents(problems=[f"{_SCORES} is missing{hint}"])
    rows = _tables.read_table(scores_path, ("image_name", "MOS", "SD", "MOS_zscore"), problems, optional=_VOTES)
    if rows is None:
        return _common.Contents(problems=problems)
    _common.check_count(len(rows), ROWS, f"{_SCORES}, rows", problems)
    parts = _read_parts(release, problems)
    column, scale = SCALES[koniq_scores]
    listed = []
    for row, cells in enumerate(rows, start=1):
        name = _tables.text(cells["image_name"])
        std = _tables.number(cells["SD"]) if koniq_scores == "mos" else None
        part = parts.get(name.lower(), "")
        listed.append(_tables.Listed(row, name, _tables.number(cells[column]), std, part=part))
    if parts:
        unlisted = sorted(parts.keys() - {item.name.lower() for item in listed})
        without = [item.name for item in listed if item.name.lower() not in parts]
        problems += [f"{_SETS} lists images that {_SCORES} does not: {listing(unlisted)}"] if unlisted else []
        problems += [f"{_SETS} does not list {len(without)} images: {listing(without)}"] if without else []

    folder = next(filter(None, (_tables.find_inside(release, name) for name in FOLDERS_OF_IMAGES)), None)
    files = _common.Files(folder or release / FOLDERS_OF_IMAGES[0])
    if folder is None:
        problems.append(f"folder {' or '.join(FOLDERS_OF_IMAGES)} is missing")
    elif folder.name != FOLDERS_OF_IMAGES[0]:
        logging.info("%s: no folder %s; reading the images of %s", TITLE, FOLDERS_OF_IMAGES[0], folder)
    if _rescaled(rows, problems):
        if folder:
            _common.find_images(files, [item.name for item in listed], [item.place for item in listed], problems)
        return _common.Contents(problems=problems)
    _check_votes(rows, column, problems)
    mos = [_tables.number(cells["MOS"]) for cells in rows]
    _tables.check_published_range(mos, SCALES["mos"][1], SCORE_RANGE, f"{_SCORES}, column MOS", problems)
    records = _tables.match(listed, files, scale, problems) if folder else ()
    _common.warn_of_unlisted(TITLE, files, [record.path for record in records])
    return _common.Contents(records, {}, problems)


def _read_parts(release: Path, problems: list[str]) -> dict[str, str]:
    """The part that the official split gives each image, by lower-case name; empty if there is no such file."""
    path = _tables.find_inside(release, _SETS)
    if path is None:
        logging.info("%s: no %s, so there is no official split", TITLE, _SETS)
        return {}
    rows = _tables.read_table(path, ("image_name", "set"), problems) or []
    parts = {}
    for row, cells in enumerate(rows, start=1):
        name, part = _tables.text(cells["image_name"]), _tables.text(cells["set"]).lower()
        label = _common.place(row, name, _SETS)
        if part not in PARTS:
            problems.append(f"{label}: the set is {part!r}, not one of {', '.join(PARTS)}")
        if name.lower() in parts:
            problems.append(f"{label}: listed before")
        parts[name.lower()] = PARTS.get(part, ("", 0))[0]
    for part, count in PARTS.values() if rows else ():
        _common.check_count(list(parts.values()).count(part), count, f"{_SETS}, images of the {part} set", problems)
    return parts


def _rescaled(rows: list[dict[str, _tables.Cell]], problems: list[str]) -> bool:
    """Whether the 1..5 column holds 0..100 instead: one problem rather than one for each row."""
    mos = np.array([_tables.number(cells["MOS"]) for cells in rows])
    mos = mos[np.isfinite(mos)]
    if not mos.size or np.median(mos) <= SCALES["mos"][1].best:
        return False
    problems.append(
        f"{_SCORES}: the column MOS runs from {mos.min():g} to {mos.max():g}, the 0..100 scale of {_SETS}; the scores "
        "file of the release has 1..5 there, unpack it again"
    )
    return True


def _check_votes(rows: list[dict[str, _tables.Cell]], column: str, problems: list[str]) -> None:
    """The labels must go with the mean of the votes that the same rows give (counts or shares)."""
    if not rows or any(name not in rows[0] for name in _VOTES):
        return
    votes = np.array([[_tables.number(cells[name]) for name in _VOTES] for cells in rows])
    scores = np.array([_tables.number(cells[column]) for cells in rows])
    total = votes.sum(axis=1)
    whole = np.isfinite(scores) & (total > 0)
    if whole.sum() < 2:
        return
    mean = votes[whole] @ np.arange(1, 6) / total[whole]
    if np.cov(mean, scores[whole])[0, 1] < 0:
        problems.append(
            f"the labels look flipped: the column {column} falls where the votes (c1 to c5) rise, but higher must be "
            "better; take the scores of the release as they are"
        )
