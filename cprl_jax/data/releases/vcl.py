"""VCL@FER: 23 photographs, four distortions at six levels, as the official archive and results.xls give them.

The MOS is 0..100, higher is better. The photographs may lie beside the distorted images or in a separate folder,
and the names vary in case. As the archive has no list of names but the one in results.xls, whose other columns
differ between copies, that table is read by what it holds: a column with the header `MOS` beside one of image names.
"""

import re
from pathlib import Path

from absl import logging

from cprl_jax.data.releases import _common, _tables

NAME = "vcl"
TITLE = "VCL@FER"
BUILDER = "Vcl"
FOLDERS = ("vcl_fer", "VCL@FER", "vlc@fer", "VCL_FER", "VCLFER")
URL = "https://www.vcl.fer.hr/quality/vclfer.html"
CITATION = (
    "A. Zaric, N. Tatalovic, N. Brajkovic, H. Hlevnjak, M. Loncaric, E. Dumic and S. Grgic, VCL@FER Image Quality "
    "Assessment Database, Automatika 53(4), 2012."
)
HOW_TO_UNPACK = (
    "unpack it there, with results.xls beside it, so that vcl_fer/IMG_01_AWGN_1.bmp (or one folder deeper) and "
    "vcl_fer/results.xls exist"
)
MAY_BE_IDENTICAL = ()

SCENES, LEVELS = 23, 6
SCALE = _tables.Scale(0, 100)
SCORE_RANGE = (1.5659, 96.5232)  # lowest and highest of the 552 published scores

# By the letters in the file names, with the abbreviations of the papers' tables.
ABBREVIATIONS = {"white-noise": "AWGN", "gaussian-blur": "BLUR", "jpeg2000": "J2K", "jpeg": "JPG"}
DISTORTIONS = tuple(ABBREVIATIONS)

_RESULTS = ("results.csv", "results.xlsx", "results.xls")  # an export has precedence over what it was made from
_TYPES = {"AWGN": "white-noise", "BLU": "gaussian-blur", "J2K": "jpeg2000", "JPG": "jpeg"}
_PATTERN = re.compile(r"(IMG_(\d\d))_(AWGN|BLU|J2K|JPG)_(\d)")
_SCORE_HEADERS = ("mos", "mean opinion score")
_STD_HEADERS = ("std", "sd", "stdev", "std. dev.", "mos std", "standard deviation")


def looks_like(folder: Path) -> bool:
    """Whether the folder is this release, sound or not."""
    return any((folder / name).is_file() for name in _RESULTS) or any(_image_folders(folder))


def read(release: Path) -> _common.Contents:
    """Reads the results and matches them with the files.

    `mos` is the release's MOS. Names in the dataset are the file names in capitals and without suffix.
    """
    problems: list[str] = []
    path = next(filter(None, (_tables.find_inside(release, name) for name in _RESULTS)), None)
    if path is None:
        return _common.Contents(problems=["results.xls (or .xlsx or .csv) is missing"])
    logging.info("%s: reading the scores of %s", TITLE, path)
    sheets = _tables.read_sheets(path, problems)
    if sheets is None:
        return _common.Contents(problems=problems)
    rows = next(filter(None, map(_scores, sheets.values())), None)
    if rows is None:
        problems.append(
            f"{path.name} has no column with the header MOS beside one of image names such as IMG_01_AWGN_1; save "
            "the names and scores as results.csv with the header image,MOS"
        )
        return _common.Contents(problems=problems)
    listed = []
    for row, (name, score, std) in enumerate(rows, start=1):
        parts = _PATTERN.fullmatch(_stem(name))
        if parts is None or not 1 <= int(parts[2]) <= SCENES or not 1 <= int(parts[4]) <= LEVELS:
            problems.append(
                f"{path.name}, row {row}: {name!r} is not an image of this release (IMG_01_AWGN_1 to IMG_23_JPG_6)"
            )
            continue
        scores = (_tables.number(score), None if std is None else _tables.number(std))
        listed.append(_tables.Listed(row, parts[0], *scores, parts[1], _TYPES[parts[3]], int(parts[4])))

    folders = _image_folders(release)
    if not folders:
        problems.append(f"no image named like IMG_01_AWGN_1.bmp in {release.name} or a folder in it")
        return _common.Contents(problems=problems)
    images = _ByStem(folders)
    records = _tables.match(listed, images, SCALE, problems)
    scenes = [f"IMG_{scene:02}" for scene in range(1, SCENES + 1)]
    pristine = _common.find_pristine(images, scenes, problems)
    expected = [f"{scene}_{kind}_{level}" for kind in _TYPES for scene in scenes for level in range(1, LEVELS + 1)]
    _tables.check_complete([item.name for item in listed], expected, path.name, problems)
    _tables.check_published_range([item.score for item in listed], SCALE, SCORE_RANGE, path.name, problems)
    _tables.check_direction(listed, problems)
    used = [*(record.path for record in records), *pristine.values()]
    for folder in folders:
        _common.warn_of_unlisted(TITLE, folder, used)
    return _common.Contents(records, pristine, problems)


class _ByStem:
    """The image files of several folders by name without suffix; the first folder that has one counts."""

    def __init__(self, folders: list[_common.Files]):
        self._paths = {_stem(path.name): path for files in reversed(folders) for path in reversed(files.paths)}

    def find(self, name: str) -> Path:
        """As `_common.Files.find`, of a name as `_stem` gives it."""
        if name not in self._paths:
            raise LookupError("no such image file")
        return self._paths[name]


def _stem(name: str) -> str:
    """An image's name in capitals, without suffix; blur has two spellings."""
    stem = re.sub(r"\.(bmp|jpe?g|png)$", "", name.strip(), flags=re.IGNORECASE)
    return stem.upper().replace("_BLUR_", "_BLU_")


def _image_folders(release: Path) -> list[_common.Files]:
    """The release and the folders in it, as far as they hold images with names of this release."""
    folders = [_common.Files(folder) for folder in (release, *_tables.folders_of(release))]
    return [folder for folder in folders if any(re.match(r"IMG_\d\d", path.name.upper()) for path in folder.paths)]


def _scores(rows: list[list[_tables.Cell]]) -> list[tuple[str, _tables.Cell, _tables.Cell]] | None:
    """Name, score and deviation (None without such a column) of each distorted image in a sheet; None if it has none.

    What is not the name of an image (titles, means, the undistorted photographs, which some copies list) is left out.
    """
    for index, row in enumerate(rows):
        headers = [_tables.text(cell).lower() for cell in row]
        score = next((i for i, header in enumerate(headers) if header in _SCORE_HEADERS), None)
        std = next((i for i, header in enumerate(headers) if header in _STD_HEADERS), None)
        if score is None:
            continue
        width = max(map(len, rows))
        below = [row + [""] * (width - len(row)) for row in rows[index + 1 :]]
        for column in range(width):
            named = [cells for cells in below if re.match(r"IMG_\d\d_", _tables.text(cells[column]).upper())]
            if named:
                return [
                    (_tables.text(cells[column]), cells[score], None if std is None else cells[std]) for cells in named
                ]
    return None
