"""Several data sets as one, and images of one size or at several scales."""

import numpy as np
import pytest

from cprl_jax.data.combined import at_scales, combine, resize
from cprl_jax.data.dataset import QualityDataset


def make(name, shapes, *, distortions):
    rng = np.random.default_rng(len(name))
    count = len(shapes)
    return QualityDataset(
        name=name,
        images=[rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes],
        names=[f"i{number}" for number in range(count)],
        mos=np.arange(count) * 10,
        mos_raw=np.arange(count),
        mos_std=np.full(count, np.nan),
        references=["a"] * (count - 1) + ["b"],
        distortions=distortions,
        levels=[1] * count,
        parts=[""] * count,
        pristine={"a": rng.integers(0, 256, (*shapes[0], 3), dtype=np.uint8)},
    )


@pytest.fixture
def sets():
    return [
        make("first", [(8, 6), (5, 5)], distortions=["jpeg", ""]),
        make("second", [(4, 4), (4, 8), (9, 9)], distortions=["jpeg", "blur", "blur"]),
    ]


def test_images_follow_each_other(sets):
    both = combine(sets)
    assert both.name == "first+second" and len(both) == 5
    expected = [*sets[0].images, *sets[1].images]
    for row in range(-5, 5):
        np.testing.assert_array_equal(both.images[row], expected[row])
    with pytest.raises(IndexError):
        both.images[5]
    np.testing.assert_array_equal(both.mos, [0, 10, 0, 10, 20])


def test_names_scenes_and_distortions_belong_to_their_set(sets):
    both = combine(sets)
    assert both.names.tolist() == ["first/i0", "first/i1", "second/i0", "second/i1", "second/i2"]
    assert both.references.tolist() == ["first/a", "first/b", "second/a", "second/a", "second/b"]
    assert both.distortions.tolist() == ["first/jpeg", "", "second/jpeg", "second/blur", "second/blur"]


def test_pristine_photographs_are_found_by_the_new_names(sets):
    both = combine(sets)
    assert list(both.pristine) == ["first/a", "second/a"] and len(both.pristine) == 2
    np.testing.assert_array_equal(both.pristine["second/a"], sets[1].pristine["a"])


def test_every_image_is_brought_to_the_size(sets):
    small = resize(sets[1], 4, cache_gib=1.0)
    assert [image.shape for image in small.images] == [(4, 4, 3)] * 3
    np.testing.assert_array_equal(small.images[0], sets[1].images[0])  # it had that size
    assert small.pristine["a"].shape == (4, 4, 3)
    assert small.names.tolist() == sets[1].names.tolist() and small.images[1] is small.images[1]


def test_shrinking_averages_and_does_not_drop_pixels(sets):
    checker = np.zeros((16, 16, 3), np.uint8)
    checker[::2, ::2] = checker[1::2, 1::2] = 255
    sets[0].images[0] = checker
    middle = resize(sets[0], 4, cache_gib=1.0).images[0][1:3, 1:3]
    assert np.abs(middle.astype(int) - 128).max() <= 2


def test_every_image_comes_at_every_scale_with_its_label(sets):
    scaled = at_scales(sets[1], [2, 1], (1.0, 0.5), cache_gib=1.0)
    assert [image.shape for image in scaled.images] == [(9, 9, 3), (4, 4, 3), (4, 8, 3), (2, 4, 3)]
    np.testing.assert_array_equal(scaled.images[0], sets[1].images[2])
    assert scaled.names.tolist() == ["1/i2", "0.5/i2", "1/i1", "0.5/i1"]
    assert scaled.mos.tolist() == [20, 20, 10, 10] and scaled.references.tolist() == ["b", "b", "a", "a"]


def test_a_ramp_at_half_the_scale_is_a_ramp_of_twice_the_slope(sets):
    sets[0].images[0] = np.broadcast_to(10 * np.arange(16, dtype=np.uint8)[:, None], (16, 16, 3)).copy()
    (half,) = at_scales(sets[0], [0], (0.5,), cache_gib=0.0).images
    expected = 10 * (2 * np.arange(8) + 0.5)  # in the middle of two pixels
    assert np.abs(half[:, 1:-1] - expected[None, 1:-1, None]).max() <= 1
