"""Which images train, validate and test: drawn by scene, saved as a file that a person can read and reuse."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cprl_jax.data.dataset import QualityDataset, listing
from cprl_jax.data.files import write_file
from cprl_jax.errors import UserError

PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """The names of a dataset's images, each in exactly one of three parts; `seed` is None if none made it."""

    dataset: str
    seed: int | None
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def make_split(
    dataset: QualityDataset, *, seed: int, test_fraction: float = 0.2, validation_fraction: float = 0.1
) -> Split:
    """Draws whole scenes for the test and validation parts; the rest trains.

    Fractions count scenes and are rounded to the nearest number of them. The draw depends on the seed and the names of
    the scenes alone, not on the order of the files or the machine.

    Args:
      dataset: the dataset to divide.
      seed: non-negative integer.
      test_fraction: share of all scenes that is held out, in (0, 1); 0.2 is the 4:1 split of the field.
      validation_fraction: share of the scenes that are *not* held out, in [0, 1), that chooses the best checkpoint.

    Raises:
      UserError: a fraction out of range, a negative seed, or too few scenes for every part to get one.
    """
    if not 0 < test_fraction < 1:
        raise UserError(f"test_fraction={test_fraction} is not allowed; it is a share in (0, 1), such as 0.2")
    if not 0 <= validation_fraction < 1:
        raise UserError(f"validation_fraction={validation_fraction} is not allowed; it is a share in [0, 1)")
    if seed < 0:
        raise UserError(f"seed={seed} is not allowed; it is 0 or larger")
    scenes = np.unique(dataset.references)  # sorted
    test_count = max(1, round(test_fraction * len(scenes)))
    validation_count = round(validation_fraction * (len(scenes) - test_count))
    if validation_fraction > 0:
        validation_count = max(1, validation_count)
    if test_count + validation_count >= len(scenes):
        raise UserError(
            f"{dataset.name} has {len(scenes)} scenes, too few for {test_count} to test, {validation_count} to "
            "validate and one to train; add scenes or lower the fractions"
        )
    shuffled = scenes[np.random.Generator(np.random.PCG64(seed)).permutation(len(scenes))].tolist()
    part_of_scene = dict.fromkeys(shuffled, "train")
    part_of_scene |= dict.fromkeys(shuffled[:test_count], "test")
    part_of_scene |= dict.fromkeys(shuffled[test_count : test_count + validation_count], "validation")
    part_of_image = np.array([part_of_scene[scene] for scene in dataset.references.tolist()])
    names = {part: tuple(sorted(dataset.names[part_of_image == part].tolist())) for part in PARTS}
    return Split(dataset=dataset.name, seed=seed, **names)


def save_split(split: Split, path: str | os.PathLike) -> None:
    """Writes the split as JSON, one name a line, with a checksum of the names it divides."""
    content = {"dataset": split.dataset, "seed": split.seed}
    content["checksum"] = _checksum([*split.train, *split.validation, *split.test])
    content |= {part: list(getattr(split, part)) for part in PARTS}
    write_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_split(path: str | os.PathLike, dataset: QualityDataset) -> Split:
    """Reads a saved or hand-written split and checks it against the dataset.

    `seed` and `checksum` may be missing from a hand-written file; names may be moved between the parts by hand.

    Raises:
      UserError: no such file, not such a JSON file, made for another dataset, or the parts do not divide the dataset's
        images: a name unknown, missing, repeated or in two parts, an empty train or test part, a scene in two parts.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"split file {path} cannot be read ({error.strerror}); pass a split.json of a run") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"split file {path} is not JSON ({error}); pass a split.json of a run") from None
    if not isinstance(content, dict) or not all(_is_list_of_names(content.get(part)) for part in PARTS):
        raise UserError(f"split file {path} must hold an object with lists of image names {', '.join(PARTS)}")
    if content.get("dataset") != dataset.name:
        raise UserError(f"split file {path} is for dataset {content.get('dataset')!r}, not for {dataset.name!r}")
    split = Split(dataset.name, content.get("seed"), *(tuple(content[part]) for part in PARTS))
    _check(split, dataset, source=f"split file {path}")
    if content.get("checksum", _checksum(dataset.names)) != _checksum(dataset.names):
        raise UserError(
            f"split file {path}: its checksum is not that of its names; restore the file or, if the names are as you "
            "want them, delete the checksum from it"
        )
    return split


def rows(dataset: QualityDataset, names: Sequence[str]) -> np.ndarray:
    """The row numbers of images, in the order of their names.

    Raises:
      UserError: a name that the dataset does not have.
    """
    row_of_name = {name: row for row, name in enumerate(dataset.names.tolist())}
    unknown = [name for name in names if name not in row_of_name]
    if unknown:
        raise UserError(f"{dataset.name} has no images of these names: {listing(unknown)}")
    return np.array([row_of_name[name] for name in names], dtype=np.int32)


def _check(split: Split, dataset: QualityDataset, *, source: str) -> None:
    named = Counter(name for part in PARTS for name in getattr(split, part))
    reference_of_name = dict(zip(dataset.names.tolist(), dataset.references.tolist(), strict=True))
    problems = []

    def report(names: Sequence[str], what: str) -> None:
        if names:
            problems.append(f"{len(names)} {what}: {listing(sorted(names))}")

    report([name for name in named if name not in reference_of_name], "unknown to the dataset")
    report([name for name in reference_of_name if name not in named], "of the dataset in no part")
    report([name for name, count in named.items() if count > 1], "named more than once")
    parts_of_scene: dict[str, set[str]] = {}
    for part in PARTS:
        for name in getattr(split, part):
            if name in reference_of_name and named[name] == 1:
                parts_of_scene.setdefault(reference_of_name[name], set()).add(part)
    report([scene for scene, parts in parts_of_scene.items() if len(parts) > 1], "scenes in more than one part")
    problems += [f"the {part} part is empty" for part in ("train", "test") if not getattr(split, part)]
    if problems:
        raise UserError(f"{source} does not divide the {len(dataset)} images of {dataset.name}: {'; '.join(problems)}")


def _is_list_of_names(value) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _checksum(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(str(name) for name in names)).encode()).hexdigest()
