"""Near-duplicates: altered copies of photographs are found, different photographs and flat images are not."""

import dataclasses
import io
import itertools
import logging as standard_logging
import math
import time

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from cprl_jax.data import near_duplicates, splits
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.near_duplicates import NO_STRUCTURE
from cprl_jax.data.scenes import PHOTOGRAPHS, photograph_path

FEW = 8  # bits, in which copies may differ in the largest of sets


@pytest.fixture(scope="module")
def photographs():
    """Photographs that come with scikit-image, by name."""
    return {
        name: np.array(Image.open(photograph_path(file)).convert("RGB").reduce(factor))
        for name, (file, factor, _) in PHOTOGRAPHS.items()
    }


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


def resized(image, factor):
    size = round(image.shape[1] * factor), round(image.shape[0] * factor)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def as_uint8(values):
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


COPIES = {
    "jpeg 60": lambda image: jpeg(image, 60),
    "jpeg 30": lambda image: jpeg(image, 30),
    "half the size": lambda image: resized(image, 0.5),
    "stretched": lambda image: np.array(Image.fromarray(image).resize((150, 100), Image.Resampling.BICUBIC)),
    "brighter": lambda image: as_uint8(image.astype(float) + 20),
    "more contrast": lambda image: as_uint8(1.2 * (image - 128.0) + 128),
    "gamma": lambda image: as_uint8(255 * (image / 255) ** 0.8),
    "blurred": lambda image: as_uint8(scipy.ndimage.gaussian_filter(image.astype(float), (1, 1, 0))),
    "noisy": lambda image: as_uint8(image + np.random.default_rng(0).normal(0, 10, image.shape)),
    "grey": lambda image: np.array(Image.fromarray(image).convert("L").convert("RGB")),
}


def bits_between(first, second):
    ((_, _, bits),) = near_duplicates.close_pairs(np.array([first]), np.array([second]), most_bits=64)
    return bits


@pytest.mark.parametrize("copy", COPIES)
def test_altered_copies_are_found(photographs, copy):
    for name, image in photographs.items():
        hashes = near_duplicates.image_hash(image), near_duplicates.image_hash(COPIES[copy](image))
        assert bits_between(*hashes) <= FEW, name


def test_different_photographs_are_not(photographs):
    hashes = [near_duplicates.image_hash(image) for image in photographs.values()]
    for first, second in itertools.combinations(hashes, 2):
        assert bits_between(first, second) > 14


def test_different_views_of_one_photograph_are_not(photographs):
    image = photographs["astronaut"]
    views = [near_duplicates.image_hash(image[y : y + 128, x : x + 128]) for y in (0, 128) for x in (0, 128)]
    assert all(bits_between(*pair) > 14 for pair in itertools.combinations(views, 2))


def test_bits_are_the_signs_of_the_cosine_transform():
    """A picture of 32 x 32 pixels is not reduced: the sums of the definition, term by term."""
    image = np.repeat(np.random.default_rng(1).integers(0, 256, (32, 32, 1), dtype=np.uint8), 3, axis=-1)
    value = int(near_duplicates.image_hash(image))
    places = (np.arange(32) + 0.5) * np.pi / 32
    for v, u in itertools.product(range(1, 9), range(1, 9)):
        coefficient = np.cos(v * places) @ image[..., 0].astype(float) @ np.cos(u * places)
        assert (value >> (8 * (v - 1) + u - 1)) & 1 == (coefficient > 0)


def test_hash_of_a_mirrored_image_follows_from_the_image_s_own(photographs):
    for image in photographs.values():
        own, turned = near_duplicates.image_hash(image), near_duplicates.image_hash(image[:, ::-1])
        assert np.bitwise_count(near_duplicates.mirror(own) ^ turned) <= 1  # a coefficient next to 0
        assert near_duplicates.mirror(near_duplicates.mirror(own)) == own
        assert bits_between(own, turned) > FEW
    assert near_duplicates.mirror(NO_STRUCTURE) == NO_STRUCTURE


