"""CID2013 (Camera Image Database): six image sets, 474 photographs of eight scenes by 79 cameras.

Every image set had different observers. The release realigned their scores to one scale by a further experiment; that
column is read. It runs from -9.55 to 87.88, so -10 becomes 0 and 90 becomes 100: the unit of the release is kept.
"""

import re
from pathlib import Path

from cprl_jax.data.dataset import listing
from cprl_jax.data.releases import _common, _tables

NAME = "cid2013"
TITLE = "CID2013"
BUILDER = "Cid2013"
FOLDERS = ("CID2013", "cid2013")
URL = "https://zenodo.org/records/2647033"
CITATION = (
    "T. Virtanen, M. Nuutinen, M. Vaahteranoksa, P. Oittinen and J. Hakkinen, CID2013: A Database for Evaluating "
    "No-Reference Image Quality Assessment Algorithms, IEEE Transactions on Image Processing 24(1), 2015."
)
HOW_TO_UNPACK = "unpack it there so that 'CID2013/CID2013 data - version 12112014.xlsx' and CID2013/IS1 exist"
MAY_BE_IDENTICAL = ()

SCENES = 8
SCALE = _tables.Scale(-10, 90)
SCORE_RANGE = (-9.54906, 87.88207)  # lowest and highest of the 474 published scores
# The paper counts 480 images; the release scores 474, as the fifth set has those of twelve cameras.
IMAGES = {"I": 84, "II": 78, "III": 78, "IV": 78, "V": 72, "VI": 84}
DISTORTIONS = ()

_SHEET, _NAMES, _SCORES = "CID2013 MOS", "Source_ID", "Realigned MOS"
_PATTERN = re.compile(r"IS_(I|II|III|IV|V|VI)_C0([1-8])_D(\d\d)")


def looks_like(folder: Path) -> bool:
    """Whether the folder is this release, sound or not."""
    return bool(_workbooks(folder)) or all((folder / f"IS{number}").is_dir() for number in (1, 6))


def read(release: Path) -> _common.Contents:
    """Reads the realigned scores and matches them with the files `IS<image set>/co<scene>/<Source_ID>.jpg`.

    No standard deviations: the sheet gives none for the realigned scores.
    """
    problems: list[str] = []
    workbooks = _workbooks(release)
    if len(workbooks) != 1:
        present = f"several: {listing([path.name for path in workbooks])}" if workbooks else "none"
        return _common.Contents(problems=[f"one file 'CID2013 data - version ....xlsx' is needed, found {present}"])
    (workbook,) = workbooks
    rows = _tables.read_table(workbook, (_NAMES, _SCORES), problems, sheet=_SHEET)
    if rows is None:
        return _common.Contents(problems=problems)
    listed = []
    counts = dict.fromkeys(IMAGES, 0)
    for row, cells in enumerate(rows, start=1):
        source = _tables.text(cells[_NAMES]).removesuffix(".jpg")
        parts = _PATTERN.fullmatch(source)
        if parts is None:
            problems.append(
                f"{_SHEET}, row {row}: {source!r} is not an image of this release (IS_I_C01_D01 to IS_VI_C08_D14)"
            )
            continue
        counts[parts[1]] += 1
        listed.append(_tables.Listed(row, f"{source}.jpg", _tables.number(cells[_SCORES])))
    for image_set, expected in IMAGES.items():
        _common.check_count(counts[image_set], expected, f"{_SHEET}, rows of image set {image_set}", problems)
    _tables.check_published_range([item.score for item in listed], SCALE, SCORE_RANGE, _SCORES, problems)

    tree = _Tree(release)
    records = _tables.match(listed, tree, SCALE, problems)
    for files in tree.folders.values():
        _common.warn_of_unlisted(TITLE, files, [record.path for record in records])
    return _common.Contents(records, {}, problems)


class _Tree:
    """The image files of the release, each in the folder that its name says."""

    def __init__(self, release: Path):
        self.folders = {
            (image_set, scene): _common.Files(release / f"IS{number}" / f"co{scene}")
            for number, image_set in enumerate(IMAGES, start=1)
            for scene in range(1, SCENES + 1)
        }

    def find(self, name: str) -> Path:
        """As `_common.Files.find`, of a name that fits the pattern."""
        image_set, scene = _PATTERN.match(name).groups()[:2]
        files = self.folders[image_set, int(scene)]
        try:
            return files.find(name)
        except LookupError as error:
            raise LookupError(f"{files.folder.parent.name}: {error}") from None


def _workbooks(release: Path) -> list[Path]:
    return sorted(release.glob("CID2013 data*.xlsx")) if release.is_dir() else []
