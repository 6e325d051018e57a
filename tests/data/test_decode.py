"""Image files of every kind, against pixels that NumPy computes from what was put into them."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data import decode
from cprl_jax.data.decode import decode_photograph, decode_rgb

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
LOSSLESS = [{"format": "PNG"}, {"format": "BMP"}, {"format": "TIFF"}, {"format": "WEBP", "lossless": True}]
TURNED = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.swapaxes(np.rot90(pixels, 2), 0, 1),
    8: np.rot90,
}  # what the EXIF standard asks a viewer to do


def encode(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def over_white(colours, alpha):
    share = alpha[..., None] / 255.0
    return np.round(colours * share + 255.0 * (1.0 - share)).astype(np.uint8)


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, axis=2).astype(np.uint8)


def png(values, *, colour_type, chunks=()):
    """A PNG of 16 bits a channel, in big endian; Pillow writes none in colour."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def tiff(data, *, width, bits, white_is_zero=False, sample_format=1):
    """A grey, uncompressed TIFF."""
    tags = {256: width, 257: 5, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: 5}
    tags |= {279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def cmyk_profile():
    """An ICC profile in which pure cyan is a middle grey: nothing that a formula would come upon."""
    lab = [(100, 0, 0)] * 16  # corners of the CMYK cube, black changing fastest
    lab[1::2] = [(0, 0, 0)] * 8
    lab[8] = (53.585, 0, 0)
    table = b"".join(struct.pack("3B", round(l * 2.55), a + 128, b + 128) for l, a, b in lab)  # noqa: E741
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + struct.pack("4B", 4, 3, 2, 0) + matrix + identity * 4 + table + identity * 3
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags, data, offset = [], b"", 128 + 4 + 12 * 3
    for name, content in ((b"desc", text), (b"wtpt", white), (b"A2B0", lut)):
        content += bytes(-len(content) % 4)
        tags.append(name + struct.pack(">II", offset + len(data), len(content)))
        data += content
    head = struct.pack(">I4sI", offset + len(data), b"lcms", 0x02400000) + b"prtrCMYKLab " + bytes(12) + b"acsp"
    head += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + struct.pack(">I", 3) + b"".join(tags) + data


@pytest.mark.parametrize("options", LOSSLESS, ids=lambda options: options["format"])
def test_rgb(options):
    decoded = decode_photograph(encode(Image.fromarray(COLOURS), **options))
    assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous and decoded.flags.writeable
    np.testing.assert_array_equal(decoded, COLOURS)


def test_jpeg():
    smooth = np.mgrid[0:64:8, 0:64:8, 0:3][0].astype(np.uint8)
    np.testing.assert_allclose(decode_photograph(encode(Image.fromarray(smooth), format="JPEG")), smooth, atol=4)
    np.testing.assert_allclose(
        decode_photograph(encode(Image.fromarray(smooth[..., 0]), format="JPEG")), smooth, atol=4
    )


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_grey_and_palette(format):
    values = COLOURS[..., 0]
    np.testing.assert_array_equal(decode_photograph(encode(Image.fromarray(values), format=format)), grey(values))
    bits = values > 127
    np.testing.assert_array_equal(decode_photograph(encode(Image.fromarray(bits), format=format)), grey(255 * bits))
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    indexed = Image.fromarray(values)
    indexed.putpalette(palette.tobytes())
    np.testing.assert_array_equal(decode_photograph(encode(indexed, format=format)), palette[values])


@pytest.mark.parametrize("options", [LOSSLESS[0], *LOSSLESS[2:]], ids=lambda options: options["format"])
def test_transparency_is_laid_over_white(options):
    image = Image.fromarray(np.dstack([COLOURS, ALPHA]))
    decoded = decode_photograph(encode(image, exact=True, **options))
    np.testing.assert_array_equal(decoded, over_white(COLOURS, ALPHA))


def test_transparency_of_grey_and_palettes():
    values = COLOURS[..., 0]
    expected = over_white(grey(values), ALPHA)
    image = Image.merge("LA", [Image.fromarray(values), Image.fromarray(ALPHA)])
    np.testing.assert_array_equal(decode_photograph(encode(image, format="PNG")), expected)
    palette, opacity = (RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((256, 3), 256))
    indexed = Image.fromarray(values)
    indexed.putpalette(palette.tobytes())
    decoded = decode_photograph(encode(indexed, format="PNG", transparency=opacity.tobytes()))
    np.testing.assert_array_equal(decoded, over_white(palette[values], opacity[values]))


def test_one_transparent_colour():
    gone = tuple(int(value) for value in COLOURS[2, 3])
    decoded = decode_photograph(encode(Image.fromarray(COLOURS), format="PNG", transparency=gone))
    where = np.equal(COLOURS, gone).all(axis=2, keepdims=True)
    assert where.sum() == 1
    np.testing.assert_array_equal(decoded, np.where(where, 255, COLOURS))
    decoded = decode_photograph(png(DEEP, colour_type=0, chunks=[(b"tRNS", struct.pack(">H", DEEP[2, 3]))]))
    np.testing.assert_array_equal(decoded, grey(np.where(np.equal(DEEP, DEEP[2, 3]), 255, np.round(DEEP / 257))))


def test_deep_grey_is_rounded():
    expected = grey(np.round(DEEP / 257))
    np.testing.assert_array_equal(decode_photograph(png(DEEP, colour_type=0)), expected)
    np.testing.assert_array_equal(decode_photograph(tiff(DEEP.tobytes(), width=7, bits=16)), expected)
    big = Image.frombytes("I;16B", (7, 5), DEEP.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode_photograph(encode(big, format="TIFF")), expected)
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(decode_photograph(png(every, colour_type=0)), grey(np.round(every / 257)))


def test_deep_grey_of_tiff():
    decoded = decode_photograph(tiff(DEEP.tobytes(), width=7, bits=16, white_is_zero=True))
    np.testing.assert_array_equal(decoded, grey(255 - np.round(DEEP / 257)))
    twelve = (DEEP[:, :6] >> 4).astype(int)  # two values in three bytes
    packed = np.stack([twelve[:, ::2] >> 4, (twelve[:, ::2] & 15) << 4 | twelve[:, 1::2] >> 8, twelve[:, 1::2] & 255])
    data = np.moveaxis(packed, 0, -1).astype(np.uint8).tobytes()
    np.testing.assert_array_equal(decode_photograph(tiff(data, width=6, bits=12)), grey(np.round(twelve / 4095 * 255)))


def test_deep_colour_is_off_by_one_level_at_most():
    deep = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    decoded = decode_photograph(png(deep, colour_type=2))
    np.testing.assert_array_equal(decoded, deep >> 8)
    np.testing.assert_allclose(decoded, np.round(deep / 257), atol=1)


@pytest.mark.parametrize(
    ("bits", "sample_format", "dtype", "message"),
    [
        (32, 2, np.int32, "32-bit integers"),
        (32, 1, np.uint32, "32-bit integers"),
        (16, 2, np.int16, "signed"),
        (32, 3, np.float32, "floating point"),
    ],
)
def test_pixels_without_black_and_white_are_refused(bits, sample_format, dtype, message):
    data = tiff((DEEP >> 1).astype(dtype).tobytes(), width=7, bits=bits, sample_format=sample_format)
    with pytest.raises(ValueError, match=f"{message}.*save it with 8 or 16 bits"):
        decode_photograph(data)


@pytest.mark.parametrize("orientation", TURNED)
def test_orientation(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    for options in LOSSLESS[:1] + LOSSLESS[2:]:
        upright = decode_photograph(encode(Image.fromarray(COLOURS), exif=exif, **options))
        np.testing.assert_array_equal(upright, TURNED[orientation](COLOURS))
    deep = decode_photograph(encode(Image.fromarray(DEEP), format="PNG", exif=exif))
    np.testing.assert_array_equal(deep, TURNED[orientation](grey(np.round(DEEP / 257))))
    stored = np.kron([[0, 80, 120], [160, 200, 255]], np.ones((16, 16)))
    photograph = encode(Image.fromarray(grey(stored)), format="JPEG", quality=95, exif=exif)
    np.testing.assert_allclose(decode_photograph(photograph), TURNED[orientation](grey(stored)), atol=3)
    np.testing.assert_allclose(decode_rgb(photograph), grey(stored), atol=3)


def test_cmyk_without_a_profile():
    inks = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    decoded = decode_photograph(encode(Image.frombytes("CMYK", (7, 5), inks.tobytes()), format="TIFF"))
    paper = 255.0 - inks
    np.testing.assert_allclose(decoded, paper[..., :3] * paper[..., 3:] / 255, atol=1)


@pytest.mark.parametrize("options", [{"format": "TIFF"}, {"format": "JPEG", "quality": 100}])
def test_cmyk_with_a_profile(options):
    inks = np.zeros((8, 24, 4), np.uint8)
    inks[:, 8:16, 0] = inks[:, 16:, 3] = 255  # paper, cyan, black
    image = Image.frombytes("CMYK", (24, 8), inks.tobytes())
    decoded = decode_photograph(encode(image, icc_profile=cmyk_profile(), **options))
    np.testing.assert_allclose(decoded, grey(np.repeat([[255, 128, 0]], 8, axis=1).repeat(8, axis=0)), atol=3)
    with pytest.raises(ValueError, match="colour profile cannot be used.*save the image as RGB"):
        decode_photograph(encode(image, icc_profile=b"no profile", **options))


def test_profiles_of_rgb_images_are_not_applied():
    data = encode(Image.fromarray(COLOURS), format="PNG", icc_profile=cmyk_profile())
    np.testing.assert_array_equal(decode_photograph(data), COLOURS)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("options", [*LOSSLESS, {"format": "JPEG"}], ids=lambda options: options["format"])
def test_broken_files(options):
    data = encode(Image.fromarray(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)), **options)
    for length in (1, 20, len(data) // 3, len(data) // 2, len(data) - 200):
        with pytest.raises(ValueError) as raised:
            decode_photograph(data[:length])
        assert str(raised.value) and "\n" not in str(raised.value)


def test_other_files():
    with pytest.raises(ValueError, match="an empty file"):
        decode_photograph(b"")
    for data in (b"image,mos\n", encode(Image.fromarray(COLOURS), format="GIF")):
        with pytest.raises(ValueError, match="not an image in JPEG, PNG, BMP, WebP or TIFF, but a "):
            decode_photograph(data)


def test_the_first_of_several_frames():
    pictures = [Image.fromarray(np.full((4, 6, 3), value, np.uint8)) for value in (10, 200)]
    for options in ({"format": "PNG"}, {"format": "WEBP", "lossless": True}):
        data = encode(pictures[0], save_all=True, append_images=pictures[1:], **options)
        np.testing.assert_array_equal(decode_photograph(data), np.full((4, 6, 3), 10))


def test_the_main_picture_of_a_phone():
    main, other = (grey(np.full((16, 24), value)) for value in (40, 200))
    exif = Image.Exif()
    exif[274] = 6
    data = encode(Image.fromarray(main), format="MPO", save_all=True, append_images=[Image.fromarray(other)], exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    np.testing.assert_allclose(decode_photograph(data), grey(np.full((24, 16), 40)), atol=2)


def with_tag(block, order, *, number, kind, count, field):
    """An EXIF block that says orientation 6, and has one more tag."""
    entries = sorted([(274, 3, 1, struct.pack(order + "HH", 6, 0)), (number, kind, count, field)])
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    return block + start + b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)


@pytest.mark.filterwarnings("ignore:Tag data larger", "ignore:Corrupt EXIF")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_other_tags_of_exif_do_not_matter(format):
    """Resolution and its unit, maker, date, thumbnail, GPS and so on: of wrong types, lengths and places."""
    plain = {"format": format, "lossless": True}
    stored = decode_photograph(encode(Image.fromarray(COLOURS), **plain))
    fields = ((1, b"\2\0\0\0"), (9, b"\xff\xff\xff\x7f"))
    for number, kind, (count, field) in itertools.product(
        (271, 282, 296, 306, 513, 34665, 34853), (0, 1, 2, 3, 5, 7, 12), fields
    ):
        block = with_tag(b"Exif\0\0", "<>"[kind % 2], number=number, kind=kind, count=count, field=field)
        decoded = decode_photograph(encode(Image.fromarray(COLOURS), exif=block, **plain))
        np.testing.assert_array_equal(decoded, np.rot90(stored, -1), err_msg=f"tag {number} of type {kind}")
    for block in (b"Exif\0\0no TIFF", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        np.testing.assert_array_equal(decode_photograph(encode(Image.fromarray(COLOURS), exif=block, **plain)), stored)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("baseline", {}),
        ("fine", {"quality": 98}),
        ("progressive", {"progressive": True}),
        ("restarts", {"restart_marker_blocks": 1}),
        ("progressive-restarts", {"progressive": True, "restart_marker_blocks": 2}),
    ],
)
@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
def test_a_jpeg_may_lack_its_end_but_no_pixels(name, options, colour):
    row, column = np.mgrid[:17, :20]
    pixels = np.stack([9 * row, 9 * column, 6 * (row + column)], axis=-1).astype(np.uint8)
    data = encode(Image.fromarray(pixels if colour else pixels[..., 0]), format="JPEG", **options)
    whole = decode_photograph(data)
    for missing in (1, 2):
        np.testing.assert_array_equal(decode_photograph(data[:-missing]), whole)
    for length in (*range(len(data) - 60, len(data) - 3), *range(20, len(data) - 60, 29)):
        try:
            decoded = decode_photograph(data[:length])
        except ValueError:
            continue
        np.testing.assert_array_equal(decoded, whole, err_msg=f"{length} of {len(data)} bytes")


def test_releases_are_read_as_stored():
    image = Image.fromarray(np.dstack([COLOURS, ALPHA]))
    np.testing.assert_array_equal(decode_rgb(encode(image, format="PNG")), COLOURS)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_a_large_image_is_converted_in_parts(mode, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (23, 10, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    elif mode == "P":
        image = Image.fromarray(values[..., :3]).quantize(16)
        image.info["transparency"] = 3
    else:
        image = Image.fromarray(values, "RGBA" if mode != "CMYK" else "CMYK").convert(mode)
    file = io.BytesIO()
    image.save(file, format="TIFF" if mode == "CMYK" else "PNG")
    whole = decode.decode_photograph(file.getvalue())
    monkeypatch.setattr(decode, "_PART_PIXELS", 45)  # four rows, and three in the last part
    np.testing.assert_array_equal(decode.decode_photograph(file.getvalue()), whole)
