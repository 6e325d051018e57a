"""Every entry of the registry: fidelity falls level by level, and any picture is taken."""

import zlib

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cprl_jax.data.distortions import DISTORTIONS, LEVELS, distort
from cprl_jax.data.scenes import photograph_path

PHOTOGRAPHS = {"astronaut.png": (96, 0, 384, 288), "coffee.png": (150, 40, 438, 328)}  # a box in each


@pytest.fixture(scope="module", params=PHOTOGRAPHS)
def photograph(request):
    with Image.open(photograph_path(request.param)) as opened:
        small = opened.convert("RGB").resize((96, 96), Image.Resampling.LANCZOS, box=PHOTOGRAPHS[request.param])
    return np.asarray(small)


# The parameters of these pass through a value that changes nothing.
TWO_SIDED = ["kadid/contrast-change", "kadid/mean-shift"]
# The published parameter of the first level changes nothing, or less than rounding does.
FIRST_LEVEL_IS_THE_IMAGE = ["kadid/gaussian-blur", "kadid/motion-blur", "kadid/color-saturation-2"]
# Colours that are far from their place are as unlike the structure there as those still farther: measured by PSNR.
BY_ERROR = ["kadid/color-shift"]
ONE_SIDED = [name for name, distortion in DISTORTIONS.items() if not distortion.two_sided]


@pytest.mark.parametrize("name", ONE_SIDED)
def test_fidelity_falls_level_by_level(name, photograph):
    def fidelity(image):
        if name in BY_ERROR:
            return peak_signal_noise_ratio(photograph, image)
        return structural_similarity(photograph, image, channel_axis=-1)

    ladder = [fidelity(distort(photograph, name, level=level, key=3)) for level in LEVELS]
    assert np.all(np.diff(ladder) < 0), ladder
    if name not in (*FIRST_LEVEL_IS_THE_IMAGE, *BY_ERROR):
        assert ladder[0] < 1


def test_what_is_two_sided_is_named():
    assert sorted(set(DISTORTIONS) - set(ONE_SIDED)) == TWO_SIDED


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("shape", [(16, 16), (17, 33)])
def test_small_and_odd_pictures(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for picture in (rng.integers(0, 256, (*shape, 3), dtype=np.uint8), np.full((*shape, 3), 77, np.uint8)):
        before = picture.copy()
        for level in (1, 5):
            result = distort(picture, name, level=level, key=[1, level])
            assert result.dtype == np.uint8 and result.shape == picture.shape
        np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_equal_keys_give_equal_images(name):
    picture = np.random.default_rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        distort(picture, name, level=3, key=[2, 7]), distort(picture, name, level=3, key=[2, 7])
    )
