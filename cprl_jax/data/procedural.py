"""Procedural scenes: pictures with the statistics of natural ones, painted from random numbers alone.

    leaves     coloured discs, ellipses, boxes and thorns that occlude each other, radii with density r^-3: the
               dead-leaves model, which has the scale invariance and the edges of natural images (Lee, Mumford and
               Huang, "Occlusion models for natural images", IJCV 2001)
    texture    regions of 1/f^alpha noise, each with its own exponent and colours
    shapes     smooth gradients with geometric shapes that cast shadows
    text       pages of invented words in Pillow's built-in font
    patchwork  rectangles of stripes, checks, gradients and noise

A painter is a pure function `(size, rng) -> uint8 [size, size, 3]`. Its canvas is meant to be shrunk to half the size,
which gives edges the softness that a lens and a sensor give them; line widths and grain are chosen for that. Real
numbers are rounded early, so that machines whose FFTs or sines differ in the last bit paint the same picture; letters
may differ between versions of FreeType.
"""

import colorsys
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont


def _palette(count: int, rng: np.random.Generator) -> Float[np.ndarray, "count 3"]:
    """Colours in 0..255 around two hues, mostly dull, from dark to light: how colours of one place tend to be."""
    # Earth, foliage and sky come more often than purple does.
    common = np.array([0.05, 0.08, 0.11, 0.16, 0.28, 0.36, 0.55, 0.6, 0.98])
    hues = np.append(rng.choice(common), rng.random())[rng.integers(0, 2, count)]
    hues = (hues + rng.uniform(-0.05, 0.05, count)) % 1.0
    saturations = rng.random(count) * rng.uniform(0.2, 0.9)
    values = rng.permutation((np.arange(count) + rng.random(count)) / count) * 0.85 + 0.12
    saturations *= 1.1 - 0.5 * values
    colours = [colorsys.hsv_to_rgb(*hsv) for hsv in zip(hues, saturations, values, strict=True)]
    return np.round(255.0 * np.array(colours))


def power_law_noise(size: int, exponent: float, rng: np.random.Generator) -> Float[np.ndarray, "size size"]:
    """Gaussian noise whose amplitude spectrum falls as 1/f^exponent, mean 0, variance 1, in steps of 1/1024."""
    frequency = np.sqrt(np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None, :] ** 2)
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / frequency**exponent
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=(size, size))
    # The steps absorb what the FFTs of two machines differ in.
    return np.round(1024.0 * noise / noise.std()) / 1024.0


