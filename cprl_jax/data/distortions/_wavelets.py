"""The discrete wavelet transform of lossy JPEG 2000, for NumPy arrays."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

# Lifting steps of the 9/7 transform and the scale of its low band (ITU-T T.800, Annex F). With bands scaled by
# sqrt(2) the transform is nearly orthonormal: an error in a coefficient is about as large in the image.
_STEPS = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_LOW_SCALE = np.sqrt(2) / 1.230174104914001


def _lift(even: np.ndarray, odd: np.ndarray, *, back: bool) -> None:
    """Adds to odd and even samples, in turn and in place, a multiple of their neighbours' sum; or takes it away."""
    for position in (3, 2, 1, 0) if back else (0, 1, 2, 3):
        target, others = (odd, even) if position % 2 == 0 else (even, odd)
        # The border is mirrored. Sample i of the odd ones stands between i and i + 1 of the even ones.
        others = np.concatenate([others[:1], others, others[-1:]])[1 if target is odd else 0 :]
        target += (-1 if back else 1) * _STEPS[position] * (others[: len(target)] + others[1 : len(target) + 1])


def _analyse(signal: Float[np.ndarray, "length ..."]) -> Float[np.ndarray, "length ..."]:
    """One step along the first axis: low band, then high band. Needs two samples."""
    even, odd = signal[::2].copy(), signal[1::2].copy()
    _lift(even, odd, back=False)
    return np.concatenate([even * _LOW_SCALE, odd / _LOW_SCALE])


def _synthesise(bands: Float[np.ndarray, "length ..."]) -> Float[np.ndarray, "length ..."]:
    half = -(-len(bands) // 2)
    even, odd = bands[:half] / _LOW_SCALE, bands[half:] * _LOW_SCALE
    _lift(even, odd, back=True)
    signal = np.empty_like(bands)
    signal[::2], signal[1::2] = even, odd
    return signal


def depth(shape: tuple[int, ...], *, most: int) -> int:
    """Number of decompositions: `most`, or as many as leave 4 samples a side in the coarsest band."""
    return min(most, max(0, int(np.log2(max(1, min(shape[:2])) / 4))))


def _corners(shape: tuple[int, ...], levels: int) -> list[tuple[int, int]]:
    """Height and width of what each decomposition takes apart, and last of the coarsest band."""
    corners = [shape[:2]]
    for _ in range(levels):
        corners.append(tuple(-(-side // 2) for side in corners[-1]))
    return corners


def transform(image: Float[np.ndarray, "height width ..."], *, levels: int) -> Float[np.ndarray, "height width ..."]:
    """Coefficients, the bands laid out as usual: the coarsest in the corner of the next finer ones, and so on."""
    coefficients = np.array(image, dtype=np.float64)
    for height, width in _corners(image.shape, levels)[:-1]:
        corner = _analyse(coefficients[:height, :width])
        coefficients[:height, :width] = np.swapaxes(_analyse(np.swapaxes(corner, 0, 1)), 0, 1)
    return coefficients


def inverse(
    coefficients: Float[np.ndarray, "height width ..."], *, levels: int
) -> Float[np.ndarray, "height width ..."]:
    """The image of which `transform` gives these coefficients."""
    image = coefficients.copy()
    for height, width in _corners(image.shape, levels)[-2::-1]:
        corner = np.swapaxes(_synthesise(np.swapaxes(image[:height, :width], 0, 1)), 0, 1)
        image[:height, :width] = _synthesise(corner)
    return image


def detail_bands(shape: tuple[int, ...], *, levels: int) -> Iterator[tuple[int, slice, slice]]:
    """Decomposition (1 = finest), rows and columns of every band but the coarsest."""
    corners = _corners(shape, levels)
    for level, ((height, width), (low_height, low_width)) in enumerate(
        zip(corners, corners[1:], strict=False), start=1
    ):
        low_rows, high_rows = slice(0, low_height), slice(low_height, height)
        low_columns, high_columns = slice(0, low_width), slice(low_width, width)
        yield level, low_rows, high_columns
        yield level, high_rows, low_columns
        yield level, high_rows, high_columns
