"""Draws every distortion at every level on one photograph, to look at.

    python -m cprl_jax.data.distortion_sheet --out=sheet.png [--image=FILE] [--family=tid2013]

The picture in docs/images is made with `--out=docs/images/distortions.webp`.
"""

from cprl_jax.runtime import program

if __name__ == "__main__":  # before the imports that take time, in which Ctrl-C should have its effect already
    program.own_terminal("stopped")

import io
import os
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from cprl_jax.data.decode import decode_photograph
from cprl_jax.data.distortions import DISTORTIONS, FAMILIES, LEVELS, distort
from cprl_jax.data.photographs import content
from cprl_jax.data.scenes import photograph_path
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path, write_file
from cprl_jax.runtime.parser import Parser

_GAP, _CAPTION = 3, 12  # pixels between tiles, and for the line above a row
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def contact_sheet(
    image: UInt8[np.ndarray, "height width 3"],
    names: list[str],
    *,
    columns: int = 3,
    shrink: int = 1,
    progress: bool = False,
) -> Image.Image:
    """A sheet with a row for every distortion: its name, the undistorted image, levels 1 to 5.

    Args:
      image: RGB, uint8.
      names: keys of `DISTORTIONS`, in the order in which they go down the first column, then the next.
      columns: how many rows stand side by side, at most.
      shrink: 2 draws every second pixel of every second row (means would hide noise), and so on.
      progress: draw a progress bar on standard error.
    """
    height, width = image[::shrink, ::shrink].shape[:2]
    columns = min(columns, len(names))
    lines = -(-len(names) // columns)
    row_width, row_height = (len(LEVELS) + 1) * (width + _GAP) + 2 * _GAP, height + _CAPTION + 2 * _GAP
    sheet = Image.new("RGB", (columns * row_width, lines * row_height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for position, name in enumerate(tqdm(names, unit="distortion", disable=not progress, leave=False)):
        left, top = position // lines * row_width + _GAP, position % lines * row_height
        distortion = DISTORTIONS[name]
        levels = "  ".join(f"{parameter:g}" for parameter in distortion.parameters)
        caption = f"{name}   {levels}   ({distortion.unit})"
        while pen.textlength(caption, font=font) > row_width - 2 * _GAP:
            caption = f"{caption.rstrip('.')[:-1]}..."
        pen.text((left, top), caption, fill="black", font=font)
        for place, level in enumerate((0, *LEVELS)):
            tile = distort(image, name, level=level, key=0) if level else image
            sheet.paste(
                Image.fromarray(tile[::shrink, ::shrink]), (left + place * (width + _GAP), top + _CAPTION + _GAP)
            )
    return sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Draws a sheet as the command line says; returns the exit code."""
    return program.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser(
        prog="python -m cprl_jax.data.distortion_sheet", description="Draws every distortion at its five levels."
    )
    parser.add_argument("--out", required=True, help=f"the file to write, {', '.join(_FORMATS)}")
    parser.add_argument("--image", default="", help="a photograph; otherwise a face from scikit-image")
    parser.add_argument("--family", default="all", choices=("all", *FAMILIES))
    parser.add_argument("--size", type=int, default=160, help="height and width of the image in pixels, 32 to 512")
    parser.add_argument("--shrink", type=int, default=2, help="how many times smaller it is drawn, 1 to 4")
    arguments = parser.parse_args(argv)
    _draw(arguments.out, arguments.image, arguments.family, arguments.size, arguments.shrink)


def _draw(out: str, file: str, family: str, size: int, shrink: int) -> None:
    suffix = os.path.splitext(out)[1].lower()
    if suffix not in _FORMATS:
        raise UserError(f"--out={out} is not a picture's name: end it in one of {', '.join(_FORMATS)}")
    if not 32 <= size <= 512:
        raise UserError(f"--size={size} is not allowed: 32 to 512 pixels")
    if not 1 <= shrink <= 4:
        raise UserError(f"--shrink={shrink} is not allowed: 1 to 4")
    image = _square(file, size)
    names = [name for name, distortion in DISTORTIONS.items() if family in ("all", distortion.family)]
    sheet = contact_sheet(image, names, shrink=shrink, progress=True)
    picture = io.BytesIO()
    sheet.save(picture, _FORMATS[suffix], quality=80)  # PNG takes no notice of the quality
    write_file(user_path(out, field="--out"), picture.getvalue())
    program.show(f"{len(names)} distortions drawn to {out}")


def _square(file: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle of a photograph, shrunk to a tile; without a file the head of scikit-image's astronaut."""
    try:
        picture = Image.fromarray(decode_photograph(content(file or photograph_path("astronaut.png"))))
    except (OSError, ValueError) as error:
        raise UserError(f"--image={file} cannot be read ({error}): give a photograph as JPEG, PNG, ...") from error
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side) if file else (96, 0, 352, 256)
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS, box=box))


if __name__ == "__main__":
    sys.exit(main())