def _coordinates(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel from -1 to 1, as [size, 1] and [1, size]."""
    axis = (2.0 * np.arange(size) + 1.0) / size - 1.0
    return axis[:, None], axis[None, :]


def _ramp(field: np.ndarray, colours: np.ndarray) -> Float[np.ndarray, "height width 3"]:
    """A colour for each value of a field in -1..1, interpolated between evenly spaced colours; clipped outside."""
    stops = np.linspace(-1.0, 1.0, len(colours))
    return np.stack([np.interp(field, stops, colours[:, channel]) for channel in range(3)], axis=-1)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _leaf_mask(radius: float, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A disc, an ellipse, a box or a thorn of about this radius, as a square array of booleans."""
    reach = max(1, int(np.ceil(radius)))
    down, across = np.arange(-reach, reach + 1.0)[:, None], np.arange(-reach, reach + 1.0)[None, :]
    # A random unit vector without sine or cosine, whose last bits differ between machines.
    direction = rng.uniform(-1.0, 1.0, 2)
    direction /= np.sqrt(direction[0] ** 2 + direction[1] ** 2) + 1e-9
    along = direction[0] * down + direction[1] * across
    aside = direction[0] * across - direction[1] * down
    slimness = 1.0 if kind == "disc" else rng.uniform(0.25, 1.0)
    if kind == "box":
        return (np.abs(along) <= 0.8 * radius) & (np.abs(aside) <= 0.8 * radius * slimness)
    if kind == "thorn":
        return (np.abs(aside) <= slimness * 0.6 * (along + radius)) & (along <= 0.7 * radius)
    return along * along + (aside / slimness) ** 2 <= radius * radius


def _paint_leaves(size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    smallest, largest = rng.uniform(4.0, 10.0), size * rng.uniform(0.2, 0.5)
    kinds = (("disc",), ("ellipse",), ("box",), ("ellipse", "thorn"), ("disc", "ellipse", "box", "thorn"))
    kinds = kinds[rng.integers(0, len(kinds))]
    palette = _palette(8, rng)
    grain = np.tile(power_law_noise(size, rng.uniform(0.9, 1.3), rng) * rng.uniform(4.0, 14.0), (2, 2))
    steepness = rng.uniform(0.0, 30.0)
    image = _to_uint8(palette[0] + grain[:size, :size, None])
    free = np.ones((size, size), bool)
    # From the nearest leaf to the farthest, each where nothing is in front of it, until next to nothing shines through.
    while np.count_nonzero(free) > size * size // 500:
        mix = rng.random()
        radius = 1.0 / np.sqrt(mix / smallest**2 + (1.0 - mix) / largest**2)
        reach = max(1, int(np.ceil(radius)))
        row, column = rng.integers(0, size, 2)
        rows = slice(max(0, row - reach), min(size, row + reach + 1))
        columns = slice(max(0, column - reach), min(size, column + reach + 1))
        visible = free[rows, columns]
        if not visible.any():
            continue
        mask = _leaf_mask(radius, kinds[rng.integers(0, len(kinds))], rng)
        down, across = (
            np.arange(rows.start - row, rows.stop - row),
            np.arange(columns.start - column, columns.stop - column),
        )
        visible = visible & mask[down[0] + reach : down[-1] + reach + 1, across[0] + reach : across[-1] + reach + 1]
        slope = rng.uniform(-steepness, steepness, 2) / reach
        place = rng.integers(0, size, 2)
        surface = grain[place[0] : place[0] + len(down), place[1] : place[1] + len(across)]
        colour = palette[rng.integers(0, len(palette))] + rng.uniform(-18.0, 18.0, 3)
        leaf = colour + (surface + slope[0] * down[:, None] + slope[1] * across)[..., None]
        image[rows, columns][visible] = _to_uint8(leaf[visible])
        free[rows, columns] &= ~visible
    return image


def _paint_texture(size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    count = int(rng.integers(2, 5))
    owners = np.argmax([power_law_noise(size, rng.uniform(1.6, 2.1), rng) for _ in range(count)], axis=0)
    image = np.zeros((size, size, 3))
    for owner in range(count):
        field = power_law_noise(size, rng.uniform(0.9, 1.5), rng) * rng.uniform(0.25, 0.55)
        if rng.random() < 0.4:
            # Veins as in marble: the field folded where it crosses zero.
            field = 1.0 - 2.0 * np.abs(power_law_noise(size, rng.uniform(1.4, 1.8), rng)) + 0.3 * field
        colours = _palette(int(rng.integers(3, 6)), rng)
        image[owners == owner] = _ramp(field, colours)[owners == owner]
    return _to_uint8(image)


def _gradient(size: int, rng: np.random.Generator) -> Float[np.ndarray, "size size 3"]:
    down, across = _coordinates(size)
    slopes = rng.uniform(-1.0, 1.0, 2)
    centre = rng.uniform(-0.8, 0.8, 2)
    field = slopes[0] * down + slopes[1] * across
    if rng.random() < 0.5:
        field = 1.0 - np.sqrt((down - centre[0]) ** 2 + (across - centre[1]) ** 2)
    return _ramp(field, _palette(3, rng))


def _polygon(kind: str, centre: np.ndarray, radius: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    corners = {"triangle": 3, "diamond": 4, "star": 10, "hexagon": 6}[kind]
    angles = 2.0 * np.pi * (np.arange(corners) + rng.random()) / corners
    reach = np.where((np.arange(corners) % 2 == 1) & (kind == "star"), 0.45 * radius, radius)
    points = np.stack([centre[0] + reach * np.cos(angles), centre[1] + reach * np.sin(angles)], axis=1)
    return [(int(x), int(y)) for x, y in np.round(points)]


def _shape_mask(size: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    picture = Image.new("1", (size, size))
    pen = ImageDraw.Draw(picture)
    centre = rng.integers(0, size, 2)
    box = [int(value) for value in (*(centre - radius), *(centre + radius * rng.uniform(0.4, 1.0, 2)))]
    kind = ("ellipse", "ring", "rectangle", "strokes", "triangle", "diamond", "star", "hexagon")[rng.integers(0, 8)]
    if kind == "ellipse":
        pen.ellipse(box, fill=1)
    elif kind == "ring":
        pen.ellipse(box, outline=1, width=max(3, int(radius / 4)))
    elif kind == "rectangle":
        pen.rounded_rectangle(box, radius=int(radius / 5), fill=1)
    elif kind == "strokes":
        for end in rng.integers(0, size, (5, 2)):
            pen.line([tuple(map(int, centre)), tuple(map(int, end))], fill=1, width=int(rng.integers(2, 9)))
    else:
        pen.polygon(_polygon(kind, centre, radius, rng), fill=1)
    return np.asarray(picture)


def _paint_shapes(size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    image = _gradient(size, rng)
    for _ in range(int(rng.integers(10, 22))):
        radius = size * 0.25 / np.sqrt(rng.uniform(1.0, 25.0))
        mask = _shape_mask(size, radius, rng)
        shadow = np.zeros_like(mask)
        shadow[5:, 5:] = mask[:-5, :-5]
        image = np.where(shadow[..., None], 0.55 * image, image)
        image = np.where(mask[..., None], _gradient(size, rng), image)
    grain = power_law_noise(size, 1.0, rng) * rng.uniform(1.0, 5.0)
    return _to_uint8(image + grain[..., None])


def _word(rng: np.random.Generator) -> str:
    syllables = (
        "ka",
        "lo",
        "mi",
        "ren",
        "tus",
        "per",
        "vo",
        "shi",
        "an",
        "del",
        "or",
        "qui",
        "zet",
        "mu",
        "fra",
        "ly",
        "u",
    )
    return "".join(syllables[index] for index in rng.integers(0, len(syllables), rng.integers(1, 5)))


def _paint_text(size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    paper, ink = _palette(2, rng) * 0.25, _palette(2, rng) * 0.25
    paper = paper[0] + 190.0 if rng.random() < 0.7 else paper[0]
    ink = ink[0] if paper.mean() > 120.0 else ink[0] + 190.0
    page = _to_uint8(paper + power_law_noise(size, 1.2, rng)[..., None] * rng.uniform(0.5, 4.0))
    picture = Image.fromarray(page)
    pen = ImageDraw.Draw(picture)
    accent = tuple(int(value) for value in _palette(1, rng)[0])
    top = -int(rng.integers(0, 12))
    body = int(rng.integers(17, 30))
    while top < size:
        heading = rng.random() < 0.2
        height = int(body * 1.7) if heading else body
        font = ImageFont.load_default(size=height)
        line = " ".join(_word(rng) for _ in range(24)).capitalize()
        colour = accent if heading else tuple(int(value) for value in ink)
        pen.text((int(rng.integers(-6, 10)), top), line, fill=colour, font=font)
        top += int(height * 1.25)
        if rng.random() < 0.12:
            pen.rectangle([0, top + 4, size, top + 4 + int(rng.integers(2, 18))], fill=accent)
            top += 26
    return np.asarray(picture)


def _paint_patchwork(size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    image = np.zeros((size, size, 3))
    down, across = np.arange(size)[:, None], np.arange(size)[None, :]
    pending = [(0, size, 0, size)]
    while pending:
        top, bottom, left, right = pending.pop()
        long_side = max(bottom - top, right - left)
        if long_side > size // 4 and (long_side > size // 2 or rng.random() < 0.7):
            cut = rng.uniform(0.3, 0.7)
            if bottom - top >= right - left:
                middle = top + int(cut * (bottom - top))
                pending += [(top, middle, left, right), (middle, bottom, left, right)]
            else:
                middle = left + int(cut * (right - left))
                pending += [(top, bottom, left, middle), (top, bottom, middle, right)]
            continue
        # Whole periods and slopes, at least eight canvas pixels wide: sharp edges that survive the shrinking.
        period = int(rng.integers(4, 14)) * 2
        slopes = rng.integers(-2, 3, 2)
        phase = down * slopes[0] + across * (slopes[1] or 1)
        pattern = rng.integers(0, 4)
        colours = _palette(3, rng)
        if pattern == 0:
            tile = colours[(phase // period) % 2]
        elif pattern == 1:
            tile = colours[(down // period + across // period) % 2]
        elif pattern == 2:
            tile = _gradient(size, rng)
        else:
            tile = _ramp(power_law_noise(size, rng.uniform(0.9, 1.4), rng) * 0.4, colours)
        image[top:bottom, left:right] = tile[top:bottom, left:right]
    grain = power_law_noise(size, 1.0, rng) * rng.uniform(1.0, 6.0)
    return _to_uint8(image + grain[..., None])


PAINTERS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "leaves": _paint_leaves,
    "texture": _paint_texture,
    "shapes": _paint_shapes,
    "text": _paint_text,
    "patchwork": _paint_patchwork,
}
