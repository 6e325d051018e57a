"""Which page of a TIFF file is the picture; files with all kinds of pages are put together byte by byte."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data.decode import decode_photograph

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
OTHER = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
SMALL = RNG.integers(0, 256, (2, 3, 3), dtype=np.uint8)
RAW = {262: 32803, 277: 3}
TURNED = {1: lambda pixels: pixels, 3: lambda pixels: np.rot90(pixels, 2), 6: lambda pixels: np.rot90(pixels, -1)}


def tiff(*chain, below=(), order="<", big=False):
    """Pages (pixels, tags) one after another; those of `below` are what the first one refers to."""
    offset, head, count = ("Q", "HHQ", "Q") if big else ("I", "HHI", "H")
    field = struct.calcsize(offset)
    data = bytearray({"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if big else 42))
    data += struct.pack(order + "HH", 8, 0) + bytes(8) if big else bytes(4)
    pointer = len(data) - field
    bits = len(data)
    data += struct.pack(order + "HHHH", 8, 8, 8, 0)

    def add(pixels, tags):
        place = len(data)
        data.extend(pixels.tobytes())
        data.extend(bytes(len(data) % 2))
        entries = {256: pixels.shape[1], 257: pixels.shape[0], 258: bits, 259: 1, 262: 2, 273: place, 277: 3}
        entries |= {278: pixels.shape[0], 279: pixels.nbytes} | tags
        start = len(data)
        data.extend(struct.pack(order + count, len(entries)))
        for tag, value in sorted(entries.items()):
            length = 3 if tag == 258 else 1
            if tag == 258 and big:
                kind, content = 3, struct.pack(order + "HHH", 8, 8, 8)
            else:
                kind, content = 3 if tag == 258 else 4, struct.pack(order + "I", value)
            data.extend(struct.pack(order + head, tag, kind, length) + content.ljust(field, b"\0"))
        data.extend(bytes(field))
        return start, len(data) - field

    places = [add(pixels, tags)[0] for pixels, tags in below]
    for pixels, tags in chain:
        start, following = add(pixels, tags | ({330: places[0]} if places else {}))
        data[pointer : pointer + field] = struct.pack(order + offset, start)
        pointer, places = following, []
    return bytes(data)


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)], ids=["little", "big", "bigtiff"])
def test_smaller_versions_and_masks_are_passed_over(order, big):
    options = {"order": order, "big": big}
    for before, after in (
        ([], []),
        ([(SMALL, {254: 1})], []),
        ([(SMALL, {255: 2})], []),
        ([], [(SMALL, {254: 1}), (OTHER, {254: 4}), (SMALL, {254: 5})]),
    ):
        for orientation, turned in TURNED.items():
            data = tiff(*before, (PICTURE, {274: orientation}), *after, **options)
            np.testing.assert_array_equal(decode_photograph(data), turned(PICTURE))
    np.testing.assert_array_equal(decode_photograph(tiff((PICTURE, {254: 1}), **options)), PICTURE)
    data = tiff((SMALL, {254: 1}), below=[(PICTURE, {274: 3})], **options)
    np.testing.assert_array_equal(decode_photograph(data), TURNED[3](PICTURE))
    data = tiff((PICTURE, {}), below=[(OTHER, {})], **options)
    np.testing.assert_array_equal(decode_photograph(data), PICTURE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff((PICTURE, {}), (OTHER, {})), "2 pages; save the picture that is meant as a file of its own"),
        (tiff((SMALL, {254: 1}), (SMALL, {254: 1})), "only pages that are marked as smaller"),
        (tiff((SMALL, {254: 1, 50706: 1})), "a camera's raw data"),
        (tiff((PICTURE, {50706: 1})), "a camera's raw data"),
        (tiff((SMALL, {254: 1}), below=[(PICTURE, RAW)]), "a camera's raw data"),
        (tiff((SMALL, {254: 1}), (PICTURE, RAW)), "a camera's raw data"),
        (tiff((SMALL, {}))[:40], "damaged TIFF file: its first page is missing"),
        (b"MM\0*", "damaged TIFF file: its first page is missing"),
    ],
    ids=["pages", "previews", "dng-preview", "dng", "nef", "raw", "cut", "head"],
)
def test_refused(data, message):
    with pytest.raises(ValueError, match=message):
        decode_photograph(data)


def test_pages_in_a_circle():
    data = bytearray(tiff((PICTURE, {})))
    data[-4:] = data[4:8]
    np.testing.assert_array_equal(decode_photograph(bytes(data)), PICTURE)


def test_tags_that_are_not_about_pixels_do_not_matter():
    for number in (270, 271, 282, 296, 306, 700, 34665, 34853):
        data = tiff((PICTURE, {274: 6, number: 2**31 - 1}))
        np.testing.assert_array_equal(decode_photograph(data), np.rot90(PICTURE, -1), err_msg=str(number))
    xmp = b'<x tiff:Orientation="6"/>'
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "TIFF", compression="tiff_lzw", tiffinfo={274: 6, 700: xmp})
    np.testing.assert_array_equal(decode_photograph(file.getvalue()), np.rot90(PICTURE, -1))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *((mode, {}) for mode in ("1", "L", "P", "RGB", "CMYK", "LAB")),
        *(("RGB", {"compression": kind}) for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma")),
        *(("1", {"compression": kind}) for kind in ("group3", "group4")),
        ("YCbCr", {"compression": "jpeg"}),
        ("RGB", {"big_tiff": True}),
        ("RGB", {"compression": "tiff_lzw", "tiffinfo": {317: 2}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())).replace(" ", "") or "raw",
)
def test_pixels_are_those_that_pillow_reads(mode, options):
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)).convert(mode).save(file, "TIFF", **options)
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_photograph(file.getvalue()), expected)
