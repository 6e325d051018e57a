"""The embedded dataset: pictures that come with the installation, distorted and labelled on the fly, no download.

ITS LABELS ARE NOT HUMAN. They come from the full-reference rule in `cprl_jax/data/labels.py`, and the distortions are
few. The dataset shows that training, attacks and defences work, within minutes; it says nothing about how well a model
agrees with people.

The pictures are views of scikit-image's photographs and procedural scenes (`cprl_jax/data/scenes.py`), each once
undistorted and once per distortion and level (`cprl_jax/data/distortions/embedded.py`). By default: 64 scenes, 14 of
them photographs, and 31 images of 112 x 112 pixels per view. Images and labels are a function of the arguments; on
machines with another libjpeg, FreeType or NumPy single grey levels may differ, and labels in their decimals.

    python -m cprl_jax.data.embedded --out=sheet.png      draws a contact sheet to look at
"""

from cprl_jax.runtime import program

if __name__ == "__main__":  # before the imports that take time, in which Ctrl-C should have its effect already
    program.own_terminal("stopped")

import os
import sys
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.distortions import LEVELS, distort
from cprl_jax.data.labels import quality
from cprl_jax.data.scenes import View, make_views, scene_names
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path, writing
from cprl_jax.runtime.parser import Parser

# The recipe, by name: further entries of the registry of distortions do not change this dataset.
DISTORTION_NAMES = ("gaussian-blur", "white-noise", "jpeg", "pixelation", "contrast", "color-noise")


def make_embedded(
    *, seed: int = 0, image_size: int = 112, scenes: int = 64, levels: int = 5, progress: bool = True
) -> QualityDataset:
    """Paints, distorts and labels the embedded dataset (some ten seconds on one core).

    Args:
      seed: seed of the procedural scenes and the noise, 0 or more. The first scenes are the same whatever `scenes` is.
      image_size: height and width in pixels, 32 to 256. Content and distortions keep their size in pixels: larger
        images show more.
      scenes: number of scenes, 1 or more; every fourth is a photograph, up to 14, and gives one to four views.
      levels: number of levels of each distortion, 1 to 5; fewer than 5 are evenly spaced and keep their numbers (3
        gives levels 1, 3 and 5).
      progress: draw a progress bar on standard error.

    Returns:
      The dataset 'embedded'. Names are "astronaut-2" for an undistorted view (level 0, no distortion, label 100) and
      "astronaut-2_jpeg_3" for a distorted one; `references` holds the scene ("astronaut"), which all views of one
      photograph share; `images` is one uint8 array [N, image_size, image_size, 3].

    Raises:
      UserError: an argument that is not allowed, or a scikit-image without its photographs.
    """
    if levels not in LEVELS:
        raise UserError(f"levels={levels} is not allowed: {LEVELS[0]} to {LEVELS[-1]}")
    chosen_levels = [LEVELS[index] for index in _evenly_spaced(levels)]
    rows, images, labels = [], [], []
    bar = tqdm(scene_names(scenes), desc="embedded dataset", unit="scene", disable=not progress, leave=False)
    for scene in bar:
        for view in make_views(scene, seed=seed, image_size=image_size):
            view_rows, view_images = _distorted(view, seed, chosen_levels)
            rows += view_rows
            images.append(view_images)
            labels.append(quality(view_images, view.image))
    names, references, distortions, level_numbers = zip(*rows, strict=True)
    mos = np.concatenate(labels)
    pixels = np.concatenate(images)
    pixels.flags.writeable = False
    return QualityDataset(
        name="embedded",
        images=pixels,
        names=names,
        mos=mos,
        mos_raw=mos,
        mos_std=np.full(len(mos), np.nan),
        references=references,
        distortions=distortions,
        levels=level_numbers,
    )


