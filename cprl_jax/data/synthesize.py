"""Makes a set of distorted images with computed labels out of photographs.

    python -m cprl_jax.data.synthesize --images=photographs --out=myset

Every photograph, under every distortion of a recipe, at every level (KADID-10k's 25 distortions at 5 levels unless told
otherwise):

    myset/images/PHOTOGRAPH_DISTORTION_LEVEL.png
    myset/references/PHOTOGRAPH.png    the undistorted ones, as they were distorted
    myset/labels.csv                   image,mos,reference,distortion,level: read by configs/own.py
    myset/checksums.sha256             cd myset && sha256sum -c checksums.sha256
    myset/recipe.json                  all that it takes to make the same again

THE LABELS ARE WEAK: a formula compares each image with its reference, no human was asked; labels.csv says so, too.

The same command continues after an interruption, and checks and repairs a set that is complete. The bytes are the same
each time, however many processes make them; with another libjpeg, OpenJPEG, NumPy or the like they may differ, so a
folder is only ever continued with the versions that it was begun with.
"""

from cprl_jax.runtime import program

if __name__ == "__main__":  # before the imports that take time, in which Ctrl-C should have its effect already
    program.own_terminal("stopped; the same command resumes")

import dataclasses
import difflib
import functools
import hashlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import filelock
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from cprl_jax.data import photographs
from cprl_jax.data.dataset import listing
from cprl_jax.data.decode import decode_photograph
from cprl_jax.data.distortions import DISTORTIONS, FAMILIES, LEVELS, distort
from cprl_jax.data.labels import MIN_SIDE
from cprl_jax.data.made_set import JOURNAL, Made, claim, describe, note, read_journal, write_lists
from cprl_jax.data.releases._common import one_line
from cprl_jax.data.weak_labels import RULES
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path, write_file
from cprl_jax.runtime.parser import Parser

RECIPES = {
    "kadid": ("kadid",),
    "tid2013": ("tid2013",),
    "mlive": ("mlive",),
    "all": ("kadid", "tid2013", "mlive"),
}  # the families of the registry of distortions that each takes
EMBEDDED = "embedded"
COMPRESS_LEVEL = 1  # for PNG; 6 takes four times as long for files that are hardly smaller

