"""LIVE Image Quality Assessment Database, release 2: 29 photographs in 779 versions with one of five distortions.

Each of the five folders numbers its files from 1, and the lists go through the folders in the order of `FOLDER_SIZES`:
982 entries, of which `orgs` marks those that are the undistorted photograph itself; they are left out.

The labels are the realigned differential scores (`dmos_new`: higher is worse). `mos` is 100 (b - dmos) / (b - a) with
the lowest and highest score of the release, a = -2.640 and b = 111.775, whatever part of the set is used: 0 is the
worst image and 100 the best.
"""

from pathlib import Path

from cprl_jax.data.releases._common import (
    NAN,
    Contents,
    Files,
    Record,
    check_count,
    check_range,
    check_scores,
    find_images,
    find_pristine,
    place,
    read_mat,
    warn_of_unlisted,
)

NAME = "live"
TITLE = "LIVE"
BUILDER = "LiveRelease2"
FOLDERS = ("databaserelease2",)
URL = "https://live.ece.utexas.edu/research/quality/subjective.htm"
CITATION = (
    "H. R. Sheikh, M. F. Sabir and A. C. Bovik, A Statistical Evaluation of Recent Full Reference Image Quality "
    "Assessment Algorithms, IEEE Transactions on Image Processing 15(11), 2006; H. R. Sheikh, Z. Wang, L. Cormack and "
    "A. C. Bovik, LIVE Image Quality Assessment Database Release 2."
)
HOW_TO_UNPACK = "unpack it there so that databaserelease2/dmos_realigned.mat and databaserelease2/jp2k/img1.bmp exist"
MAY_BE_IDENTICAL = ("fast-fading",)  # none are known; but two transmissions without an error would give one image
FOLDER_SIZES = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
_TYPES = {
    "jp2k": "jpeg2000",
    "jpeg": "jpeg",
    "wn": "white-noise",
    "gblur": "gaussian-blur",
    "fastfading": "fast-fading",
}
DISTORTIONS = tuple(_TYPES.values())
DISTORTED = {"jp2k": 169, "jpeg": 175, "wn": 145, "gblur": 145, "fastfading": 145}
SCENES = 29
DMOS = (-2.64002, 111.7747)  # lowest and highest of the 779 distorted images, rounded outwards

LISTS = ("dmos_realigned.mat", "dmos.mat", "refnames_all.mat")


def looks_like(folder: Path) -> bool:
    """Whether the folder holds one of the lists or `refimgs`."""
    return (folder / "refimgs").is_dir() or any((folder / name).is_file() for name in LISTS)


def read(release: Path) -> Contents:
    """Reads the lists and files; a scene is named as the file of its photograph, without `.bmp`."""
    problems: list[str] = []
    kinds = [kind for kind, size in FOLDER_SIZES.items() for _ in range(size)]
    names = [f"{kind}/img{i}.bmp" for kind, size in FOLDER_SIZES.items() for i in range(1, size + 1)]
    labels = [place(row, name) for row, name in enumerate(names, start=1)]
    paths: list[Path | None] = []
    for kind, size in FOLDER_SIZES.items():
        files = Files(release / kind)
        if files.paths:
            rows = range(len(paths), len(paths) + size)
            names_here = [f"img{i}.bmp" for i in range(1, size + 1)]
            paths += find_images(files, names_here, [labels[i] for i in rows], problems)
            warn_of_unlisted(TITLE, files, paths)
        else:
            problems.append(f"folder {kind} is missing or holds no images")
            paths += [None] * size

    lists = {
        "dmos_new": read_mat(release / "dmos_realigned.mat", "dmos_new", problems),
        "dmos_std": read_mat(release / "dmos_realigned.mat", "dmos_std", problems),
        "orgs": read_mat(release / "dmos_realigned.mat", "orgs", problems),
        "orgs of dmos.mat": read_mat(release / "dmos.mat", "orgs", problems),
        "refnames_all": read_mat(release / "refnames_all.mat", "refnames_all", problems, kind=str),
    }
    for name, values in lists.items():
        if values is not None:
            check_count(len(values), len(names), f"rows of {name}", problems)
    sound = {name: values for name, values in lists.items() if values is not None and len(values) == len(names)}
    if "orgs" not in sound:
        return Contents(problems=problems)
    other_orgs = sound.get("orgs of dmos.mat", sound["orgs"])
    for label, one, other in zip(labels, sound["orgs"], other_orgs, strict=True):
        if one != other:
            problems.append(f"{label}: dmos_realigned.mat and dmos.mat disagree on orgs ({one:g} and {other:g})")
    rated = [i for i, original in enumerate(sound["orgs"]) if not original]
    for kind, count in DISTORTED.items():
        check_count(sum(kinds[i] == kind for i in rated), count, f"distorted images of {kind}", problems)

    nan = [NAN] * len(names)  # in place of a list that is damaged, so that `unreadable` still sees the images
    dmos, dmos_std = (sound.get(name, nan) for name in ("dmos_new", "dmos_std"))
    rated_labels = [labels[i] for i in rated]
    if "dmos_new" in sound:
        scores = [dmos[i] for i in rated]
        if check_scores(scores, *DMOS, problems, labels=rated_labels, what="DMOS"):
            check_range(scores, *DMOS, "dmos_new", problems)
    if "dmos_std" in sound:
        deviations = [dmos_std[i] for i in rated]
        check_scores(deviations, 0, float("inf"), problems, labels=rated_labels, what="standard deviation")
    references = sound.get("refnames_all", [""] * len(names))
    pristine: dict[str, Path] = {}
    if "refnames_all" in sound:
        files = Files(release / "refimgs")
        pristine = find_pristine(files, references, problems)
        check_count(len(set(references)), SCENES, "scenes in refnames_all", problems)
        warn_of_unlisted(TITLE, files, pristine.values())

    best, worst = DMOS
    records = tuple(
        Record(
            row=i + 1,
            name=names[i],
            path=paths[i],
            mos=100 * (worst - dmos[i]) / (worst - best),
            mos_raw=dmos[i],
            mos_std=dmos_std[i],
            reference=Path(references[i]).stem,
            distortion=_TYPES[kinds[i]],
        )
        for i in rated
        if paths[i] is not None
    )
    return Contents(records, pristine, problems)