def _evenly_spaced(levels: int) -> list[int]:
    """Indices of `levels` of the five levels, evenly spaced; for a single one, the middle."""
    last = len(LEVELS) - 1
    return (
        [last // 2] if levels == 1 else [(index * last + (levels - 1) // 2) // (levels - 1) for index in range(levels)]
    )


def _distorted(view: View, seed: int, levels: list[int]) -> tuple[list[tuple[str, str, str, int]], np.ndarray]:
    """Rows (name, scene, distortion, level) and images of one view: itself and its distorted versions."""
    rows, images = [(view.name, view.scene, "", 0)], [view.image]
    for distortion in DISTORTION_NAMES:
        # Keyed by names: noise that is equal at all levels, and does not depend on what else is made.
        key = [seed, zlib.crc32(f"{view.name}_{distortion}".encode())]
        for level in levels:
            rows.append((f"{view.name}_{distortion}_{level}", view.scene, distortion, level))
            images.append(distort(view.image, distortion, level=level, key=key))
    return rows, np.stack(images)


def contact_sheet(dataset: QualityDataset, path: str | os.PathLike, *, blocks: int = 9, columns: int = 3) -> None:
    """Draws the dataset for a person to look at, as one PNG.

    At the top all undistorted views, small. Below them, a block for each of `blocks` scenes of different kinds: a row
    per distortion with its levels from left to right and their labels, the undistorted view in front.

    Args:
      dataset: from `make_embedded`.
      path: path of the PNG; an existing file is replaced.
      blocks: how many scenes are shown in full.
      columns: number of blocks in a row.
    """
    size, gap, caption = dataset.images[0].shape[0], 4, 12
    undistorted = np.flatnonzero(dataset.levels == 0)
    # "leaves-03" and "leaves-07" look alike: one of each kind.
    sorts = {str(dataset.names[row]).rstrip("-0123456789"): row for row in undistorted[::-1]}
    shown = sorted(sorts.values())[:blocks]
    kinds = [kind for kind in dict.fromkeys(dataset.distortions) if kind]
    levels = [level for level in np.unique(dataset.levels) if level]
    columns = min(columns, len(shown))
    block_width = (len(levels) + 1) * (size + gap) + 4 * gap
    block_height = len(kinds) * (size + gap + caption) + 4 * gap
    width = columns * block_width
    small = max(16, size // 2)
    per_row = max(1, width // (small + gap))
    top = -(-len(undistorted) // per_row) * (small + gap) + 4 * gap
    sheet = Image.new("RGB", (width, top + -(-len(shown) // columns) * block_height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for position, row in enumerate(undistorted):
        picture = Image.fromarray(dataset.images[row]).resize((small, small), Image.Resampling.BOX)
        sheet.paste(picture, (position % per_row * (small + gap), position // per_row * (small + gap)))
    rows = {name: row for row, name in enumerate(dataset.names)}
    for position, reference in enumerate(shown):
        left, upper = position % columns * block_width, top + position // columns * block_height
        for line, kind in enumerate(kinds):
            y = upper + line * (size + gap + caption)
            for place, level in enumerate([0, *levels]):
                row = rows[f"{dataset.names[reference]}_{kind}_{level}"] if level else reference
                x = left + place * (size + gap)
                sheet.paste(Image.fromarray(dataset.images[row]), (x, y))
                text = f"{kind} {level}: {dataset.mos[row]:.0f}" if level else str(dataset.names[row])
                pen.text((x, y + size), text, fill="black", font=font)
    with writing(path) as file:
        sheet.save(file, format="PNG")


def main(argv: Sequence[str] | None = None) -> int:
    """Draws a contact sheet as the command line says; returns the exit code."""
    return program.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser(
        prog="python -m cprl_jax.data.embedded", description="Draws a contact sheet of the embedded dataset."
    )
    parser.add_argument("--out", required=True, help="the PNG file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image_size", type=int, default=112, help="pixels, 32 to 256")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--levels", type=int, default=5, help="1 to 5")
    options = vars(parser.parse_args(argv))
    out = user_path(options.pop("out"), field="--out")
    dataset = make_embedded(**options)
    contact_sheet(dataset, out)
    counts, _ = np.histogram(dataset.mos, bins=10, range=(0, 100))
    program.show(
        f"{len(dataset)} images of {len(np.unique(dataset.references))} scenes; labels per ten points, from 0: "
        f"{' '.join(map(str, counts))}; drawn to {out}"
    )


if __name__ == "__main__":
    sys.exit(main())