Pixels = UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What all tasks have in common."""

    out: Path
    levels: tuple[int, ...]
    label: str
    size: tuple[int, int] | None
    seed: int


@dataclasses.dataclass(frozen=True)
class _Task:
    """A photograph and a distortion ('' for the reference itself), and those of its files that were made before."""

    photograph: str
    source: Path
    distortion: str
    known: Mapping[str, Made]


def synthesize(
    images: str | os.PathLike,
    out: str | os.PathLike,
    *,
    recipe: str = "kadid",
    distortions: Sequence[str] = (),
    levels: Sequence[int] = LEVELS,
    label: str = "ours",
    size: tuple[int, int] | None = None,
    seed: int = 0,
    workers: int = 0,
    scenes: int = 64,
    progress: bool = True,
) -> int:
    """Makes a set, or what is missing of it. A program that calls this with several workers must guard its main module.

    Args:
      images: the folder of photographs (JPEG, PNG, BMP, WebP, TIFF; see `decode_photograph`); '' for 'embedded'.
      out: the folder to write to, new or empty, or begun with the same arguments.
      recipe: one of `RECIPES`, or 'embedded': the data set of `cprl_jax.data.embedded.make_embedded`, which takes only
        the arguments `out`, `seed` and `scenes`.
      distortions: names of the registry of distortions to make instead of a recipe's.
      levels: which of the levels 1 to 5.
      label: the label rule, one of `RULES`.
      size: (width, height) in pixels to which photographs are brought first: the largest such rectangle in their middle
        is cut out and resized (Lanczos). None leaves them as they are.
      seed: seed of all noise, 0 or more; the noise also depends on the names of photograph and distortion.
      workers: processes; 0 is one for each core. With 1 everything is made in this one.
      scenes: how many scenes 'embedded' has.
      progress: draw progress bars on standard error.

    Returns:
      the number of rated images in the set.

    Raises:
      UserError: an argument that is not allowed, photographs that cannot be read (all in one message), or a folder that
        holds something else or cannot be written.
    """
    if recipe == EMBEDDED and (os.fspath(images) or distortions or label != "ours" or size or tuple(levels) != LEVELS):
        raise UserError(
            f"recipe {EMBEDDED!r} brings pictures, distortions and labels; it takes only out, seed and scenes"
        )
    chosen = _check(recipe, distortions, levels, label, size, seed, workers)
    out = user_path(out, field="--out")
    settings = _Settings(out, tuple(sorted(levels)), label, size, seed)
    sources = {} if recipe == EMBEDDED else photographs.find(user_path(images, field="--images"), size=size)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(out / ".lock", timeout=0):
            if recipe == EMBEDDED:
                rows = _embedded(out, seed, scenes, progress)
            else:
                name = "own choice" if distortions else recipe
                rows = _from_photographs(sources, name, chosen, settings, workers or _cores(), progress)
            write_lists(out, rows, label)
    except filelock.Timeout:
        raise UserError(f"another process is writing to {out}; wait for it, or choose another --out") from None
    except OSError as error:
        raise UserError(
            f"{out} could not be written ({one_line(error)}); make room there and give the same command again, or "
            "choose another --out"
        ) from error
    return sum(bool(row.mos) for row in rows)


def _check(
    recipe: str,
    distortions: Sequence[str],
    levels: Sequence[int],
    label: str,
    size: tuple[int, int] | None,
    seed: int,
    workers: int,
) -> list[str]:
    """The names of the distortions to make.

    Raises:
      UserError: an argument that is not allowed.
    """
    if recipe not in (*RECIPES, EMBEDDED):
        raise UserError(f"recipe {recipe!r} is not one; choose one of {', '.join([*RECIPES, EMBEDDED])}")
    for name in distortions:
        if name not in DISTORTIONS:
            near = difflib.get_close_matches(name, DISTORTIONS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"there is no distortion {name!r}; {hint}--help lists them")
    if len(set(distortions)) != len(distortions):
        raise UserError(f"distortions {listing(distortions, most=50)}: name each once")
    if not levels or len(set(levels)) != len(levels) or not set(levels) <= set(LEVELS):
        raise UserError(f"levels {listing(levels)}: name some of {listing(LEVELS)}, each once")
    if label not in RULES:
        raise UserError(f"label {label!r} is not a rule; choose one of {', '.join(RULES)}")
    if size is not None and min(size) < MIN_SIDE:
        raise UserError(f"size {size[0]}x{size[1]} is not allowed; both sides need {MIN_SIDE} pixels or more")
    if size is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise UserError(
            f"size {size[0]}x{size[1]} is not allowed; {Image.MAX_IMAGE_PIXELS:,} pixels can be opened again"
        )
    if seed < 0 or workers < 0:
        raise UserError(f"seed={seed} and workers={workers} must be 0 or more")
    families = RECIPES.get(recipe, ())
    return list(distortions) or [name for name, entry in DISTORTIONS.items() if entry.family in families]


def _from_photographs(
    sources: Mapping[str, tuple[Path, str]],
    recipe: str,
    distortions: list[str],
    settings: _Settings,
    workers: int,
    progress: bool,
) -> list[Made]:
    """Makes all files of the set that are not there."""
    options = {"recipe": recipe, "levels": settings.levels, "size": settings.size, "seed": settings.seed}
    named = {name: {"file": path.name, "sha256": digest} for name, (path, digest) in sources.items()}
    claim(settings.out, options | describe(distortions, settings.label) | {"photographs": named})
    known = read_journal(settings.out)
    tasks = []
    for name, (source, _) in sources.items():
        for distortion in ("", *distortions):
            files = _files(name, distortion, settings.levels)
            tasks.append(_Task(name, source, distortion, {file: known[file] for file in files if file in known}))
    total = len(sources) * (1 + len(distortions) * len(settings.levels))
    rows = []
    with (
        open(settings.out / JOURNAL, "a", encoding="utf-8") as journal,
        tqdm(total=total, unit="image", dynamic_ncols=True, disable=not progress, smoothing=0.05) as bar,
    ):
        journal.write("\n")  # ends a line that an interruption may have cut off
        for made in _run(functools.partial(_make, settings), tasks, workers):
            rows += made
            note(journal, made)
            bar.update(len(made))
    return rows


def _run(function: Callable, tasks: Sequence[_Task], workers: int) -> Iterator[list[Made]]:
    """Results in the order of the tasks, from several processes unless `workers` is 1."""
    if workers == 1:
        yield from map(function, tasks)
        return
    # Started afresh, not forked: this process may have threads, which a fork would leave in the middle of things.
    context = multiprocessing.get_context("spawn")
    try:
        with program.starting_processes():
            pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_end_with_parent)
            results = pool.map(function, tasks)
        with pool:
            yield from results
    except BrokenProcessPool:
        raise UserError(
            "a process was killed, most likely for lack of memory; give the same command with fewer --workers, or make "
            "another set with a smaller --size"
        ) from None


def _end_with_parent() -> None:
    """Lets a worker end when the main process has, however it did, and no sooner."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


_reference = functools.lru_cache(maxsize=1)(photographs.read)  # asked for many times in a row


