"""Which images train, validate and test: by scene, saved as a file that a person can read and reuse.

No scene is in two parts, with one exception: `leave_one_distortion_out` tests a distortion that training never saw, on
the scenes that training did see. `Split.kind` says which it is.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cprl_jax.data.dataset import QualityDataset, listing
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path, write_file

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PARTS = ("train", "validation", "test")
SPLITS = ("random", "official", "folds", "leave_one_distortion_out")
KINDS = (*SPLITS, "file")


@dataclasses.dataclass(frozen=True)
class Split:
    """The names of a dataset's images, each in exactly one of three parts.

    Attributes:
      dataset: the name of the dataset.
      seed: seed of the draw; None if nothing was drawn.
      train: names of the images that train, sorted; `validation` chooses the best checkpoint and may be empty.
      kind: how it was made, one of `KINDS`; 'file' is one written by hand. In a split of the kind
        'leave_one_distortion_out' the test part shares its scenes with the others, in any other it does not.
    """

    dataset: str
    seed: int | None
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    kind: str = "random"


def choose(config_dataset: "ConfigDict", dataset: QualityDataset, seed: int) -> Split:
    """The split that `config.dataset` describes: `split_file` where there is one, else what `split` asks for.

    Args:
      config_dataset: `split_file`; `split`, one of `SPLITS`; `test_fraction` (random), `folds` and `fold` (folds),
        `held_out` (leave_one_distortion_out); `validation_fraction` (all).
      dataset: the dataset to divide.
      seed: non-negative integer.

    Raises:
      UserError: a field out of range, or what `load_split` or the function of that kind of split finds wrong.
    """
    options = {"seed": seed, "validation_fraction": config_dataset.validation_fraction}
    if config_dataset.split_file:
        return load_split(config_dataset.split_file, dataset)
    if config_dataset.split == "random":
        return make_split(dataset, test_fraction=config_dataset.test_fraction, **options)
    if config_dataset.split == "official":
        return official_split(dataset, **options)
    if config_dataset.split == "leave_one_distortion_out":
        return leave_one_distortion_out(dataset, config_dataset.held_out, **options)
    if config_dataset.split == "folds":
        made = make_folds(dataset, folds=config_dataset.folds, **options)
        if not 0 <= config_dataset.fold < len(made):
            raise UserError(
                f"config.dataset.fold={config_dataset.fold} is not allowed: 0 to {len(made) - 1} with folds={len(made)}"
                " (-1, all of them in turn, is only for the jobs that train or evaluate methods)"
            )
        return made[config_dataset.fold]
    raise UserError(f"config.dataset.split={config_dataset.split!r} is not allowed; choose one of {', '.join(SPLITS)}")


def difference(split: Split, config_dataset: "ConfigDict", dataset: QualityDataset, *, seed: int) -> str:
    """What a person has changed since `choose` made a split for the same arguments; '' for nothing.

    Only where a person says which image is in which part: in `split_file`, which may be gone by now, or in the release
    or CSV file (official). Raises as `choose`.
    """
    file = config_dataset.split_file
    if not (os.path.exists(user_path(file, field="config.dataset.split_file")) if file else split.kind == "official"):
        return ""
    before, now = (
        {name: part for part in PARTS for name in getattr(version, part)}
        for version in (split, choose(config_dataset, dataset, seed=seed))
    )
    moved = sorted(name for name, part in now.items() if before.get(name) != part)
    if not moved:
        return ""
    first = f"{moved[0]!r} is in the part {before.get(moved[0], 'none')}"
    others = f" ({len(moved)} images in all)" if len(moved) > 1 else ""
    source = f"config.dataset.split_file={file}" if file else "the official split, or the column split"
    return f"{first}, and in {now[moved[0]]} by {source}{others}"


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
    scenes = _shuffled(dataset.references, seed)
    test_count = max(1, round(test_fraction * len(scenes)))
    return _in_order(dataset, scenes, test_count, validation_fraction, seed=seed, kind="random")


def make_folds(
    dataset: QualityDataset, *, folds: int, seed: int, validation_fraction: float = 0.1
) -> tuple[Split, ...]:
    """Cross-validation: as many splits as folds, in which every scene is tested exactly once.

    Folds differ by at most one scene in size. As in `make_split`, the draw depends on the seed and the scenes alone.

    Args:
      dataset: the dataset to divide.
      folds: 2 or more, at most the number of scenes; 5 trains and tests 4:1.
      seed: non-negative integer.
      validation_fraction: share of the scenes that a split does not test, in [0, 1), that chooses the best checkpoint.

    Raises:
      UserError: a fraction out of range, a negative seed, fewer than two folds, or too few scenes.
    """
    scenes = _shuffled(dataset.references, seed)
    if not 2 <= folds <= len(scenes):
        raise UserError(f"folds={folds} is not allowed: 2 to {len(scenes)}, the number of scenes of {dataset.name}")
    bounds = [fold * len(scenes) // folds for fold in range(folds + 1)]
    return tuple(
        _in_order(dataset, scenes[start:] + scenes[:start], end - start, validation_fraction, seed=seed, kind="folds")
        for start, end in itertools.pairwise(bounds)
    )


def official_split(dataset: QualityDataset, *, seed: int, validation_fraction: float = 0.1) -> Split:
    """The split that the release prescribes, or the column `split` of a user's CSV file (`dataset.parts`).

    Where it has no validation part, whole scenes are drawn from its training part for it.

    Args:
      dataset: the dataset to divide.
      seed: seed of that draw, a non-negative integer.
      validation_fraction: share of the training scenes to draw, in [0, 1).

    Raises:
      UserError: a dataset without such a split, an image without a part, an empty train or test part, a scene in two
        parts, or too few scenes to draw from.
    """
    parts = dataset.parts
    if not (parts != "").any():
        raise UserError(
            f"{dataset.name} has no official split (KonIQ-10k has one, and so have your own images if their CSV file "
            "has a column split); set config.dataset.split to random, folds or leave_one_distortion_out"
        )
    wrong = dataset.names[~np.isin(parts, PARTS)].tolist()
    if wrong:
        raise UserError(
            f"{dataset.name} assigns {len(wrong)} of its {len(dataset)} images to none of {', '.join(PARTS)}: "
            f"{listing(wrong)}; give each image a part, or set config.dataset.split to random or folds"
        )
    drawn = "validation" not in parts and validation_fraction != 0
    if drawn:
        parts = _with_validation(dataset, parts, validation_fraction, seed=seed)
    split = _split(dataset, parts, seed=seed if drawn else None, kind="official")
    _check(split, dataset, source="the official split")
    return split


def leave_one_distortion_out(
    dataset: QualityDataset, held_out: str, *, seed: int, validation_fraction: float = 0.1
) -> Split:
    """Tests on all images of one distortion and trains on those of all others (Zhu et al., MetaIQA, CVPR 2020).

    Training sees the scenes that are tested, under other distortions: the split asks how well a model does on an unseen
    distortion, not on unseen scenes. Undistorted images stay with the other distortions. Validation is drawn from what
    is not tested, by scene.

    Args:
      dataset: the dataset to divide.
      held_out: name of the distortion to test, as in `dataset.distortions`.
      seed: seed of the validation part, a non-negative integer.
      validation_fraction: share of the scenes, in [0, 1), whose images (but for those of `held_out`) validate.

    Raises:
      UserError: no such distortion, no other image to train on, a fraction out of range, a negative seed or too few
        scenes.
    """
    present = sorted(set(dataset.distortions.tolist()) - {""})
    if held_out not in present:
        raise UserError(
            f"config.dataset.held_out={held_out!r} is not a distortion of {dataset.name}; "
            + (f"it has {', '.join(present)}" if present else "it names none: choose another config.dataset.split")
        )
    parts = np.where(dataset.distortions == held_out, "test", "train")
    parts = _with_validation(dataset, parts, validation_fraction, seed=seed)
    split = _split(dataset, parts, seed=seed, kind="leave_one_distortion_out")
    _check(split, dataset, source=f"the split without {held_out}")
    return split


def save_split(split: Split, path: str | os.PathLike) -> None:
    """Writes the split as JSON, one name a line, with a checksum of the names it divides."""
    content = {"dataset": split.dataset, "kind": split.kind, "seed": split.seed}
    content["checksum"] = _checksum([*split.train, *split.validation, *split.test])
    content |= {part: list(getattr(split, part)) for part in PARTS}
    write_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_split(path: str | os.PathLike, dataset: QualityDataset) -> Split:
    """Reads a saved or hand-written split and checks it against the dataset.

    `kind`, `seed` and `checksum` may be missing from a hand-written file; names may be moved between the parts by hand.
    Scenes may be in two parts only if `kind` is 'leave_one_distortion_out' and no distortion is tested and trained.

    Raises:
      UserError: no such file, not such a JSON file, made for another dataset, or the parts do not divide the dataset's
        images: a name unknown, missing, repeated or in two parts, an empty train or test part, a scene in two parts.
    """
    path = user_path(path, field="the split file")
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
    seed = content.get("seed")
    # Before there were other kinds, only the random ones had a seed.
    kind = content.get("kind", "file" if seed is None else "random")
    if kind not in KINDS:
        raise UserError(f"split file {path} is of kind {kind!r}; allowed: {', '.join(KINDS)}")
    split = Split(dataset.name, seed, *(tuple(content[part]) for part in PARTS), kind=kind)
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
    leave_one_out = split.kind == "leave_one_distortion_out"
    distortion_of_name = dict(zip(dataset.names.tolist(), dataset.distortions.tolist(), strict=True))
    parts_of_scene: dict[str, set[str]] = {}
    parts_of_distortion: dict[str, set[str]] = {}
    for part in PARTS:
        for name in getattr(split, part):
            if name not in reference_of_name or named[name] > 1:
                continue
            parts_of_distortion.setdefault(distortion_of_name[name], set()).add(part)
            if not (leave_one_out and part == "test"):
                parts_of_scene.setdefault(reference_of_name[name], set()).add(part)
    report([scene for scene, parts in parts_of_scene.items() if len(parts) > 1], "scenes in more than one part")
    if leave_one_out:
        tested = {distortion for distortion, parts in parts_of_distortion.items() if "test" in parts}
        also = [distortion for distortion in tested if parts_of_distortion[distortion] != {"test"}]
        report([distortion or "none" for distortion in also], "distortions tested and in another part")
    problems += [f"the {part} part is empty" for part in ("train", "test") if not getattr(split, part)]
    if problems:
        raise UserError(f"{source} does not divide the {len(dataset)} images of {dataset.name}: {'; '.join(problems)}")


def _shuffled(references: np.ndarray, seed: int) -> list[str]:
    """The scenes in a random order that depends on the seed and their names alone."""
    if seed < 0:
        raise UserError(f"seed={seed} is not allowed; it is 0 or larger")
    scenes = np.unique(references)  # sorted
    return scenes[np.random.Generator(np.random.PCG64(seed)).permutation(len(scenes))].tolist()


def _validation_count(scenes: int, fraction: float) -> int:
    """How many of so many scenes validate: the nearest number to the fraction, at least one unless that is 0."""
    if not 0 <= fraction < 1:
        raise UserError(f"validation_fraction={fraction} is not allowed; it is a share in [0, 1)")
    return max(1, round(fraction * scenes)) if fraction > 0 else 0


def _in_order(
    dataset: QualityDataset, scenes: list[str], test_count: int, validation_fraction: float, *, seed: int, kind: str
) -> Split:
    """The first `test_count` scenes test, the next ones validate, the rest trains."""
    validation_count = _validation_count(len(scenes) - test_count, validation_fraction)
    if test_count + validation_count >= len(scenes):
        raise UserError(
            f"{dataset.name} has {len(scenes)} scenes, too few for {test_count} to test, {validation_count} to "
            "validate and one to train; add scenes or lower the fractions"
        )
    parts = np.full(len(dataset), "train", dtype="U10")
    parts[np.isin(dataset.references, scenes[:test_count])] = "test"
    parts[np.isin(dataset.references, scenes[test_count : test_count + validation_count])] = "validation"
    return _split(dataset, parts, seed=seed, kind=kind)


def _with_validation(dataset: QualityDataset, parts: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """The same part for every image, but some scenes of the training part validate."""
    training = parts == "train"
    scenes = _shuffled(dataset.references[training], seed)
    count = _validation_count(len(scenes), fraction)
    if count >= len(scenes):
        raise UserError(
            f"the training part of {dataset.name} has {len(scenes)} scenes, too few for {count} to validate and one to "
            "train; lower validation_fraction or set it to 0"
        )
    return np.where(training & np.isin(dataset.references, scenes[:count]), "validation", parts)


def _split(dataset: QualityDataset, parts: np.ndarray, *, seed: int | None, kind: str) -> Split:
    """The split in which row i of the dataset is in parts[i]."""
    names = {part: tuple(sorted(dataset.names[parts == part].tolist())) for part in PARTS}
    return Split(dataset=dataset.name, seed=seed, kind=kind, **names)


def _is_list_of_names(value) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _checksum(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(str(name) for name in names)).encode()).hexdigest()