@pytest.mark.parametrize("kind", ["flat", "flat and noisy", "gradient"])
def test_images_without_structure_are_like_no_other(kind):
    random = np.random.default_rng(0)
    image = np.full((200, 300, 3), 120.0)
    if kind == "flat and noisy":
        image += random.normal(0, 5, image.shape)
    elif kind == "gradient":
        image += np.linspace(-100, 100, 200)[:, None, None]
    value = near_duplicates.image_hash(as_uint8(image))
    assert value == NO_STRUCTURE
    assert len(near_duplicates.close_pairs(np.array([value]), np.array([value]), most_bits=64)) == 0


def test_pairs_equal_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_BLOCK", 1000)  # several blocks
    random = np.random.default_rng(0)
    first = random.integers(1, 2**64, 300, dtype=np.uint64)
    second = np.concatenate([first[:20] ^ np.uint64(0b1011), random.integers(1, 2**64, 50, dtype=np.uint64)])
    second[40], first[7] = NO_STRUCTURE, NO_STRUCTURE
    expected = []
    for i, j in itertools.product(range(len(first)), range(len(second))):
        bits = (int(first[i]) ^ int(second[j])).bit_count()
        if NO_STRUCTURE not in (first[i], second[j]) and bits <= 20:
            expected.append([bits, i, j])
    pairs = near_duplicates.close_pairs(first, second, most_bits=20)
    assert pairs.tolist() == [[i, j, bits] for bits, i, j in sorted(expected)]
    assert len(pairs) >= 19


def test_a_large_set_takes_less_than_a_second():
    random = np.random.default_rng(0)
    first, second = (random.integers(1, 2**64, count, dtype=np.uint64) for count in (10_000, 2_000))
    started = time.process_time()
    near_duplicates.close_pairs(first, second, most_bits=9)
    assert time.process_time() - started < 3  # seconds; three times what is promised, for slow machines


@pytest.mark.parametrize("pairs, bits", [(930 * 232, 12), (8058 * 2015, 9), (1, 14), (10**12, 8)])
def test_bits_that_chance_leaves(pairs, bits):
    assert near_duplicates.chance_bits(pairs) == bits
    if 8 < bits < 14:  # as counted with whole numbers
        expected = [pairs * sum(math.comb(64, k) for k in range(most + 1)) / 2**64 for most in (bits, bits + 1)]
        assert expected[0] <= 0.1 < expected[1]


def test_empty_sides():
    some = np.array([1, 2], np.uint64)
    for first, second in ((some, some[:0]), (some[:0], some)):
        assert near_duplicates.close_pairs(first, second, most_bits=64).shape == (0, 3)


# ------------------------------------------------------------------------------------------------------------ splits


def dataset_of(images, *, references=None, distortions=None, levels=None):
    count = len(images)
    names = list(images)
    return QualityDataset(
        name="toy",
        images=list(images.values()),
        names=names,
        mos=np.full(count, 50.0),
        mos_raw=np.full(count, 50.0),
        mos_std=np.full(count, np.nan),
        references=references or names,
        distortions=distortions or [""] * count,
        levels=levels or [0] * count,
    )


def split_of(train, test, validation=(), kind="file"):
    return splits.Split("toy", None, tuple(train), tuple(validation), tuple(test), kind=kind)


@pytest.fixture
def leaky(photographs):
    images = {name: photographs[name] for name in ("astronaut", "chelsea", "coffee", "rocket")}
    images["cat again"] = jpeg(resized(photographs["chelsea"], 0.7), 40)
    images["rocket again"] = photographs["rocket"]
    images["moon"] = photographs["moon"]
    return dataset_of(images)


