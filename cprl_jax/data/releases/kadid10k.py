"""KADID-10k (Konstanz Artificially Distorted Image quality Database): 81 photographs, 25 distortions, five levels.

The column `dmos` of the release is in truth a mean opinion score: 1..5, higher is better. `var` is the variance of the
opinions on that scale.
"""

import math
import re
from pathlib import Path

import numpy as np

from cprl_jax.data.releases import _common, _tables

NAME = "kadid10k"
TITLE = "KADID-10k"
BUILDER = "Kadid10k"
FOLDERS = ("kadid10k", "KADID-10k", "KADID10K")
URL = "https://database.mmsp-kn.de/kadid-10k-database.html"
CITATION = (
    "H. Lin, V. Hosu and D. Saupe, KADID-10k: A Large-scale Artificially Distorted IQA Database, International "
    "Conference on Quality of Multimedia Experience (QoMEX), 2019."
)
HOW_TO_UNPACK = "unpack it there so that kadid10k/dmos.csv and kadid10k/images exist"
# Not known to be, but what changes colours alone may leave a grey scene as it is.
MAY_BE_IDENTICAL = ("color-diffusion", "color-shift", "color-saturation-1", "color-saturation-2")

SCENES, LEVELS = 81, 5
SCALE = _tables.Scale(1, 5)
SCORE_RANGE = (1.0, 4.93)  # lowest and highest of the 10 125 published scores

# By the number in the file names, from 1; with the abbreviations of the papers' tables.
ABBREVIATIONS = {
    "gaussian-blur": "GB",
    "lens-blur": "LB",
    "motion-blur": "MB",
    "color-diffusion": "CD",
    "color-shift": "CS",
    "color-quantization": "CQ",
    "color-saturation-1": "CSA1",
    "color-saturation-2": "CSA2",
    "jpeg2000": "JP2K",
    "jpeg": "JPEG",
    "white-noise": "WN",
    "white-noise-color-component": "WNCC",
    "impulse-noise": "IN",
    "multiplicative-noise": "MN",
    "denoise": "DENOISE",
    "brighten": "BRIGHTEN",
    "darken": "DARKEN",
    "mean-shift": "MS",
    "jitter": "JITTER",
    "non-eccentricity-patch": "NEP",
    "pixelate": "PIXELATE",
    "quantization": "QUANTIZATION",
    "color-block": "CB",
    "high-sharpen": "HS",
    "contrast-change": "CC",
}
DISTORTIONS = tuple(ABBREVIATIONS)

_SCORES = "dmos.csv"
_PATTERN = re.compile(r"i(\d\d)_(\d\d)_(\d\d)\.png", re.IGNORECASE)


def looks_like(folder: Path) -> bool:
    """Whether the folder is this release, sound or not."""
    return (folder / _SCORES).is_file()


def read(release: Path) -> _common.Contents:
    """Reads `dmos.csv` and matches it with the files.

    `mos` is the column `dmos` with 1..5 mapped linearly to 0..100, `mos_std` the root of `var`, on the release's scale.
    """
    problems: list[str] = []
    if not (release / _SCORES).is_file():
        return _common.Contents(problems=[f"{_SCORES} is missing"])
    rows = _tables.read_table(release / _SCORES, ("dist_img", "ref_img", "dmos", "var"), problems)
    if rows is None:
        return _common.Contents(problems=problems)
    listed, labels, variances = [], [], []
    for row, cells in enumerate(rows, start=1):
        name, reference = _tables.text(cells["dist_img"]), _tables.text(cells["ref_img"])
        numbers = _tables.numbers(_PATTERN, name, (SCENES, len(DISTORTIONS), LEVELS))
        if numbers is None:
            problems.append(
                f"{_SCORES}, row {row}: {name!r} is not an image of this release (I01_01_01.png to I81_25_05.png)"
            )
            continue
        scene, distortion, level = numbers
        score, variance = _tables.number(cells["dmos"]), _tables.number(cells["var"])
        std = math.sqrt(variance) if variance >= 0 else None
        scene = f"I{scene:02}"
        item = _tables.Listed(row, name, score, std, scene, DISTORTIONS[distortion - 1], level)
        if reference.lower() != f"{scene}.png".lower():
            problems.append(f"{item.place}: its reference is given as {reference!r}, not as {scene}.png")
        listed.append(item)
        labels.append(item.place)
        variances.append(variance)
    _common.check_scores(variances, 0, np.inf, problems, labels=labels, what="variance")

    images = _common.Files(release / "images")
    records = _tables.match(listed, images, SCALE, problems)
    scenes = [f"I{scene:02}" for scene in range(1, SCENES + 1)]
    pristine = _common.find_pristine(images, [f"{scene}.png" for scene in scenes], problems)
    expected = [
        f"{scene}_{distortion:02}_{level:02}.png"
        for scene in scenes
        for distortion in range(1, len(DISTORTIONS) + 1)
        for level in range(1, LEVELS + 1)
    ]
    _tables.check_complete([item.name for item in listed], expected, _SCORES, problems)
    _tables.check_published_range([item.score for item in listed], SCALE, SCORE_RANGE, _SCORES, problems)
    _tables.check_direction(listed, problems)
    _common.warn_of_unlisted(TITLE, images, [*(record.path for record in records), *pristine.values()])
    return _common.Contents(records, pristine, problems)
