"""The distortions of TID2013 that have no counterpart in KADID-10k.

TID2013 (Ponomarenko et al., "Image database TID2013: Peculiarities, results and perspectives", Signal Processing:
Image Communication 30, 2015) was made with a generator that is not public. What is known is its principle: the
strength of a distortion is chosen for each image so that the PSNR is about 33, 30, 27, 24 and 21 dB at levels 1 to 5.
So it is here: the parameter of every entry is a PSNR in dB (over R, G and B together, peak 255), and the
strength follows from it in closed form, or by a search that always takes the same steps. A picture that cannot be
brought that low (a flat one, say) gets the strongest version there is.

What each function does to get there is ours; docs/distortions.md lists it type by type, together with the entries of
`kadid` that stand for the other types of TID2013.
"""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import fft, ndimage

from cprl_jax.data.distortions import _transmission, _wavelets
from cprl_jax.data.distortions._arrays import (
    Array,
    Key,
    correlate,
    correlate_separably,
    gaussian_weights,
    normal,
    uniform,
)
from cprl_jax.data.distortions._distortion import Distortion

PSNR = (33.0, 30.0, 27.0, 24.0, 21.0)
_GRAIN = 1.5  # standard deviation in pixels of the filter that makes spatially correlated noise
_LAPLACIAN = np.array([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
_STEP_OF_NOISE = 3.5  # quantisation step that compresses noisy images well, in standard deviations of the noise
_LARGEST_SHIFT = 16.0  # pixels


def root_mean_square(psnr: float) -> float:
    """Root mean squared error (of 255) of a peak signal-to-noise ratio in dB."""
    return 255.0 * 10.0 ** (-psnr / 20.0)


def spatially_correlated_noise(image: Float[Array, "*batch height width 3"], psnr: float, key: Key) -> Array:
    """White noise blurred by a Gaussian of 1.5 pixels, with the energy that gives this PSNR (before clipping)."""
    weights = gaussian_weights(_GRAIN, radius=5)
    return _add(image, correlate_separably(normal(key, image.shape, image), weights, border="reflect"), psnr)


def high_frequency_noise(image: Float[Array, "*batch height width 3"], psnr: float, key: Key) -> Array:
    """White noise through the 5-point Laplacian, with the energy that gives this PSNR (before clipping)."""
    return _add(image, correlate(normal(key, image.shape, image), _LAPLACIAN, border="reflect"), psnr)


def masked_noise(image: Float[Array, "*batch height width 3"], psnr: float, key: Key) -> Array:
    """White noise that hides in texture, with the energy that gives this PSNR (before clipping).

    Its standard deviation at a pixel is the geometric mean, in a Gaussian window of 2 pixels, of sqrt(1 + d^2), where d
    is the distance of a value from its local mean: next to none in the sky, much in the grass, and little along an
    edge, which fills only a part of the window.
    """
    xp = image.__array_namespace__()
    detail = image - correlate_separably(image, gaussian_weights(1.0, radius=3), border="reflect")
    logarithm = correlate_separably(xp.log(1.0 + detail**2), gaussian_weights(2.0, radius=6), border="reflect")
    return _add(image, xp.exp(0.5 * logarithm) * normal(key, image.shape, image), psnr)


def _add(image: Array, noise: Array, psnr: float) -> Array:
    energy = (noise**2).mean(axis=(-3, -2, -1), keepdims=True)
    return image + noise * (root_mean_square(psnr) * (energy + 1e-12) ** -0.5)  # a 1 x 1 image has no high frequencies


def quantization_noise(image: Float[Array, "*batch height width 3"], psnr: float, key: Key) -> Array:
    """Uniform quantisation to the middle of its steps; a step is sqrt(12) times the root mean square of the PSNR."""
    xp = image.__array_namespace__()
    step = np.sqrt(12.0) * root_mean_square(psnr)
    return (xp.floor(image / step) + 0.5) * step


def comfort_noise(image: Float[np.ndarray, "height width 3"], psnr: float, key: Key) -> np.ndarray:
    """Fine texture replaced by noise of the same local spectrum, as a decoder fills in what the coder dropped.

    In the 9/7 wavelet transform, half of the coefficients below a threshold change their sign, those of R, G and B
    together (new texture, no new colours). The threshold is the lowest that gives this PSNR, as far as the transform
    is orthogonal (0.5 dB).
    """
    levels = _wavelets.depth(image.shape, most=4)
    coefficients = _wavelets.transform(image, levels=levels)
    energy = np.sum(coefficients**2, axis=-1)
    chosen = np.zeros(energy.shape, bool)
    for _, rows, columns in _wavelets.detail_bands(image.shape, levels=levels):
        chosen[rows, columns] = True
    chosen &= uniform(key, energy.shape, energy) < 0.5
    # A change of sign changes a coefficient by twice its size.
    ascending = np.sort(energy[chosen])
    count = np.searchsorted(np.cumsum(4.0 * ascending), root_mean_square(psnr) ** 2 * image.size)
    coefficients[chosen & (energy < np.append(ascending, np.inf)[count])] *= -1.0
    return _wavelets.inverse(coefficients, levels=levels)


def noisy_compression(
    image: Float[np.ndarray, "height width 3"], psnr: float, key: Key
) -> UInt8[np.ndarray, "height width 3"]:
    """Lossy compression of a noisy image: white noise, then JPEG with a quantisation step of 3.5 sigma.

    That step is about the one at which compression takes most of the noise away. The noise is searched for that leaves
    this PSNR behind.
    """
    noise = normal(key, image.shape, image)

    def compressed(sigma):
        step = int(np.clip(round(_STEP_OF_NOISE * sigma), 1, 255))
        file = io.BytesIO()
        noisy = Image.fromarray(_to_uint8(image + sigma * noise))
        noisy.save(file, "JPEG", qtables=[[step] * 64] * 2, subsampling="4:4:4")
        with Image.open(file) as decoded:
            return np.asarray(decoded)

    return _weakest(compressed, image, psnr, most=72.0)


def chromatic_aberration(image: Float[np.ndarray, "height width 3"], psnr: float, key: Key) -> np.ndarray:
    """Red moved to the right and blue as far to the left, both blurred a little, edges repeated.

    The shift (up to 16 pixels, in between pixels linear) is the one that gives this PSNR; the blur has half its
    deviation, up to half a pixel.
    """

    def shifted(shift):
        moved = image.copy()
        for channel, way in ((0, shift), (2, -shift)):
            blurred = ndimage.gaussian_filter(image[..., channel], min(0.5 * shift, 0.5), mode="nearest")
            moved[..., channel] = ndimage.shift(blurred, (0.0, way), order=1, mode="nearest")
        return moved

    return _weakest(shifted, image, psnr, most=_LARGEST_SHIFT)


def sparse_sampling(image: Float[np.ndarray, "height width 3"], psnr: float, key: Key) -> np.ndarray:
    """Reconstruction from a random part of the Fourier coefficients (compressive sensing).

    The lower a frequency, the likelier it is sampled. The reconstruction starts from zeros in place of what is missing
    and goes back and forth between shrinking wavelet coefficients (9/7), by less and less, and putting the known
    samples back. This gains up to 4 dB over the zeros; it is done twice, the second time with so few samples that
    the result is near the PSNR (1 dB).
    """
    height, width = image.shape[:2]
    spectrum = fft.rfft2(image, axes=(0, 1), norm="ortho")
    frequency = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width))
    chance = uniform(key, frequency.shape, image)
    # In columns that hold both of two opposite frequencies, of which a real image has one sample.
    alone = [0] + [-1] * (width % 2 == 0)
    chance[:, alone] = np.maximum(chance, np.roll(chance[::-1], 1, axis=0))[:, alone]
    copies = np.full(frequency.shape, 2.0)
    copies[:, alone] = 1.0
    order = np.argsort((chance * frequency**2).ravel(), kind="stable")
    energy = (np.sum(np.abs(spectrum) ** 2, axis=-1) * copies).ravel()[order]
    missing = np.append(np.cumsum(energy[::-1])[::-1], 0.0)  # without the first 0, 1, 2, ... samples
    levels = _wavelets.depth(image.shape, most=4)

    def reconstructed(zeros_psnr):
        error = root_mean_square(zeros_psnr)
        count = max(1, int(np.argmax(missing <= error**2 * image.size)))
        known = np.zeros((height * frequency.shape[1], 1), bool)
        known[order[:count]] = True
        known = known.reshape(*frequency.shape, 1)
        estimate = fft.irfft2(spectrum * known, (height, width), axes=(0, 1), norm="ortho")
        for threshold in error * np.array([2.0, 1.4, 0.8, 0.2]):
            coefficients = _wavelets.transform(estimate, levels=levels)
            for _, rows, columns in _wavelets.detail_bands(image.shape, levels=levels):
                band = coefficients[rows, columns]
                coefficients[rows, columns] = np.sign(band) * np.maximum(np.abs(band) - threshold, 0.0)
            guess = fft.rfft2(_wavelets.inverse(coefficients, levels=levels), axes=(0, 1), norm="ortho")
            estimate = fft.irfft2(np.where(known, spectrum, guess), (height, width), axes=(0, 1), norm="ortho")
        return estimate

    first = np.mean((reconstructed(psnr) - image) ** 2)
    gain = 20.0 * np.log10(root_mean_square(psnr)) - 10.0 * np.log10(max(first, 1e-12))
    # With fewer samples the gain is smaller, by about a quarter.
    return reconstructed(psnr - 0.75 * np.clip(gain, 0.0, 4.0))


