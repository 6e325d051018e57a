"""What there is to show: the pairs of a run, as PNG files that are named by their content.

A run of the job "perceptual_attack" has its candidates in report/candidates.csv and cells/, and the images they were
made of in originals/. A study keeps what it shows in images/, and says what it is in catalogue.json.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import file_name, write_file
from cprl_jax.study.settings import Settings

FILE = "catalogue.json"
PAIR_NUMBERS = ("distance", "ssim", "max_change", "before", "after")
_IMAGE_ID = re.compile(r"[0-9a-f]{32}")
_RESTORED = "the study's command, given again, restores it from the run"
_COARSE = 16  # pixels: blocks of a plainly different image; those of training are also half and a quarter as large


class Shown(NamedTuple):
    """An image file: `id` is the start of its SHA-256."""

    id: str
    sha256: str
    bytes: int
    width: int
    height: int


class Picture(NamedTuple):
    """An original, and versions of it that are plainly different, the plainest first; all by the ids of their files."""

    name: str
    original: str
    coarse: tuple[str, ...]


class Pair(NamedTuple):
    """An original and a candidate. `candidates` has the rows of the report whose pixels these are, mostly one."""

    id: str
    image: str
    original: str
    perturbed: str
    candidates: tuple[dict[str, Any], ...]


class Catalogue(NamedTuple):
    """`study` is the identity of all of it: answers are of one catalogue."""

    study: str
    folder: Path
    images: dict[str, Shown]
    pictures: tuple[Picture, ...]
    pairs: tuple[Pair, ...]
    unchanged: int

    def content(self, image: str) -> bytes | None:
        """The PNG file of an id; None if there is no such image in the study.

        Raises:
          UserError: the file is missing, or is not what it was when the study began.
        """
        if not (_IMAGE_ID.fullmatch(image) and image in self.images):
            return None
        path = self.folder / "images" / f"{image}.png"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); {_RESTORED}") from None
        if hashlib.sha256(content).hexdigest() != self.images[image].sha256:
            raise UserError(f"{path} is damaged; {_RESTORED}")
        return content

    def is_whole(self) -> bool:
        """Whether every image can be shown."""
        try:
            return all(map(self.content, self.images))
        except UserError:
            return False


def open_or_make(run: Path, folder: Path, settings: Settings) -> Catalogue:
    """The catalogue of the study in `folder`, with all of its images: made from the run where they are not there yet.

    Raises:
      UserError: as `make` and `read` do; an image is damaged, and the run does not have it any more.
    """
    if not (folder / FILE).exists():
        make(run, folder, settings)
    catalogue = read(folder)
    if not catalogue.is_whole():
        _draw(run, folder, settings)
        for image in catalogue.images:
            try:
                catalogue.content(image)
            except UserError:
                raise UserError(
                    f"{folder / 'images' / image}.png is missing or damaged, and the run does not have it any more; "
                    "put a copy back, or begin another study by --study=NAME (answers to this one can be analysed)"
                ) from None
    return catalogue


def read(folder: Path) -> Catalogue:
    """What `folder` has, without a look at its images. Raises UserError: no catalogue there, or damaged."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {entry["id"]: Shown(**entry) for entry in content["images"]}
        pictures = tuple(Picture(**{**entry, "coarse": tuple(entry["coarse"])}) for entry in content["pictures"])
        pairs = tuple(Pair(**{**entry, "candidates": tuple(entry["candidates"])}) for entry in content["pairs"])
        return Catalogue(content["study"], folder, images, pictures, pairs, content["unchanged"])
    except FileNotFoundError:
        raise UserError(f"there is no study in {folder}; `serve` or `static` begins one") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no catalogue of a study ({error!r}); remove it, and it is made again") from None


def make(run: Path, folder: Path, settings: Settings) -> None:
    """Writes images/ and, when all of them are there, catalogue.json. Raises UserError as `_draw` does."""
    unchanged, content = _draw(run, folder, settings)
    study = hashlib.sha256(json.dumps([content, repr(settings)], sort_keys=True).encode()).hexdigest()[:16]
    write_file(folder / FILE, json.dumps({"study": study, "unchanged": unchanged, **content}, indent=1) + "\n")


