"""Splits: by scene, the same everywhere, and no file that contradicts the dataset gets through."""

import json

import numpy as np
import pytest

from cprl_jax.data import splits
from cprl_jax.errors import UserError


@pytest.mark.parametrize("scenes, versions", [(10, 1), (10, 7), (3, 2), (231, 1)])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_parts_divide_the_dataset_by_scene(make_dataset, scenes, versions, seed):
    dataset = make_dataset(scenes, versions, size=(1, 1))
    split = splits.make_split(dataset, seed=seed)
    parts = [split.train, split.validation, split.test]
    assert sorted(name for part in parts for name in part) == sorted(dataset.names.tolist())
    scenes_of = [set(dataset.references[splits.rows(dataset, part)].tolist()) for part in parts]
    assert sum(map(len, scenes_of)) == scenes  # no scene in two parts
    assert len(scenes_of[2]) == round(0.2 * scenes)
    assert len(scenes_of[1]) == max(1, round(0.1 * (scenes - len(scenes_of[2]))))


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
    assert list(content) == ["dataset", "seed", "checksum", "train", "validation", "test"]
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
    assert split.seed is None and split.test == tuple(names[2:])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null"])
def test_not_a_split_file(make_dataset, tmp_path, content):
    path = tmp_path / "split.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="split file"):
        splits.load_split(path, make_dataset())


def test_no_such_file(make_dataset, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        splits.load_split(tmp_path / "absent.json", make_dataset())


def test_rows(make_dataset):
    dataset = make_dataset(5)
    assert splits.rows(dataset, ["image003.png", "image000.png"]).tolist() == [3, 0]
    assert splits.rows(dataset, []).tolist() == []
    with pytest.raises(UserError, match="nobody.png"):
        splits.rows(dataset, ["image003.png", "nobody.png"])
