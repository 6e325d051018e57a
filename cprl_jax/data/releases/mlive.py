"""LIVE Multiply Distorted Image Quality Database (MLIVE): 15 photographs, blurred, then JPEG-compressed or made noisy.

Part 1 (blur and JPEG) and Part 2 (blur and noise) were two studies of 225 images each. Both hold the 45 images that
are only blurred, so that 405 of the 450 entries are different images. Of those 45 the entry of Part 1 is kept: the
two studies, each with its own subjects and context, differ by up to 15 in their scores of the same image.

The file names say scene and levels: `market_blur1.bmp`, `market_jpeg3.bmp`, `market_blur1_noise2.bmp`. The kind of
distortion is 'blur', 'jpeg', 'noise', 'blur-jpeg' or 'blur-noise'. The level is the one in the name, 1..3; of two, it
is their sum less one, 1..5, which grows with either of them.

The labels are differential scores on a scale of 0..100 (`DMOSscores`: higher is worse); `mos` is 100 - dmos.
"""

import re
from pathlib import Path

from cprl_jax.data.releases._common import (
    NAN,
    Contents,
    Files,
    Record,
    check_count,
    check_lengths,
    check_range,
    check_scores,
    find_images,
    find_pristine,
    place,
    read_mat,
    warn_of_unlisted,
)

NAME = "mlive"
TITLE = "MLIVE"
BUILDER = "LiveMultiplyDistorted"
FOLDERS = ("LIVEmultidistortiondatabase", "LIVEmultidistortiondatabase/To_Release", "To_Release")
URL = "https://live.ece.utexas.edu/research/Quality/live_multidistortedimage.html"
CITATION = (
    "D. Jayaraman, A. Mittal, A. K. Moorthy and A. C. Bovik, Objective Quality Assessment of Multiply Distorted "
    "Images, Asilomar Conference on Signals, Systems and Computers, 2012."
)
HOW_TO_UNPACK = (
    "unpack it there so that 'LIVEmultidistortiondatabase/Part 1/Scores.mat' exists (a folder To_Release in between "
    "may stay)"
)
MAY_BE_IDENTICAL = ()
PARTS = {"Part 1": ("blurjpeg", "jpeg"), "Part 2": ("blurnoise", "noise")}  # folder of the images, second distortion
ROWS = 225  # in each part
SCENES = 15
IMAGES = 405  # different ones
DMOS = {"Part 1": (5.0, 84.4211), "Part 2": (0.6111, 84.6667)}  # lowest and highest


def looks_like(folder: Path) -> bool:
    """Whether the folder holds one of the two parts."""
    return any((folder / part).is_dir() for part in PARTS)


def read(release: Path) -> Contents:
    """Reads both parts. In records, the rows of Part 2 count on from the last of Part 1; messages name the part."""
    problems: list[str] = []
    records: list[Record] = []
    pristine: dict[str, Path] = {}
    for part in PARTS:
        known = {record.name.lower() for record in records}
        mine, photographs = _read_part(release / part, problems)
        records += [record for record in mine if record.distortion != "blur" or record.name.lower() not in known]
        pristine = photographs | pristine
    if not problems:
        check_count(len(records), IMAGES, "different images", problems)
        check_count(len(pristine), SCENES, "scenes", problems)
    return Contents(tuple(records), pristine, problems)


def _read_part(folder: Path, problems: list[str]) -> tuple[list[Record], dict[str, Path]]:
    part = folder.name
    image_folder, second = PARTS[part]
    names = read_mat(folder / "Imagelists.mat", "distimgs", problems, kind=str)
    references = read_mat(folder / "Imagelists.mat", "refimgs", problems, kind=str)
    reference_of = read_mat(folder / "Imagelists.mat", "ref4dist", problems)
    dmos = read_mat(folder / "Scores.mat", "DMOSscores", problems)
    files = Files(folder / image_folder)
    if not files.paths:
        problems.append(f"folder {part}/{image_folder} is missing or holds no images")
    pristine = find_pristine(files, references or (), problems)
    if names is None or not files.paths:
        return [], pristine
    check_count(len(names), ROWS, f"rows of {part}/Imagelists.mat", problems)
    labels = [place(row, name, part) for row, name in enumerate(names, start=1)]
    paths = find_images(files, names, labels, problems)
    if references is not None:
        warn_of_unlisted(TITLE, files, [*paths, *pristine.values()])
    lists = {"distimgs": names, "ref4dist": reference_of, "DMOSscores": dmos}
    lists = {f"{name} of {part}": values for name, values in lists.items() if values is not None}
    if not check_lengths(lists, problems) or len(lists) < 3:
        reference_of, dmos = None, [NAN] * len(names)  # so that `unreadable` still sees the images
    elif check_scores(dmos, 0, 100, problems, labels=labels, what="DMOS"):
        check_range(dmos, *DMOS[part], f"DMOSscores of {part}", problems)

    records = []
    first_row = 1 + ROWS * list(PARTS).index(part)
    for index, (name, label, path) in enumerate(zip(names, labels, paths, strict=True)):
        parsed = re.fullmatch(rf"([^_]+)(?:_blur([1-3]))?(?:_{second}([1-3]))?\.bmp", name, re.IGNORECASE)
        if parsed is None or not (parsed[2] or parsed[3]):
            problems.append(f"{label}: the name is not SCENE_blurN_{second}N.bmp with one or both of the distortions")
            continue
        if reference_of is not None and references is not None:
            _check_reference(parsed[1], reference_of[index], references, label, problems)
        if path is None:
            continue
        levels = {kind: int(level) for kind, level in (("blur", parsed[2]), (second, parsed[3])) if level}
        records.append(
            Record(
                row=first_row + index,
                name=name,
                path=path,
                mos=100 - dmos[index],
                mos_raw=dmos[index],
                mos_std=NAN,
                reference=parsed[1],
                distortion="-".join(levels),
                level=sum(levels.values()) - len(levels) + 1,
            )
        )
    return records, pristine


def _check_reference(scene: str, number: float, references: list[str], label: str, problems: list[str]) -> None:
    """The photograph that `ref4dist` names, counted from 1, must be the one in the file's name."""
    listed = references[int(number) - 1] if number in range(1, len(references) + 1) else None
    if listed is None or Path(listed).stem.lower() != scene.lower():
        problems.append(f"{label}: ref4dist is {number:g} ({listed or 'no photograph'}), not {scene}.bmp")
