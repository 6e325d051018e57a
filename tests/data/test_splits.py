"""Splits: by scene, the same everywhere, and no file that contradicts the dataset gets through."""

import dataclasses
import json

import numpy as np
import pytest

from cprl_jax.config import defaults as config_lib
from cprl_jax.data import splits
from cprl_jax.runtime.errors import UserError


@pytest.fixture
def make_distorted(make_dataset):
    """Makes a dataset of scenes, each undistorted and under three distortions with two levels."""

    def make(scenes=10, kinds=("blur", "jpeg", "noise")):
        versions = [("", 0), *((kind, level) for kind in kinds for level in (1, 2))]
        dataset = make_dataset(scenes, len(versions), size=(1, 1))
        distortions, levels = zip(*(versions * scenes), strict=True)
        return dataclasses.replace(dataset, distortions=distortions, levels=levels)

    return make


def scenes_of(dataset, names):
    return set(dataset.references[splits.rows(dataset, names)].tolist())


def distortions_of(dataset, names):
    return set(dataset.distortions[splits.rows(dataset, names)].tolist())


def every_name(split):
    return sorted([*split.train, *split.validation, *split.test])


@pytest.mark.parametrize("scenes, versions", [(10, 1), (10, 7), (3, 2), (231, 1)])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_parts_divide_the_dataset_by_scene(make_dataset, scenes, versions, seed):
    dataset = make_dataset(scenes, versions, size=(1, 1))
    split = splits.make_split(dataset, seed=seed)
    parts = [split.train, split.validation, split.test]
    assert sorted(name for part in parts for name in part) == sorted(dataset.names.tolist())
    scenes_in = [scenes_of(dataset, part) for part in parts]
    assert sum(map(len, scenes_in)) == scenes  # no scene in two parts
    assert len(scenes_in[2]) == round(0.2 * scenes)
    assert len(scenes_in[1]) == max(1, round(0.1 * (scenes - len(scenes_in[2]))))


def test_draw_depends_on_the_seed_and_the_names_alone(make_dataset):
    dataset = make_dataset(40)
    split = splits.make_split(dataset, seed=3)
    order = np.random.default_rng(0).permutation(len(dataset))
    columns = ("names", "mos", "mos_raw", "mos_std", "references", "distortions", "levels")
    shuffled = type(dataset)(
        name="toy", images=[dataset.images[i] for i in order], **{c: getattr(dataset, c)[order] for c in columns}
    )
    assert splits.make_split(shuffled, seed=3) == split
    assert splits.make_split(dataset, seed=4) != split


def test_draw_is_the_same_on_every_machine(make_dataset):
    split = splits.make_split(make_dataset(10), seed=0)
    assert split.test == GOLDEN_TEST
    assert split.validation == GOLDEN_VALIDATION


GOLDEN_TEST = ("image004.png", "image006.png")
GOLDEN_VALIDATION = ("image002.png",)


def test_test_part_does_not_depend_on_the_validation_fraction(make_dataset):
    dataset = make_dataset(30)
    with_validation = splits.make_split(dataset, seed=5, validation_fraction=0.25)
    without = splits.make_split(dataset, seed=5, validation_fraction=0)
    assert without.validation == () and without.test == with_validation.test


