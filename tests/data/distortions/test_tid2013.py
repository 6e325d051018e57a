"""The distortions of TID2013: PSNR of the levels, and what characterises each."""

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from cprl_jax.data.distortions import LEVELS, _wavelets, distort, tid2013
from cprl_jax.data.scenes import photograph_path

NOISES = [tid2013.spatially_correlated_noise, tid2013.masked_noise, tid2013.high_frequency_noise]
# How far from the PSNR of the level a photograph of 96 pixels may end; noise is clipped at black and white.
TOLERANCE = {"SCN": 0.6, "MN": 1.2, "HFN": 0.6, "QN": 1.2, "J2TE": 1.2, "SSR": 1.0}


@pytest.fixture(scope="module")
def photograph():
    with Image.open(photograph_path("astronaut.png")) as opened:
        small = opened.convert("RGB").resize((96, 96), Image.Resampling.LANCZOS, box=(96, 0, 384, 288))
    return np.asarray(small)


@pytest.fixture
def grey():
    return np.full((64, 72, 3), 128.0)


def test_root_mean_square_is_the_inverse_of_psnr(photograph):
    half = photograph.astype(float) // 2 + 40
    psnr = peak_signal_noise_ratio(half, half + tid2013.root_mean_square(27.0), data_range=255)
    np.testing.assert_allclose(psnr, 27.0)


@pytest.mark.parametrize("name", tid2013.DISTORTIONS)
def test_levels_have_the_psnr_of_the_paper(name, photograph):
    assert tid2013.DISTORTIONS[name].parameters == (33, 30, 27, 24, 21)
    tolerance = TOLERANCE.get(tid2013.ABBREVIATIONS[name], 0.4)
    for level, psnr in zip(LEVELS, tid2013.PSNR, strict=True):
        measured = peak_signal_noise_ratio(photograph, distort(photograph, name, level=level, key=0))
        assert abs(measured - psnr) < tolerance, (level, measured)


def test_names():
    assert all(name.startswith("tid2013/") and entry.family == "tid2013" for name, entry in tid2013.DISTORTIONS.items())
    assert len(set(tid2013.ABBREVIATIONS.values())) == len(tid2013.DISTORTIONS) == 10


def share_of_high_frequencies(noise):
    power = np.abs(np.fft.fft2(noise, axes=(0, 1))) ** 2
    radius = np.hypot(np.fft.fftfreq(noise.shape[0])[:, None], np.fft.fftfreq(noise.shape[1]))
    return power[radius > 0.25].sum() / power.sum()


def test_spectra_of_noise(grey):
    correlated = tid2013.spatially_correlated_noise(grey, 27.0, 0) - grey
    high = tid2013.high_frequency_noise(grey, 27.0, 0) - grey
    assert share_of_high_frequencies(correlated) < 0.05 < 0.9 < share_of_high_frequencies(high)
    neighbours = np.corrcoef(correlated[:, 1:].ravel(), correlated[:, :-1].ravel())[0, 1]
    np.testing.assert_allclose(neighbours, np.exp(-1 / (4 * 1.5**2)), atol=0.03)  # that of a Gaussian filter's output


def test_masked_noise_hides_in_texture():
    image = np.full((64, 64, 3), 100.0)
    image[:, 32:] += 40 * np.random.default_rng(0).standard_normal((64, 32, 3))
    noise = tid2013.masked_noise(image, 27.0, 1) - image
    assert noise[:, 40:].std() > 12 * noise[:, :24].std()


@pytest.mark.parametrize("function", NOISES)
def test_noise_is_the_same_pattern_at_every_level(function, grey):
    mild, severe = (function(grey, psnr, [3, 4]) - grey for psnr in (33.0, 21.0))
    np.testing.assert_allclose(severe, mild * 10 ** (12 / 20), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("function", NOISES)
def test_every_image_of_a_batch_has_the_psnr(function, photograph):
    batch = np.stack([photograph[:32, :40], photograph[40:72, 40:80] // 2]).astype(float)
    errors = np.sqrt(np.mean((function(batch, 24.0, 7) - batch) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(errors, tid2013.root_mean_square(24.0))


def test_quantization_noise():
    values = np.arange(256.0).reshape(16, 16, 1).repeat(3, axis=-1)
    step = np.sqrt(12) * 255 * 10 ** (-24 / 20)
    quantized = tid2013.quantization_noise(values, 24.0, 0)
    np.testing.assert_allclose(np.unique(np.diff(np.unique(quantized))), step)
    assert np.abs(quantized - values).max() <= step / 2 + 1e-9


def test_comfort_noise_changes_signs_alone(photograph):
    before = _wavelets.transform(photograph.astype(float), levels=4)
    severe, mild = (
        _wavelets.transform(tid2013.comfort_noise(photograph.astype(float), psnr, 2), levels=4) for psnr in (24.0, 33.0)
    )
    np.testing.assert_allclose(np.abs(severe), np.abs(before), atol=1e-6)
    changed, first = (np.abs(after - before).max(axis=-1) > 1e-6 for after in (severe, mild))
    size = np.sum(before**2, axis=-1)
    assert not changed[:6, :6].any()  # means
    assert np.all(changed[first]) and size[first].max() < size[changed].max()


def test_noisy_compression_uses_one_step(photograph, monkeypatch):
    tables = []
    real_open = Image.open

    def spy(file, *arguments, **keywords):
        opened = real_open(file, *arguments, **keywords)
        tables.append(opened.quantization)
        return opened

    monkeypatch.setattr(tid2013.Image, "open", spy)
    tid2013.noisy_compression(photograph[:32, :32].astype(float), 27.0, 0)
    steps = {step for table in tables[-1].values() for step in table}
    assert len(steps) == 1 and 20 < steps.pop() < 150


def test_chromatic_aberration_moves_colours_apart():
    image = np.zeros((8, 40, 3))
    image[:, 20:] = 200.0
    result = tid2013.chromatic_aberration(image, 21.0, 0)
    np.testing.assert_array_equal(result[..., 1], image[..., 1])
    edges = [int(np.argmax(result[0, :, channel] > 100)) for channel in range(3)]
    assert edges[0] > 20 > edges[2] and edges[0] - 20 == 20 - edges[2]


def test_sparse_sampling_keeps_the_samples(photograph):
    image = photograph[:, :80].astype(float)
    result = tid2013.sparse_sampling(image, 24.0, 1)
    difference = np.abs(np.fft.fft2(result - image, axes=(0, 1), norm="ortho")).max(axis=-1)
    known = difference < 1e-6
    radius = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(80))
    assert known[0, 0] and 0.02 < known.mean() < 0.9
    assert known[radius < 0.05].mean() > 0.9 > 0.6 > known[radius > 0.4].mean()


def test_flat_image_gets_the_strongest_there_is(grey):
    for psnr in (33.0, 21.0):
        for function in (tid2013.comfort_noise, tid2013.chromatic_aberration, tid2013.sparse_sampling):
            np.testing.assert_allclose(function(grey, psnr, 0), grey, atol=1e-9)
