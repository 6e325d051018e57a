"""JPEG files without their end marker, as some cameras and streams leave them: whole, or cut in the middle?"""

import io
import re

from PIL import Image

_END = b"\xff\xd9"
# What may follow in a cut file. A decoder draws something else after each of these. The restart markers make it read on
# where a file was cut at one; which number it waits for is not known, and it does not go on at one of the next two.
_CONTINUATIONS = [b""] + [
    b"".join(bytes(range(254, 0, -1)) + bytes([0xFF, 0xD0 + (first + count) % 8]) for count in range(16))
    for first in (0, 4)
]
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # none of the data: a value of 255, or a restart


def ended(data: bytes) -> bytes | None:
    """The file with an end marker, if nothing but that marker is missing; else None."""
    if not _has_all_scans(data):
        return None
    data = data.rstrip(b"\xff")  # the first half of a marker, or of a stuffed byte
    images = set()
    for continuation in _CONTINUATIONS:
        with Image.open(io.BytesIO(data + continuation + _END), formats=["JPEG"]) as image:
            images.add(image.tobytes())
    return data + _END if len(images) == 1 else None


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans that begin bring every coefficient of every component to its last bit."""
    missing, place = {None}, 2
    while marker := _MARKER.search(data, place):
        kind, begin = marker[1][0], marker.end() + 2
        end = begin - 2 + int.from_bytes(data[begin - 2 : begin])
        segment = data[begin:end]
        if kind in (0xC0, 0xC1, 0xC2) and len(segment) > 5:  # frames that Pillow decodes
            missing = {(component, index) for component in segment[6::3] for index in range(64)}
        if kind == 0xDA and len(segment) >= 4 + 2 * segment[0]:
            components, (first, last, precision) = segment[1 : 1 + 2 * segment[0] : 2], segment[-3:]
            if precision & 15 == 0:
                missing -= {(component, index) for component in components for index in range(first, last + 1)}
        place = end
    return not missing
