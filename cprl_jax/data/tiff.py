"""The lists of tags in a TIFF file, which EXIF uses as well: which page is the picture, and how it is turned."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of both byte orders; the latter two are BigTIFF

_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _WIDTH, _HEIGHT, _PHOTOMETRIC, _ORIENTATION = 254, 255, 256, 257, 262, 274
_PAGES_BELOW, _DNG_VERSION = 330, 50706
_READ = (_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _WIDTH, _HEIGHT, _PHOTOMETRIC, _ORIENTATION, _PAGES_BELOW, _DNG_VERSION)
_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # the integers among the types of tags
_RAW = (32803, 34892)  # of _PHOTOMETRIC: a mosaic of colour filters, and what it becomes before it is developed

# What pixels are made from: size, samples, compression, strips, tiles, palette, tables of JPEG, YCbCr, ICC profile.
_PIXELS = {*range(256, 260), 262, 266, 273, *range(277, 280), 284, 292, 293, 317, 320, *range(322, 326), 332}
_PIXELS |= {*range(338, 342), 347, *range(512, 522), *range(529, 533), 34675}


class _Page(NamedTuple):
    """Tags of `_READ`, what the file has of `_PIXELS`, and where the next page begins (0: there is none)."""

    tags: dict[int, tuple[int, ...]]
    pixels: list[bytes]
    following: int

    def first(self, tag: int) -> int:
        """The first value of a tag, or 0."""
        return self.tags.get(tag, (0,))[0]

    def is_picture(self) -> bool:
        smaller_or_mask = self.first(_NEW_SUBFILE_TYPE) & 0b101 or self.first(_SUBFILE_TYPE) == 2
        return self.first(_WIDTH) > 0 and self.first(_HEIGHT) > 0 and not smaller_or_mask


def picture(data: bytes) -> tuple[bytes, int]:
    """A TIFF file of one page, the picture, with the tags that its pixels need; and its orientation, 1 to 8.

    Pages that are marked as a smaller version or as a mask are passed over. Where no others follow one another, those
    count that such a page refers to.

    Raises:
      ValueError: there are several pictures or none, or a camera's raw data.
    """
    file = _File(data)
    pages = list(file.pages())
    if not pages:
        raise ValueError("a damaged TIFF file: its first page is missing")
    pictures = [page for page in pages if page.is_picture()]
    if not pictures:
        below = [file.page(offset) for page in pages for offset in page.tags.get(_PAGES_BELOW, ())]
        pictures = [page for page in below if page and page.is_picture()]
    if not pictures and len(pages) == 1:
        pictures = pages
    raw = data[8:10] == b"CR" or any(_DNG_VERSION in page.tags for page in pages)
    if raw or any(page.first(_PHOTOMETRIC) in _RAW for page in pictures):
        raise ValueError("a camera's raw data (DNG or the like); develop it, and save it as JPEG, PNG or TIFF")
    if len(pictures) != 1:
        count = f"{len(pictures)} pages" if pictures else "only pages that are marked as smaller versions or masks"
        raise ValueError(f"a TIFF file with {count}; save the picture that is meant as a file of its own")
    return file.alone(pictures[0]), _upright(pictures[0])


def orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 to 8; 1 where it is not there or cannot be read. Other tags do not matter."""
    block = exif.removeprefix(b"Exif\0\0")
    page = next(_File(block).pages(), None) if block.startswith(SIGNATURES) else None
    return _upright(page) if page else 1


def _upright(page: _Page) -> int:
    value = page.first(_ORIENTATION)
    return value if 1 <= value <= 8 else 1


class _File:
    def __init__(self, data: bytes):
        self._data = data
        order, big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
        self._order, self._start = order, 8 if big else 4  # the latter: the place of the first page's offset
        self._offset, self._count, self._head = (
            order + code for code in (("Q", "Q", "HHQ") if big else ("I", "H", "HHI"))
        )

    def pages(self) -> Iterator[_Page]:
        """One after another, as far as they can be read."""
        seen = {0}
        (offset,) = self._unpack(self._offset, self._start) or (0,)
        while offset not in seen and (page := self.page(offset)):
            yield page
            seen.add(offset)
            offset = page.following

    def page(self, offset: int) -> _Page | None:
        """None if it is not within the file."""
        (count,) = self._unpack(self._count, offset) or (0,)
        head_size, field_size = struct.calcsize(self._head), struct.calcsize(self._offset)
        begin, entry_size = offset + struct.calcsize(self._count), head_size + field_size
        end = begin + count * entry_size
        if not count or end > len(self._data):
            return None
        tags, pixels = {}, []
        for entry in range(begin, end, entry_size):
            tag, kind, length = self._unpack(self._head, entry)
            if tag in _PIXELS:
                pixels.append(self._data[entry : entry + entry_size])
            if tag in _READ and kind in _TYPES and 0 < length <= len(self._data):
                code, place = f"{self._order}{length}{_TYPES[kind]}", entry + head_size
                if struct.calcsize(code) > field_size:
                    (place,) = self._unpack(self._offset, place)
                tags[tag] = self._unpack(code, place) or (0,)
        (following,) = self._unpack(self._offset, end) or (0,)
        return _Page(tags, pixels, following)

    def alone(self, page: _Page) -> bytes:
        """A file of this page, with the same values at the same places."""
        padding = bytes(-len(self._data) % 8)
        offset = struct.pack(self._offset, len(self._data) + len(padding))
        directory = struct.pack(self._count, len(page.pixels)) + b"".join(page.pixels) + bytes(len(offset))
        return self._data[: self._start] + offset + self._data[self._start + len(offset) :] + padding + directory

    def _unpack(self, code: str, offset: int) -> tuple[int, ...] | None:
        """None beyond the end of the file."""
        try:
            return struct.unpack_from(code, self._data, offset)
        except (struct.error, OverflowError):
            return None
