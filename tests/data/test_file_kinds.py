"""Files that are taken for images, and the words for them."""

import io

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data.decode import decode_photograph

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def box(brand, *others):
    return (16 + 4 * len(others)).to_bytes(4) + b"ftyp" + brand + bytes(4) + b"".join(others) + bytes(40)


def encoded(format):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", b"", "an empty file"),
        ("zeros", bytes(64), "64 bytes that are all zero"),
        ("lfs", POINTER, "but a Git LFS pointer: `git lfs pull`"),
        ("html", b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "but an HTML page, perhaps from a download that failed"),
        ("html-lower", b"<html><body>404", "but an HTML page"),
        ("svg", b"<?xml version='1.0'?><svg/>", "but an SVG drawing"),
        ("text", "Straße\n".encode() * 1000, "but a text file"),
        ("text-cut-in-a-letter", ("a" * 4095 + "ß").encode(), "but a text file"),
        ("pdf", b"%PDF-1.7\n\xe2", "but a PDF document"),
        ("heic", box(b"heic"), "but a HEIC photo: save it as JPEG or PNG"),
        ("heic-inside", box(b"mif1", b"mif1", b"heic"), "but a HEIC photo"),
        ("avif", box(b"avif", b"mif1"), "but an AVIF file"),
        ("avif-inside", box(b"mif1", b"avif"), "but an AVIF file"),
        ("raw-of-canon", box(b"crx "), "but a camera's raw data"),
        ("mp4", box(b"isom", b"avc1"), "but a video"),
        ("avi", b"RIFF\0\0\0\0AVI LIST", "but a video"),
        ("zip", b"PK\3\4\x14\0", "but an archive"),
        ("apple-double", b"\0\x05\x16\x07\0\2\0\0Mac OS X", "but macOS's notes on a file of this name"),
        ("ppm", encoded("PPM"), "but a file in PPM: save it as PNG"),
        ("gif", encoded("GIF"), "but a file in GIF: save it as PNG"),
        ("noise", b"\x91\x05\xfe" * 30, "TIFF$"),
        ("jpeg", encoded("JPEG")[:40], "^a damaged JPEG file"),
        ("png", encoded("PNG")[:12], "^a damaged PNG file$"),
        ("webp", encoded("WEBP")[:15], "^a damaged WebP file$"),
        ("bmp", encoded("BMP")[:20], "^a damaged BMP file"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) or " " in value else value,
)
def test_what_a_file_is(name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode_photograph(content)
    assert "\n" not in str(caught.value)


def test_the_content_counts_whatever_the_name():
    for format in ("PNG", "BMP", "TIFF"):
        assert not decode_photograph(encoded(format)).any()
