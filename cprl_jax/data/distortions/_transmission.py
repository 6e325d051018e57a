"""Images that were coded, damaged on their way and decoded: JPEG with real bit errors, JPEG 2000 as a simulation."""

import io
import re

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from cprl_jax.data.distortions import _wavelets
from cprl_jax.data.distortions._arrays import Key, generator
from cprl_jax.data.distortions._color import luma, rgb_of_chroma

_SEGMENTS = 128  # restart intervals of one JPEG file, about
_JPEG_QUALITY = 95
_MCU = 8  # pixels a side of a minimum coded unit without chroma subsampling
_BLOCKS = 8  # code-blocks along the shorter side in a band of the simulated JPEG 2000, about


def choose_damage(
    growth: Float[np.ndarray, "pieces"],  # noqa: F821
    order: np.ndarray,
    *,
    start: float,
    budgets: tuple[float, ...],
) -> np.ndarray:
    """Which pieces are damaged: in the given order those that still fit under the budget of squared error.

    Args:
      growth: what damage of each piece adds to the squared error; pieces that it does not add to are left alone.
      order: a permutation of the pieces.
      start: squared error without any damage.
      budgets: rising; each is filled on top of the one before, so that more damage contains less.

    Returns:
      A mask of the pieces.
    """
    damaged = np.zeros(len(growth), bool)
    total = start
    for budget in budgets:
        for piece in order:
            if not damaged[piece] and growth[piece] > 0 and total + growth[piece] <= budget:
                damaged[piece] = True
                total += growth[piece]
    return damaged