def _draw(run: Path, folder: Path, settings: Settings) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Writes images/; returns how many candidates change nothing, and pictures, pairs and images for the catalogue.

    Candidates with the pixels of their original are left out (there is nothing to ask), and candidates of one image
    with the same pixels are shown as one pair.

    Raises:
      UserError: the run has no candidates, or no originals; a file is damaged; the pixels are of another original.
    """
    writer = _Writer(folder / "images")
    originals: dict[str, np.ndarray] = {}
    pictures, unchanged = [], 0
    shared: dict[tuple[str, str], list[dict[str, Any]]] = {}
    cells = list(_cells(run))
    for path, rows in tqdm(cells, desc="images of the study", unit="cell", dynamic_ncols=True, disable=len(cells) < 20):
        name = rows[0]["image"]
        if name not in originals:
            originals[name] = _read_original(run, name)
            coarse = [_coarse(originals[name], size) for size in (_COARSE, _COARSE // 2, _COARSE // 4)]
            pictures.append(Picture(name, writer(originals[name]), tuple(map(writer, coarse))))
        pixels = _read_candidates(path)
        for row in _thinned(rows, settings.candidates):
            candidate = pixels[int(row["candidate"])] if int(row["candidate"]) < len(pixels) else None
            _check(candidate, originals[name], row, path)
            if np.array_equal(candidate, originals[name]):
                unchanged += 1
                continue
            shared.setdefault((name, writer(candidate)), []).append(_described(row))
    if not shared:
        raise UserError(f"{run}: every candidate equals its original, pixel by pixel; there is nothing to show")
    by_name = {picture.name: picture.original for picture in pictures}
    pairs = [
        Pair(f"{by_name[name][:8]}-{perturbed[:8]}", name, by_name[name], perturbed, tuple(rows))
        for (name, perturbed), rows in shared.items()
    ]
    parts = {"pictures": pictures, "pairs": pairs, "images": list(writer.images.values())}
    return unchanged, {name: [entry._asdict() for entry in entries] for name, entries in parts.items()}


class _Writer:
    """Writes images as PNG files; the same pixels once."""

    def __init__(self, folder: Path):
        self.folder, self.images = folder, {}

    def __call__(self, pixels: np.ndarray) -> str:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=4)
        sha256 = hashlib.sha256(file.getvalue()).hexdigest()
        shown = Shown(sha256[:32], sha256, file.tell(), pixels.shape[1], pixels.shape[0])
        if shown.id not in self.images:
            write_file(self.folder / f"{shown.id}.png", file.getvalue())
            self.images[shown.id] = shown
        return shown.id


def check_run(run: Path) -> Path:
    """The table of a run's candidates; raises UserError where there is none."""
    path = run / "report" / "candidates.csv"
    if not path.is_file():
        raise UserError(
            f"--run={run}: there is no {path.relative_to(run)}; finish a run of the job perceptual_attack there "
            "(configs/perceptual_attack.py)"
        )
    return path


def read_report(path: Path, *, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file of a run's report; raises UserError: it cannot be read, is empty, or lacks a column."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); finish a run of the job perceptual_attack there"
        ) from None
    if not rows or (missing := [name for name in needed if name not in rows[0]]):
        raise UserError(
            f"{path} has no {'rows' if not rows else f'column {min(missing)}'}; give the run's command again"
        )
    return rows


def _cells(run: Path) -> Iterator[tuple[Path, list[dict[str, str]]]]:
    """The .npz files of a run, and the rows of their candidates."""
    path = check_run(run)
    rows = read_report(path, needed=("model", "fidelity", "image", "candidate", "file", *PAIR_NUMBERS))
    cells: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        cells.setdefault(row["file"], []).append(row)
    for name, group in cells.items():
        file = (run / name).resolve()
        if not file.is_relative_to(run.resolve()):
            raise UserError(f"{path} names {name}, which is outside of the run; run the attack again")
        yield file, group


def _read_original(run: Path, name: str) -> np.ndarray:
    path = run / "originals" / f"{file_name(name)}.png"
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}: the run is of an earlier version; give its command again, which writes the originals "
            "and computes nothing anew"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it and give the run's command again") from None


def _read_candidates(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["images"]
    except Exception:  # zipfile, zlib and NumPy each have their own
        raise UserError(f"{path} is missing or damaged; give the run's command again, which computes it anew") from None


def _check(candidate: np.ndarray | None, original: np.ndarray, row: dict[str, str], path: Path) -> None:
    """That these are the candidate and the original that the row is about."""
    if candidate is None or candidate.shape != original.shape or candidate.dtype != np.uint8:
        raise UserError(f"{path} does not have the candidates of {row['image']}; give the run's command again")
    change = int(np.abs(candidate.astype(int) - original).max())
    if change != round(float(row["max_change"])):
        raise UserError(
            f"{path}, candidate {row['candidate']}: it differs from originals/ by {change} grey levels, and by "
            f"{float(row['max_change']):g} in report/candidates.csv; give the run's command again"
        )


def _thinned(rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """`count` of a cell's candidates, evenly over their order by distance (0: all)."""
    rows = sorted(rows, key=lambda row: (float(row["distance"]), int(row["candidate"])))
    if not 0 < count < len(rows):
        return rows
    return [rows[int(place)] for place in np.round(np.linspace(0, len(rows) - 1, count))]


def _described(row: dict[str, str]) -> dict[str, Any]:
    names = {"model": row["model"], "fidelity": row["fidelity"], "candidate": int(row["candidate"])}
    return names | {name: float(row[name]) for name in PAIR_NUMBERS}


def _coarse(pixels: np.ndarray, size: int) -> np.ndarray:
    """The image in blocks of one colour, and brighter in a checkerboard of them: different wherever one looks."""
    height, width = pixels.shape[:2]
    small = (max(1, width // size), max(1, height // size))
    blocks = np.array(Image.fromarray(pixels).resize(small, Image.Resampling.BOX), int)
    blocks[(np.indices(blocks.shape[:2]).sum(axis=0) % 2).astype(bool)] += 4 * size
    blocks = np.where(blocks > 255, blocks - 8 * size, blocks).clip(0, 255).astype(np.uint8)
    return np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
