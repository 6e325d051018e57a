"""TID2013 (Tampere Image Database): 25 photographs, 24 distortions at five levels, as the official archive unpacks.

The MOS comes from pairwise comparisons, nominally 0..9, higher is better. Names are spelled with `I` or `i`, `.BMP` or
`.bmp`, differently in the lists and on disk.
"""

import re
from pathlib import Path

from cprl_jax.data.dataset import listing
from cprl_jax.data.releases import _common, _tables

NAME = "tid2013"
TITLE = "TID2013"
BUILDER = "Tid2013"
FOLDERS = ("tid2013", "TID2013")
URL = "https://www.ponomarenko.info/tid2013.htm"
CITATION = (
    "N. Ponomarenko, L. Jin, O. Ieremeiev, V. Lukin, K. Egiazarian, J. Astola, B. Vozel, K. Chehdi, M. Carli, "
    "F. Battisti and C.-C. J. Kuo, Image database TID2013: Peculiarities, results and perspectives, Signal Processing: "
    "Image Communication 30, 2015."
)
HOW_TO_UNPACK = "unpack it there so that tid2013/mos_with_names.txt and tid2013/distorted_images exist"
MAY_BE_IDENTICAL = ()

SCENES, LEVELS = 25, 5
SCALE = _tables.Scale(0, 9)
SCORE_RANGE = (0.24242, 7.21429)  # lowest and highest of the 3000 published scores

# By the number in the file names, from 1; with the abbreviations of the papers' tables. What is of the same kind as one
# of KADID-10k's has its name, although the recipes differ.
ABBREVIATIONS = {
    "white-noise": "AGN",
    "white-noise-color-component": "ANC",
    "spatially-correlated-noise": "SCN",
    "masked-noise": "MN",
    "high-frequency-noise": "HFN",
    "impulse-noise": "IN",
    "quantization-noise": "QN",
    "gaussian-blur": "GB",
    "denoise": "DEN",
    "jpeg": "JPEG",
    "jpeg2000": "JP2K",
    "jpeg-transmission-errors": "JGTE",
    "jpeg2000-transmission-errors": "J2TE",
    "non-eccentricity-patch": "NEPN",
    "color-block": "BLOCK",
    "mean-shift": "MS",
    "contrast-change": "CTC",
    "color-saturation": "CCS",
    "multiplicative-noise": "MGN",
    "comfort-noise": "CN",
    "noisy-compression": "LCNI",
    "dithered-palette": "ICQD",
    "chromatic-aberration": "CHA",
    "sparse-sampling": "SSR",
}
DISTORTIONS = tuple(ABBREVIATIONS)

_SCORES, _DEVIATIONS = "mos_with_names.txt", "mos_std.txt"
_PATTERN = re.compile(r"i(\d\d)_(\d\d)_(\d)\.bmp", re.IGNORECASE)


def looks_like(folder: Path) -> bool:
    """Whether the folder is this release, sound or not."""
    return (folder / _SCORES).is_file() or (folder / "distorted_images").is_dir()


def read(release: Path) -> _common.Contents:
    """Reads both lists and matches them with the files.

    `mos` is 100/9 of the release's MOS, `mos_std` stays on the scale of the release.
    """
    problems: list[str] = []
    rows = _read_words(release / _SCORES, 2, problems)
    deviations = _read_words(release / _DEVIATIONS, 1, problems)
    if rows is None:
        return _common.Contents(problems=problems)
    lists = {_SCORES: rows} | ({_DEVIATIONS: deviations} if deviations is not None else {})
    if not _common.check_lengths(lists, problems):
        deviations = None
    listed = []
    for row, (score, name) in enumerate(rows, start=1):
        numbers = _tables.numbers(_PATTERN, name, (SCENES, len(DISTORTIONS), LEVELS))
        if numbers is None:
            problems.append(
                f"{_SCORES}, row {row}: {name!r} is not an image of this release (i01_01_1.bmp to i25_24_5.bmp)"
            )
            continue
        scene, distortion, level = numbers
        std = None if deviations is None else _tables.number(deviations[row - 1][0])
        reference = f"I{scene:02}"
        score = _tables.number(score)
        listed.append(_tables.Listed(row, name, score, std, reference, DISTORTIONS[distortion - 1], level))

    images, references = _common.Files(release / "distorted_images"), _common.Files(release / "reference_images")
    records = _tables.match(listed, images, SCALE, problems)
    scenes = [f"I{scene:02}.BMP" for scene in range(1, SCENES + 1)]
    pristine = _common.find_pristine(references, scenes, problems)
    expected = [
        f"i{scene:02}_{distortion:02}_{level}.bmp"
        for scene in range(1, SCENES + 1)
        for distortion in range(1, len(DISTORTIONS) + 1)
        for level in range(1, LEVELS + 1)
    ]
    _tables.check_complete([item.name for item in listed], expected, _SCORES, problems)
    _tables.check_published_range([item.score for item in listed], SCALE, SCORE_RANGE, _SCORES, problems)
    _tables.check_direction(listed, problems)
    _common.warn_of_unlisted(TITLE, images, [record.path for record in records])
    _common.warn_of_unlisted(TITLE, references, pristine.values())
    return _common.Contents(records, pristine, problems)


def _read_words(path: Path, count: int, problems: list[str]) -> list[list[str]] | None:
    """The words of each line that is not empty; None and a problem if they are not `count` everywhere."""
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return None
    lines = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    wrong = [row for row, words in enumerate(lines, start=1) if len(words) not in (0, count)]
    if wrong:
        expected = "a score and a name" if count == 2 else "one number"
        problems.append(f"{path.name} does not hold {expected} in line {listing(wrong)}")
        return None
    return [words for words in lines if words]