def jpeg_errors(
    image: UInt8[np.ndarray, "height width 3"], budgets: tuple[float, ...], key: Key
) -> UInt8[np.ndarray, "height width 3"]:
    """A JPEG file with bit errors, decoded.

    The file is baseline JPEG of quality 95 without chroma subsampling, cut by restart markers into some 128 segments.
    In each of the damaged ones a burst of up to 4 bytes of the entropy-coded data gets random bits. From there on to
    the next marker the decoder loses its place: wrong blocks, and wrong brightness and colour to the segment's end.

    Args:
      image: what is sent.
      budgets: squared errors over the whole image, rising; the last is what the result may have, those before it are
        what the results for milder levels had.
      key: key of the errors.
    """
    rows, columns = (-(-side // _MCU) for side in image.shape[:2])
    interval = -(-rows * columns // _SEGMENTS)
    header, segments = _segments(_encode(image, interval))
    rng = generator(key)
    broken = [_burst(segment, rng) for segment in segments]
    order = rng.permutation(len(segments))
    places = np.arange(rows * columns).reshape(rows, columns) // interval
    places = np.kron(places, np.ones((_MCU, _MCU), int))[: image.shape[0], : image.shape[1]]

    def squared_errors(decoded):
        error = np.sum((decoded.astype(np.float64) - image) ** 2, axis=-1)
        return np.bincount(places.ravel(), error.ravel(), minlength=len(segments))

    # Nothing crosses a restart marker: the error of every segment is known from the file in which all are damaged.
    intact = squared_errors(_decode(header, segments))
    growth = squared_errors(_decode(header, broken)) - intact
    damaged = choose_damage(growth, order, start=intact.sum(), budgets=budgets)
    return _decode(header, [broken[i] if damaged[i] else segments[i] for i in range(len(segments))])


def _encode(image: np.ndarray, interval: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(
        file, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4", restart_marker_blocks=interval
    )
    return file.getvalue()


def _segments(file: bytes) -> tuple[bytes, list[bytes]]:
    """Header up to the scan, and the entropy-coded segments between the restart markers of its only scan."""
    position = 2  # after the start-of-image marker
    while True:
        marker, length = file[position + 1], int.from_bytes(file[position + 2 : position + 4], "big")
        position += 2 + length
        if marker == 0xDA:  # start of scan
            break
    # In entropy-coded data 0xFF is followed by 0 or is a marker.
    return file[:position], re.split(rb"\xff[\xd0-\xd7]", file[position:-2])


def _decode(header: bytes, segments: list[bytes]) -> UInt8[np.ndarray, "height width 3"]:
    scan = segments[0] + b"".join(
        bytes([0xFF, 0xD0 + index % 8]) + segment for index, segment in enumerate(segments[1:])
    )
    with Image.open(io.BytesIO(header + scan + b"\xff\xd9")) as picture:
        return np.asarray(picture.convert("RGB"))


def _burst(segment: bytes, rng: np.random.Generator) -> bytes:
    """Random bits in up to 4 bytes, from a place in the first half on; never a byte that is or makes a marker."""
    start, bits = int(rng.integers(0, max(1, len(segment) // 2))), rng.integers(1, 256, 4)
    changed = bytearray(segment)
    for place, flips in zip(range(start, len(segment)), bits, strict=False):
        stuffed = segment[place] == 0xFF or (place > 0 and segment[place - 1] == 0xFF)
        if not stuffed and changed[place] ^ int(flips) != 0xFF:
            changed[place] ^= int(flips)
    return bytes(changed)


def jpeg2000_errors(
    image: UInt8[np.ndarray, "height width 3"], budgets: tuple[float, ...], key: Key
) -> Float[np.ndarray, "height width 3"]:
    """A simulation of JPEG 2000 after losses: code-blocks of the wavelet transform with wrong bit planes.

    Luma and colour differences are transformed by the 9/7 filters of JPEG 2000 over up to four resolutions, and bands
    are cut into code-blocks. In a damaged one the arithmetic decoder loses its place at one of the three topmost bit
    planes: all planes from there on, and the signs, are random. The coarsest band arrives whole, as in files that
    protect it. Arguments as of `jpeg_errors`; the squared error is met as far as the transform is orthogonal (1 dB).
    """
    pixels = image.astype(np.float64)
    y = luma(pixels)
    planes = np.stack([y, (pixels[..., 2] - y) / 1.772, (pixels[..., 0] - y) / 1.402], axis=-1)
    levels = _wavelets.depth(image.shape, most=4)
    coefficients = _wavelets.transform(planes, levels=levels)
    rng = generator(key)
    damaged = coefficients.copy()
    covered = max(32, 1 << round(np.log2(min(image.shape[:2]) / _BLOCKS)))  # pixels a side, in the finer bands
    blocks = []
    for level, rows, columns in _wavelets.detail_bands(image.shape, levels=levels):
        side = max(4, covered >> level)
        for top in range(rows.start, rows.stop, side):
            for left in range(columns.start, columns.stop, side):
                place = slice(top, min(top + side, rows.stop)), slice(left, min(left + side, columns.stop))
                for plane in range(3):
                    blocks.append((*place, plane))
                    damaged[blocks[-1]] = _lost_planes(coefficients[blocks[-1]], rng)
    # What an error of 1 in Y, Cb and Cr is as a squared error of R, G and B together.
    weights = np.array([3.0, 0.344136**2 + 1.772**2, 1.402**2 + 0.714136**2])
    error = weights * (damaged - coefficients) ** 2
    growth = np.array([error[block].sum() for block in blocks])
    chosen = choose_damage(growth, rng.permutation(len(blocks)), start=0.0, budgets=budgets)
    for block, lost in zip(blocks, chosen, strict=True):
        if lost:
            coefficients[block] = damaged[block]
    received = _wavelets.inverse(coefficients, levels=levels)
    return received[..., :1] + rgb_of_chroma(received[..., 1], received[..., 2])


def _lost_planes(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coefficients that keep what is above a bit plane near the top; from it on, bits and signs are random."""
    top = int(np.ceil(np.log2(max(np.abs(block).max(), 1e-9))))
    step = 2.0 ** (top - int(rng.integers(0, 3)))
    magnitudes = np.floor(np.abs(block) / step) * step + step * rng.random(block.shape)
    return magnitudes * rng.choice([-1.0, 1.0], block.shape)
