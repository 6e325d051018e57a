"""The folder of a made set: its files as they are noted, its lists, and the recipe that no other may overwrite."""

import csv
import dataclasses
import hashlib
import importlib.metadata
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from PIL import features

from cprl_jax.data import label_file
from cprl_jax.data.dataset import listing
from cprl_jax.data.distortions import DISTORTIONS
from cprl_jax.data.weak_labels import RULES
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file

JOURNAL = ".made.jsonl"  # the files that are complete, a line for each

_PACKAGES = ("numpy", "scipy", "scikit-image", "pillow")
_CODECS = ("jpg", "libjpeg_turbo", "jpg_2000", "webp", "zlib", "zlib_ng")


@dataclasses.dataclass(frozen=True)
class Made:
    """A file of the set and its row in labels.csv.

    Attributes:
      file: its path in the folder.
      sha256: checksum of its content.
      mos: the label, as it is written; '' for a file that labels.csv does not list.
      reference: the scene.
      distortion: '' for an undistorted picture.
      level: 0 for an undistorted picture.
    """

    file: str
    sha256: str
    mos: str
    reference: str
    distortion: str = ""
    level: int = 0


def describe(distortions: Iterable[str], rule: str) -> dict:
    """What recipe.json says of distortions, label rule and software."""
    entries = {name: DISTORTIONS[name] for name in distortions}
    software = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {
        "label": {"rule": rule, "text": RULES[rule].text, "weak": True},
        "distortions": {
            name: {"parameters": entry.parameters, "unit": entry.unit, "source": entry.source}
            for name, entry in entries.items()
        },
        "software": software | {codec: features.version(codec) for codec in _CODECS},
    }


def claim(out: Path, recipe: Mapping) -> None:
    """Writes recipe.json, or checks that the one that is there is the same; clears what an interruption left.

    Raises:
      UserError: the folder was made by another recipe or holds something else.
    """
    text = json.dumps({"format": 1} | dict(recipe), indent=1, ensure_ascii=False, default=str) + "\n"
    path = out / "recipe.json"
    if path.is_file():
        try:
            old, new = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
            differing = [field for field in new | old if old.get(field) != new.get(field)]
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{path} is damaged; delete that folder, or choose another one with --out") from None
        if differing:
            raise UserError(
                f"{out} was made by another recipe: {path} differs in {listing(differing)}; choose another --out, or "
                "give the arguments that it was made with"
            )
    elif others := sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(".")):
        raise UserError(f"{out} holds other files ({listing(others)}); choose a new or empty folder for --out")
    else:
        write_file(path, text)
    for leftover in [path for folder in (".", "images", "references") for path in (out / folder).glob(".*.tmp")]:
        leftover.unlink()


def read_journal(out: Path) -> dict[str, Made]:
    """What was noted as complete, by file; lines that an interruption cut off are left out."""
    known = {}
    path = out / JOURNAL
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = Made(*json.loads(line))
        except (ValueError, TypeError):
            continue
        known[row.file] = row
    return known


def note(journal: TextIO, rows: Iterable[Made]) -> None:
    """Appends to the open journal."""
    journal.write("".join(f"{json.dumps(dataclasses.astuple(row), ensure_ascii=False)}\n" for row in rows))
    journal.flush()


def write_lists(out: Path, rows: Sequence[Made], rule: str) -> None:
    """Writes labels.csv and checksums.sha256, and the journal in order."""
    text = io.StringIO()
    text.write(f"{label_file.WEAK}: computed, no human was asked. Rule {rule!r}: {RULES[rule].text}.\n")
    text.write("# Made by python -m cprl_jax.data.synthesize; recipe.json says how to repeat it.\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "mos", "reference", "distortion", "level"])
    writer.writerows([row.file, row.mos, row.reference, row.distortion, row.level] for row in rows if row.mos)
    write_file(out / "labels.csv", text.getvalue())
    sums = {row.file: row.sha256 for row in rows}
    for name in ("labels.csv", "recipe.json"):
        sums[name] = hashlib.sha256((out / name).read_bytes()).hexdigest()
    write_file(out / "checksums.sha256", "".join(f"{sums[file]}  {file}\n" for file in sorted(sums)))
    journal = io.StringIO()
    note(journal, rows)
    write_file(out / JOURNAL, journal.getvalue())