@pytest.mark.parametrize(
    "options, said",
    [
        ({"test_fraction": 0}, "test_fraction=0"),
        ({"test_fraction": 1.0}, "test_fraction=1"),
        ({"validation_fraction": 1}, "validation_fraction=1"),
        ({"validation_fraction": -0.1}, "validation_fraction"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_options_out_of_range(make_dataset, options, said):
    with pytest.raises(UserError, match=said):
        splits.make_split(make_dataset(), **({"seed": 0} | options))


def test_too_few_scenes(make_dataset):
    with pytest.raises(UserError, match="toy has 2 scenes, too few"):
        splits.make_split(make_dataset(2, 5), seed=0)


def test_saved_split_reads_back(make_dataset, tmp_path):
    dataset = make_dataset(10, 2)
    split = splits.make_split(dataset, seed=1)
    path = tmp_path / "run" / "split.json"
    splits.save_split(split, path)
    assert splits.load_split(path, dataset) == split
    assert list(path.parent.iterdir()) == [path]  # nothing temporary stays
    content = json.loads(path.read_text())
    assert list(content) == ["dataset", "kind", "seed", "checksum", "train", "validation", "test"]
    assert len(content["checksum"]) == 64


def test_interrupted_save_keeps_the_old_file(make_dataset, tmp_path, monkeypatch):
    split = splits.make_split(make_dataset(10), seed=1)
    path = tmp_path / "split.json"
    splits.save_split(split, path)
    before = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError):
        splits.save_split(splits.make_split(make_dataset(10), seed=2), path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def edit(content, change):
    train, validation, test = content["train"], content["validation"], content["test"]
    if change == "unknown":
        train.append("stranger.png")
    elif change == "missing":
        train.remove(train[0])
    elif change == "repeated":
        train.append(train[0])
    elif change == "overlap":
        validation.append(test[0])
    elif change == "scene leak":
        test.append(train.pop())
    elif change == "no test":
        train += test
        test.clear()
    elif change == "other dataset":
        content["dataset"] = "livec"
    elif change == "checksum":
        content["checksum"] = "0" * 64
    elif change == "no list":
        content["train"] = "all"
    elif change == "no part":
        del content["validation"]


@pytest.mark.parametrize(
    "change, said",
    [
        ("unknown", r"1 unknown to the dataset: stranger\.png"),
        ("missing", r"1 of the dataset in no part: image\d+\.png"),
        ("repeated", r"1 named more than once: image\d+\.png"),
        ("overlap", r"1 named more than once: image\d+\.png"),
        ("scene leak", r"1 scenes in more than one part: scene\d+"),
        ("no test", "the test part is empty"),
        ("other dataset", "is for dataset 'livec', not for 'toy'"),
        ("checksum", "checksum"),
        ("no list", "lists of image names"),
        ("no part", "lists of image names"),
    ],
)
def test_contradictions_are_named(make_dataset, tmp_path, change, said):
    dataset = make_dataset(10, 2)
    path = tmp_path / "split.json"
    splits.save_split(splits.make_split(dataset, seed=1), path)
    content = json.loads(path.read_text())
    edit(content, change)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as caught:
        splits.load_split(path, dataset)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_split_of_another_version_of_the_dataset(make_dataset, tmp_path):
    path = tmp_path / "split.json"
    splits.save_split(splits.make_split(make_dataset(30), seed=1), path)
    with pytest.raises(UserError, match=r"20 unknown to the dataset: image010\.png, .* and 15 more"):
        splits.load_split(path, make_dataset(10))


def test_hand_written_split(make_dataset, tmp_path):
    dataset = make_dataset(4)
    path = tmp_path / "mine.json"
    names = dataset.names.tolist()
    path.write_text(json.dumps({"dataset": "toy", "train": names[:2], "validation": [], "test": names[2:]}))
    split = splits.load_split(path, dataset)
    assert split.seed is None and split.kind == "file" and split.test == tuple(names[2:])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null"])
def test_not_a_split_file(make_dataset, tmp_path, content):
    path = tmp_path / "split.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="split file"):
        splits.load_split(path, make_dataset())


def test_no_such_file(make_dataset, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        splits.load_split(tmp_path / "absent.json", make_dataset())


def test_file_of_an_earlier_version_has_no_kind(make_dataset, tmp_path):
    dataset = make_dataset(10)
    split = splits.make_split(dataset, seed=1)
    splits.save_split(split, tmp_path / "split.json")
    content = json.loads((tmp_path / "split.json").read_text())
    del content["kind"]
    (tmp_path / "split.json").write_text(json.dumps(content))
    assert splits.load_split(tmp_path / "split.json", dataset) == split


def test_file_of_an_unknown_kind(make_dataset, tmp_path):
    dataset = make_dataset(4)
    splits.save_split(dataclasses.replace(splits.make_split(dataset, seed=1), kind="odd"), tmp_path / "split.json")
    with pytest.raises(UserError, match="is of kind 'odd'; allowed: random, official, folds"):
        splits.load_split(tmp_path / "split.json", dataset)


# ------------------------------------------------------------------------------------------------------------ folds


@pytest.mark.parametrize("scenes, versions, folds", [(10, 1, 5), (11, 3, 4), (3, 2, 3), (7, 1, 2)])
def test_folds_test_every_scene_once(make_dataset, scenes, versions, folds):
    dataset = make_dataset(scenes, versions, size=(1, 1))
    made = splits.make_folds(dataset, folds=folds, seed=2)
    assert len(made) == folds
    assert sorted(name for split in made for name in split.test) == sorted(dataset.names.tolist())
    sizes = []
    for split in made:
        assert (split.kind, split.seed) == ("folds", 2)
        assert every_name(split) == sorted(dataset.names.tolist())
        parts = [scenes_of(dataset, part) for part in (split.train, split.validation, split.test)]
        assert sum(map(len, parts)) == scenes and all(parts)
        sizes.append(len(parts[2]))
    assert max(sizes) - min(sizes) <= 1


def test_folds_depend_on_the_seed(make_dataset):
    dataset = make_dataset(12)
    assert splits.make_folds(dataset, folds=3, seed=0) == splits.make_folds(dataset, folds=3, seed=0)
    assert splits.make_folds(dataset, folds=3, seed=0) != splits.make_folds(dataset, folds=3, seed=1)


@pytest.mark.parametrize("folds", [-1, 0, 1, 11])
def test_impossible_number_of_folds(make_dataset, folds):
    with pytest.raises(UserError, match=f"folds={folds} is not allowed: 2 to 10, the number of scenes of toy"):
        splits.make_folds(make_dataset(10, 3, size=(1, 1)), folds=folds, seed=0)


# --------------------------------------------------------------------------------------------------------- official


def with_parts(dataset, parts):
    return dataclasses.replace(dataset, parts=parts)


def test_official_split_is_the_one_of_the_release(make_dataset):
    parts = ["train"] * 5 + ["test"] * 3 + ["validation"] * 2
    dataset = with_parts(make_dataset(10), parts)
    split = splits.official_split(dataset, seed=3)
    for part in splits.PARTS:
        assert list(getattr(split, part)) == dataset.names[dataset.parts == part].tolist()
    assert (split.kind, split.seed) == ("official", None)
    assert splits.official_split(dataset, seed=4) == split


def test_official_split_without_validation_draws_it_from_training_scenes(make_dataset):
    dataset = with_parts(make_dataset(20, 3, size=(1, 1)), ["train"] * 30 + ["test"] * 30)
    split = splits.official_split(dataset, seed=3)
    assert split.test == tuple(dataset.names[30:])
    assert len(split.validation) == 3 and len(scenes_of(dataset, split.validation)) == 1  # a tenth of ten scenes
    assert not scenes_of(dataset, split.train) & scenes_of(dataset, split.validation)
    assert (split.kind, split.seed) == ("official", 3)
    without = splits.official_split(dataset, seed=3, validation_fraction=0)
    assert without.validation == () and without.seed is None and without.train == tuple(dataset.names[:30])


@pytest.mark.parametrize(
    "parts, said",
    [
        ([""] * 6, r"toy has no official split \(KonIQ-10k has one"),
        (["train", "train", "test", "", "train", ""], r"2 of its 6 images to none of .*: image003\.png, image005\.png"),
        (["train"] * 4 + ["validation"] * 2, "the test part is empty"),
        (["test"] * 4 + ["validation"] * 2, "the train part is empty"),
        (["train"] * 3 + ["test"] * 3, "1 scenes in more than one part: scene1"),
        (["train"] * 2 + ["test"] * 4, "has 1 scenes, too few for 1 to validate"),
    ],
)
def test_official_splits_that_cannot_be_used(make_dataset, parts, said):
    dataset = with_parts(make_dataset(3, 2, size=(1, 1)), parts)
    with pytest.raises(UserError, match=said):
        splits.official_split(dataset, seed=0)


# ----------------------------------------------------------------------------------------- leave one distortion out


def test_leave_one_distortion_out(make_distorted):
    dataset = make_distorted()
    split = splits.leave_one_distortion_out(dataset, "jpeg", seed=1, validation_fraction=0.2)
    assert split.kind == "leave_one_distortion_out"
    assert set(split.test) == set(dataset.names[dataset.distortions == "jpeg"].tolist())
    assert every_name(split) == sorted(dataset.names.tolist())
    assert scenes_of(dataset, split.test) == set(dataset.references.tolist())  # those of training are tested
    assert not scenes_of(dataset, split.train) & scenes_of(dataset, split.validation)
    assert len(scenes_of(dataset, split.validation)) == 2
    assert distortions_of(dataset, split.train) == {"", "blur", "noise"}


def test_test_part_does_not_depend_on_the_seed_when_a_distortion_is_left_out(make_distorted):
    dataset = make_distorted()
    made = [splits.leave_one_distortion_out(dataset, "blur", seed=seed) for seed in (0, 1)]
    assert made[0].test == made[1].test and made[0].validation != made[1].validation


def test_unknown_distortion(make_distorted, make_dataset):
    for name in ("blurr", ""):
        with pytest.raises(UserError, match=f"held_out='{name}' is not a distortion of toy; it has blur, jpeg, noise$"):
            splits.leave_one_distortion_out(make_distorted(), name, seed=0)
    authentic = dataclasses.replace(make_dataset(4), distortions=[""] * 4)
    with pytest.raises(UserError, match="it names none"):
        splits.leave_one_distortion_out(authentic, "blur", seed=0)


def test_only_distortion_cannot_be_left_out(make_dataset):
    with pytest.raises(UserError, match="has 0 scenes, too few"):
        splits.leave_one_distortion_out(make_dataset(4), "blur", seed=0)


def test_saved_leave_one_out_split_reads_back(make_distorted, tmp_path):
    dataset = make_distorted()
    split = splits.leave_one_distortion_out(dataset, "jpeg", seed=1)
    splits.save_split(split, tmp_path / "split.json")
    assert splits.load_split(tmp_path / "split.json", dataset) == split


def test_only_a_leave_one_out_split_may_share_scenes(make_distorted, tmp_path):
    dataset = make_distorted()
    path = tmp_path / "split.json"
    split = splits.leave_one_distortion_out(dataset, "jpeg", seed=1)
    splits.save_split(dataclasses.replace(split, kind="file"), path)
    with pytest.raises(UserError, match="10 scenes in more than one part"):
        splits.load_split(path, dataset)
    # A tested distortion that also trains, a scene that trains and validates: neither is what the kind says.
    moved = dataclasses.replace(split, train=(*split.train, split.test[0]), test=split.test[1:])
    splits.save_split(moved, path)
    with pytest.raises(UserError, match="1 distortions tested and in another part: jpeg"):
        splits.load_split(path, dataset)
    moved = dataclasses.replace(split, train=split.train[1:], validation=(*split.validation, split.train[0]))
    splits.save_split(moved, path)
    with pytest.raises(UserError, match="1 scenes in more than one part"):
        splits.load_split(path, dataset)


# ---------------------------------------------------------------------------------------------------- configuration


def test_configuration_chooses_the_split(make_distorted, tmp_path):
    dataset = with_parts(make_distorted(), np.repeat(["train", "test"], 35))
    options = config_lib.default().dataset
    options.validation_fraction = 0.2
    assert splits.choose(options, dataset, 3) == splits.make_split(dataset, seed=3, validation_fraction=0.2)
    options.split, options.folds, options.fold = "folds", 4, 2
    assert splits.choose(options, dataset, 3) == splits.make_folds(dataset, folds=4, seed=3, validation_fraction=0.2)[2]
    options.split = "official"
    assert splits.choose(options, dataset, 3) == splits.official_split(dataset, seed=3, validation_fraction=0.2)
    options.split, options.held_out = "leave_one_distortion_out", "noise"
    chosen = splits.choose(options, dataset, 3)
    assert chosen == splits.leave_one_distortion_out(dataset, "noise", seed=3, validation_fraction=0.2)
    mine = splits.make_split(dataset, seed=9)
    splits.save_split(mine, tmp_path / "mine.json")
    options.split_file = str(tmp_path / "mine.json")
    assert splits.choose(options, dataset, 3) == mine


@pytest.mark.parametrize("fold", [-1, 5])
def test_configuration_asks_for_a_fold_that_is_not_there(make_dataset, fold):
    options = config_lib.default().dataset
    options.split, options.fold = "folds", fold
    with pytest.raises(UserError, match=f"config.dataset.fold={fold} is not allowed: 0 to 4 with folds=5"):
        splits.choose(options, make_dataset(10), 0)


def test_configuration_asks_for_an_unknown_split(make_dataset):
    options = config_lib.default().dataset
    options.split = "halves"
    with pytest.raises(UserError, match="split='halves' is not allowed; choose one of random, official, folds"):
        splits.choose(options, make_dataset(10), 0)


def test_rows(make_dataset):
    dataset = make_dataset(5)
    assert splits.rows(dataset, ["image003.png", "image000.png"]).tolist() == [3, 0]
    assert splits.rows(dataset, []).tolist() == []
    with pytest.raises(UserError, match="nobody.png"):
        splits.rows(dataset, ["image003.png", "nobody.png"])