def test_pairs_across_a_split(leaky):
    split = split_of(["astronaut", "chelsea", "rocket"], ["coffee", "moon", "cat again"], ["rocket again"])
    pairs = near_duplicates.pairs_across(leaky, split, progress=False)
    # That training and validation both show rocket does not matter.
    assert [(seen, tested) for seen, tested, _ in pairs] == [("chelsea", "cat again")]
    split = split_of(["astronaut", "coffee", "moon"], ["rocket", "chelsea"], ["rocket again", "cat again"])
    pairs = near_duplicates.pairs_across(leaky, split, progress=False)
    assert pairs[0] == ("rocket again", "rocket", 0) and pairs[1][:2] == ("cat again", "chelsea") and len(pairs) == 2
    split = split_of(["coffee", "chelsea"], ["astronaut", "moon", "cat again"], ["rocket", "rocket again"])
    assert len(near_duplicates.pairs_across(leaky, split, most_bits=64, progress=False)) == 4 * 3


def test_mirrored_copies_are_found_where_asked_for(photographs):
    dataset = dataset_of({"cat": photographs["chelsea"], "turned": jpeg(photographs["chelsea"][:, ::-1].copy(), 30)})
    split = split_of(["cat"], ["turned"])
    assert near_duplicates.pairs_across(dataset, split, progress=False) == []
    ((seen, tested, bits),) = near_duplicates.pairs_across(dataset, split, mirrored=True, progress=False)
    assert (seen, tested) == ("cat", "turned") and bits <= FEW


def test_one_warning_tells_all(leaky, caplog):
    split = split_of(["astronaut", "coffee", "rocket", "chelsea"], ["rocket again", "cat again", "moon"])
    with caplog.at_level(standard_logging.WARNING, logger="absl"):
        pairs = near_duplicates.warn_of_near_duplicates(leaky, split, progress=False)
    (record,) = caplog.records
    text = record.getMessage()
    assert "toy: 2 of 3 test images (66.7 %)" in text and "\n" not in text
    assert "rocket ~ rocket again (0 bits); chelsea ~ cat again" in text and len(pairs) == 2


def test_no_warning_where_there_is_nothing_to_tell(leaky, caplog):
    split = split_of(["astronaut", "coffee", "rocket", "rocket again"], ["chelsea", "cat again", "moon"])
    with caplog.at_level(standard_logging.WARNING, logger="absl"):
        assert near_duplicates.warn_of_near_duplicates(leaky, split, progress=False) == []
    assert not caplog.records


def test_leave_one_distortion_out_shares_its_scenes_and_is_not_looked_at(leaky):
    split = split_of(["chelsea"], ["cat again"], kind="leave_one_distortion_out")
    dataset = dataclasses.replace(leaky, images=[None] * len(leaky))
    assert near_duplicates.pairs_across(dataset, split) == []


def test_of_versions_the_mildest_stands_for_its_scene(photographs):
    """Two scenes that show the same photograph, each in several versions: one pair, of their mildest ones."""
    cat, rocket = photographs["chelsea"], photographs["rocket"]
    unseen = [None] * 2  # would fail if it were looked at
    images = {"a-2": unseen[0], "a-1": cat, "b-1": jpeg(cat, 50), "b-2": unseen[1], "c": rocket, "c-1": unseen[0]}
    dataset = dataset_of(
        images,
        references=["a", "a", "b", "b", "c", "c"],
        distortions=["blur", "blur", "jpeg", "jpeg", "", "blur"],
        levels=[2, 1, 1, 2, 0, 1],
    )
    split = split_of(["a-1", "a-2", "c", "c-1"], ["b-1", "b-2"])
    (pair,) = near_duplicates.pairs_across(dataset, split, progress=False)
    assert pair[:2] == ("a-1", "b-1")


def test_all_test_versions_of_a_leaked_scene_count(photographs, caplog):
    cat = photographs["chelsea"]
    dataset = dataset_of({"a": cat, "b": cat, "b blurred": cat}, references=["a", "b", "b"], levels=[0, 0, 3])
    with caplog.at_level(standard_logging.WARNING, logger="absl"):
        near_duplicates.warn_of_near_duplicates(dataset, split_of(["a"], ["b", "b blurred"]), progress=False)
    assert "2 of 2 test images (100.0 %)" in caplog.records[0].getMessage()
