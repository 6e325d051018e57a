"""Which pictures there are, and that photographs are found without a network."""

import hashlib
import importlib.machinery
import importlib.util

import numpy as np
import pytest

from cprl_jax.data import scenes
from cprl_jax.runtime.errors import UserError


def test_scene_names():
    names = scenes.scene_names(64)
    assert len(set(names)) == 64 and set(scenes.PHOTOGRAPHS) < set(names)
    for fewer in (1, 5, 30):
        assert scenes.scene_names(fewer) == names[:fewer]
    assert len(set(scenes.scene_names(300))) == 300


@pytest.mark.parametrize("image_size", [32, 112, 128, 256])
def test_every_photograph_gives_views(image_size):
    for scene, (_, _, most_views) in scenes.PHOTOGRAPHS.items():
        views = scenes.make_views(scene, seed=0, image_size=image_size)
        assert 1 <= len(views) <= most_views
        assert [view.name for view in views] == [f"{scene}-{number}" for number in range(1, len(views) + 1)]
        for view in views:
            assert view.scene == scene and view.image.dtype == np.uint8
            assert view.image.shape == (image_size, image_size, 3)
        assert len({view.image.tobytes() for view in views}) == len(views)


@pytest.mark.parametrize("image_size", [32, 64])
def test_undistorted_pictures_use_the_range(image_size):
    for scene in scenes.scene_names(8):
        for view in scenes.make_views(scene, seed=0, image_size=image_size):
            darkest, brightest = np.percentile(view.image.mean(axis=2), [1, 99])
            assert darkest < 40 and brightest > 215, view.name


def test_seed_changes_procedural_scenes_alone():
    for scene, differs in (("camera", False), ("leaves-01", True), ("text-02", True)):
        first, again, other = (scenes.make_views(scene, seed=seed, image_size=32)[0].image for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert np.array_equal(first, other) != differs


def test_photograph_golden():
    """PNG decoding and whole-number arithmetic alone: the same bytes everywhere."""
    views = scenes.make_views("camera", seed=0, image_size=112)
    digest = hashlib.sha256(b"".join(view.image.tobytes() for view in views)).hexdigest()
    assert digest == "b53e5430c32045046e94a4148aa8dcd6f62033db70abc3fab1abb1e9484ab0f8"


def test_shrink_and_stretch():
    image = np.random.default_rng(0).integers(0, 256, (13, 11, 3), dtype=np.uint8)
    expected = np.floor(image[:12, :9].reshape(4, 3, 3, 3, 3).mean(axis=(1, 3)) + 0.5)
    np.testing.assert_array_equal(scenes._shrink(image, 3), expected)
    faded = (100 + image // 8).astype(np.uint8)
    stretched = scenes._stretch(faded)
    assert np.percentile(stretched.mean(axis=2), 2) < 40 and np.percentile(stretched.mean(axis=2), 98) > 215
    np.testing.assert_array_equal(scenes._stretch(np.full((9, 9, 3), 70, np.uint8)).std(), 0)


def test_without_photographs(monkeypatch, tmp_path):
    empty = importlib.machinery.ModuleSpec("skimage", None, is_package=True)
    empty.submodule_search_locations = [str(tmp_path)]
    for spec in (empty, None):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(UserError, match="astronaut.png is not in.*pip install") as caught:
            scenes.make_views("astronaut", seed=0, image_size=32)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 31}, "image_size=31.*32 to 256"),
        ({"image_size": 257}, "image_size=257.*32 to 256"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=message):
        scenes.make_views("camera", **({"seed": 0, "image_size": 32} | arguments))


@pytest.mark.parametrize("scene", ["lena", "leaves", "leaves-", "leaves-x", ""])
def test_unknown_scene(scene):
    with pytest.raises(ValueError, match="unknown scene.*astronaut.*leaves"):
        scenes.make_views(scene, seed=0, image_size=32)


def test_no_scenes():
    with pytest.raises(UserError, match="scenes=0"):
        scenes.scene_names(0)
