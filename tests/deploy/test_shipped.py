"""The two models of the wheel: their files, their cards, and what they are for."""

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import cprl_jax
from cprl_jax import attacks
from cprl_jax.data import scenes
from cprl_jax.deploy import sources

NAMES = ("robust", "plain")


@pytest.fixture(scope="module")
def models():
    return {name: cprl_jax.load(name) for name in NAMES}


@pytest.fixture(scope="module")
def picture():
    """A photograph without distortion, RGB in [0, 1]."""
    return scenes.make_views("astronaut", seed=0, image_size=224)[0].image.astype(np.float32) / 255


def test_they_fit_into_the_wheel_and_hold_nothing_but_three_files():
    files = [path for name in NAMES for path in (sources._SHIPPED_FOLDER / name).iterdir()]
    assert {path.name for path in files} == {"model.safetensors", "config.json", "README.md"}
    assert sum(path.stat().st_size for path in files) < 10e6


@pytest.mark.parametrize("name", NAMES)
def test_the_card_has_the_terms_of_the_data_the_numbers_and_the_failures(name, models):
    card = models[name].card
    for text in ("The University of Texas at Austin", "pgd", "make weights DATA=DIR", "labelled", "LIVE-C"):
        assert text in card, text
    assert not any(word in card for word in ("/work", "/home", "/root"))


@pytest.mark.parametrize("name", NAMES)
def test_blur_costs_a_picture_points(name, models, picture):
    scores = np.asarray(models[name](np.stack([picture, ndimage.gaussian_filter(picture, (2, 2, 0))])))
    assert np.isfinite(scores).all() and scores[1] < scores[0] - 3, scores


@pytest.mark.slow
def test_a_file_is_scored_as_its_pixels(models, picture, tmp_path):
    pixels = np.uint8(np.round(picture * 255))
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    for model in models.values():
        # Files are resized in 8 bits.
        np.testing.assert_allclose(model.score([tmp_path / "photo.png"]), model(pixels[None]), atol=0.5)


@pytest.mark.slow
def test_the_robust_one_moves_less_under_attack(models, picture):
    image, moved = jax.numpy.asarray(picture[None]), {}
    for name, model in models.items():
        result = attacks.pgd(model.score_fn, image, radius=1 / 255, direction=attacks.down(), steps=5)
        moved[name] = float(result.before[0] - result.after[0])
    assert 0 <= moved["robust"] < 0.6 * moved["plain"], moved
