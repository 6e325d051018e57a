"""What a file is by its content, in the words of a message to the person who took it for an image."""

import io

from PIL import Image

_RAW = "a camera's raw data: develop it, and save it as JPEG, PNG or TIFF"
_VIDEO = "a video: save a frame of it as PNG"
_ARCHIVE = "an archive, or a document in one: unpack it"
_HTML = "an HTML page, perhaps from a download that failed: download the image again"
_TEXT = "a text file"

_SIGNATURES = {
    b"\xff\xd8\xff": "a damaged JPEG file",
    b"\x89PNG": "a damaged PNG file",
    b"BM": "a damaged BMP file",
    **dict.fromkeys([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"], "a damaged TIFF file, or of a rare kind"),
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer: `git lfs pull` fetches the image",
    b"\0\x05\x16\x07": "macOS's notes on a file of this name (AppleDouble) without the image: delete it",
    **dict.fromkeys([b"\xff\x0a", b"\0\0\0\x0cJXL "], "a JPEG XL file: save it as JPEG or PNG"),
    **dict.fromkeys([b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"IIU\0"], _RAW),
    b"%PDF-": "a PDF document: save its picture as PNG",
    **dict.fromkeys([b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1"], _VIDEO),
    **dict.fromkeys([b"PK\3\4", b"Rar!", b"7z\xbc\xaf", b"\x1f\x8b"], _ARCHIVE),
}
_BRANDS = {
    **dict.fromkeys([b"avif", b"avis"], "an AVIF file: save it as PNG"),
    **dict.fromkeys([b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"], "a HEIC photo: save it as JPEG or PNG"),
    **dict.fromkeys([b"mif1", b"msf1"], "a HEIF file: save it as JPEG or PNG"),
    b"crx ": _RAW,
}  # of files in MPEG-4's container; the others are videos


def describe(content: bytes) -> str:
    """Words such as 'a HEIC photo: save it as JPEG or PNG', for a file that is no JPEG, PNG, BMP, WebP or TIFF image.

    '' where nothing is known of it. JPEG, PNG and so on are called damaged: whole ones are not to be asked about.
    """
    if not content.strip(b"\0"):
        return f"{len(content)} bytes that are all zero: copy or download it again" if content else "an empty file"
    for signature, what in _SIGNATURES.items():
        if content.startswith(signature):
            return what
    if content[:4] == b"RIFF":
        return {b"WEBP": "a damaged WebP file", b"AVI ": _VIDEO}.get(content[8:12], "")
    if content[4:8] == b"ftyp":
        end = int.from_bytes(content[:4])
        brands = [content[place : place + 4] for place in (8, *range(16, min(end, 256), 4))]
        return next((_BRANDS[brand] for brand in _BRANDS if brand in brands), _VIDEO)
    return _text(content[:4096]) or _other_image(content)


def _text(beginning: bytes) -> str:
    if b"\0" in beginning:
        return ""
    try:
        text = beginning.decode("utf-8-sig").lstrip().lower()
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 4:  # else a character that the end of `beginning` cuts
            return ""
        text = beginning[: error.start].decode("utf-8-sig").lstrip().lower()
    if text.startswith(("<!doctype html", "<html", "<head", "<body")):
        return _HTML
    if "<svg" in text:
        return "an SVG drawing: save it as PNG"
    return _TEXT if all(letter.isprintable() or letter.isspace() for letter in text) else ""


def _other_image(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return f"a file in {image.format}: save it as PNG"
    except Exception:  # whatever the content makes Pillow's other decoders raise
        return ""