def _make(settings: _Settings, task: _Task) -> list[Made]:
    """The files of a task: kept where they are as they were made, else made."""
    rows = []
    for level, file in zip(settings.levels, _files(task.photograph, task.distortion, settings.levels), strict=False):
        path = settings.out / file
        content = path.read_bytes() if path.is_file() else b""
        before = task.known.get(file)
        if before is not None and hashlib.sha256(content).hexdigest() == before.sha256:
            rows.append(before)
            continue
        reference = _reference(task.source, settings.size)
        # Files are renamed when they are whole: one that is there and not noted is from just before an interruption.
        pixels = None if before is not None else _decoded(content, reference.shape)
        if pixels is None:
            pixels = reference
            if task.distortion:
                key = [settings.seed, zlib.crc32(f"{task.photograph}_{task.distortion}".encode())]
                try:
                    pixels = distort(reference, task.distortion, level=level, key=key)
                except ValueError as error:
                    raise UserError(f"{task.source}, {task.distortion}: {one_line(error)}") from error
            content = _png(pixels)
            write_file(path, content)
        digest = hashlib.sha256(content).hexdigest()
        if task.distortion:
            mos = str(np.float32(RULES[settings.label].score(pixels, reference)))
            rows.append(Made(file, digest, mos, task.photograph, task.distortion, level))
        else:
            rows.append(Made(file, digest, "", task.photograph))
    return rows


def _files(photograph: str, distortion: str, levels: Sequence[int]) -> list[str]:
    if not distortion:
        return [f"references/{photograph}.png"]
    return [f"images/{photograph}_{distortion.replace('/', '-')}_{level}.png" for level in levels]


def _decoded(content: bytes, shape: tuple[int, ...]) -> Pixels | None:
    try:
        pixels = decode_photograph(content)
    except ValueError:
        return None
    return pixels if pixels.shape == shape else None


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=COMPRESS_LEVEL)
    return file.getvalue()


def _embedded(out: Path, seed: int, scenes: int, progress: bool) -> list[Made]:
    from cprl_jax.data.embedded import DISTORTION_NAMES, make_embedded

    dataset = make_embedded(
        seed=seed, scenes=scenes, progress=progress
    )  # before the folder is claimed for it: it checks
    claim(out, {"recipe": EMBEDDED, "seed": seed, "scenes": scenes} | describe(DISTORTION_NAMES, "ours"))
    rows = []
    for row in tqdm(range(len(dataset)), unit="image", dynamic_ncols=True, disable=not progress):
        level = int(dataset.levels[row])
        file = f"{'images' if level else 'references'}/{dataset.names[row]}.png"
        content = _png(dataset.images[row])
        if not (out / file).is_file() or (out / file).read_bytes() != content:
            write_file(out / file, content)
        labels = (str(dataset.mos[row]), str(dataset.references[row]), str(dataset.distortions[row]), level)
        rows.append(Made(file, hashlib.sha256(content).hexdigest(), *labels))
    return rows


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _levels(text: str) -> tuple[int, ...]:
    return tuple(int(level) for level in _names(text))


def _size(text: str) -> tuple[int, int]:
    width, height = text.lower().split("x")
    return int(width), int(height)


def main(argv: Sequence[str] | None = None) -> int:
    """Makes a set as the command line says; returns the exit code: 0, 1 (of the system) or 2 (a user's mistake)."""
    return program.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    lines = [
        f"  {family + ':':10}{', '.join(name for name, entry in DISTORTIONS.items() if entry.family == family)}"
        for family in FAMILIES
    ]
    rules = [f"  {name + ':':10}{rule.text}" for name, rule in RULES.items()]
    epilog = "\n".join(["distortions, by family:", *lines, "", "label rules, 100 for equal images:", *rules])
    parser = Parser(prog="python -m cprl_jax.data.synthesize", description=__doc__, epilog=epilog)
    parser.add_argument("--images", default="", metavar="DIR", help="the photographs (not with --recipe=embedded)")
    parser.add_argument("--out", required=True, metavar="DIR", help="new, empty, or begun by the same command")
    parser.add_argument(
        "--recipe",
        default="kadid",
        help="kadid: KADID-10k's 25 distortions (default). tid2013: those of TID2013 that KADID-10k lacks. mlive: the "
        "pairs of MLIVE. all: these three. embedded: the quickstart's data set, which needs no pictures",
    )
    parser.add_argument("--distortions", type=_names, default=(), metavar="A,B", help="these instead of a recipe's")
    parser.add_argument("--levels", type=_levels, default=LEVELS, metavar="1,3,5", help="default: 1,2,3,4,5")
    parser.add_argument("--label", default="ours", help="the label rule: " + ", ".join(RULES) + " (default: ours)")
    parser.add_argument(
        "--size",
        type=_size,
        metavar="WIDTHxHEIGHT",
        help="cut the middle of photographs to this aspect and resize it (KADID-10k: 512x384; default: as they are)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all noise (default: 0)")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one for each core)")
    parser.add_argument("--scenes", type=int, default=64, help="number of scenes of --recipe=embedded (default: 64)")
    arguments = vars(parser.parse_args(argv))
    if not arguments["images"] and (arguments["recipe"] != EMBEDDED or arguments["distortions"]):
        raise UserError("--images=DIR is missing: the folder with the photographs")
    count, out = synthesize(**arguments), arguments["out"]
    program.show(f"{count} images in {out}, with weak labels (computed, not human)")
    program.show(f"To train on them: python -m cprl_jax.main --config=configs/own.py --config.dataset.manual_dir={out}")


if __name__ == "__main__":
    sys.exit(main())