def jpeg_transmission_errors(
    image: Float[np.ndarray, "height width 3"], psnr: float, key: Key
) -> UInt8[np.ndarray, "height width 3"]:
    """A baseline JPEG file with restart markers and random bits in some of its segments, decoded."""
    return _transmission.jpeg_errors(_to_uint8(image), _budgets(image, psnr), key)


def jpeg2000_transmission_errors(image: Float[np.ndarray, "height width 3"], psnr: float, key: Key) -> np.ndarray:
    """JPEG 2000 with code-blocks whose lower bit planes are random; a simulation, see `_transmission`."""
    return _transmission.jpeg2000_errors(_to_uint8(image), _budgets(image, psnr), key)


def _budgets(image: np.ndarray, psnr: float) -> tuple[float, ...]:
    """Squared errors of the milder levels and of this PSNR."""
    return tuple(root_mean_square(value) ** 2 * image.size for value in (*(p for p in PSNR if p > psnr), psnr))


def _to_uint8(image: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _weakest(distorted: Callable[[float], np.ndarray], image: np.ndarray, psnr: float, *, most: float) -> np.ndarray:
    """`distorted` by the smallest strength in (0, most] that brings the PSNR down to `psnr`, by ten bisections."""
    low, high, result = 0.0, most, None
    for _ in range(10):
        middle = (low + high) / 2
        candidate = distorted(middle)
        # As it will be stored. The same halves for all levels up to where they part: strengths rise with the level.
        if np.mean((_to_uint8(candidate).astype(np.float64) - image) ** 2) < root_mean_square(psnr) ** 2:
            low = middle
        else:
            high, result = middle, candidate
    return distorted(high) if result is None else result


def _entry(abbreviation: str, apply, *, differentiable: bool = False) -> tuple[str, Distortion]:
    source = "TID2013 (PSNR of the levels); ours (function)"
    return abbreviation, Distortion(
        apply, PSNR, "PSNR in dB", source=source, family="tid2013", differentiable=differentiable
    )


_TABLE = {
    "spatially-correlated-noise": _entry("SCN", spatially_correlated_noise, differentiable=True),
    "masked-noise": _entry("MN", masked_noise, differentiable=True),
    "high-frequency-noise": _entry("HFN", high_frequency_noise, differentiable=True),
    "quantization-noise": _entry("QN", quantization_noise),
    "jpeg-transmission-errors": _entry("JGTE", jpeg_transmission_errors),
    "jpeg2000-transmission-errors": _entry("J2TE", jpeg2000_transmission_errors),
    "comfort-noise": _entry("CN", comfort_noise),
    "noisy-compression": _entry("LCNI", noisy_compression),
    "chromatic-aberration": _entry("CHA", chromatic_aberration),
    "sparse-sampling": _entry("SSR", sparse_sampling),
}

DISTORTIONS: dict[str, Distortion] = {f"tid2013/{name}": distortion for name, (_, distortion) in _TABLE.items()}

ABBREVIATIONS: dict[str, str] = {f"tid2013/{name}": abbreviation for name, (abbreviation, _) in _TABLE.items()}
"""The abbreviations of TID2013, by name."""
