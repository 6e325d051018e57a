"""The study as a folder: the same page without a server, and the way back of its answers.

A page that is opened from a disk may read no files but scripts. So the study, the plans and the images are scripts,
one each, and answers wait in the browser until the observer saves them as one file at the end.
"""

import base64
import itertools
import json
import tempfile
from pathlib import Path

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file
from cprl_jax.study import page, plan
from cprl_jax.study.store import Refused, Store

FORMAT = "cprl_jax study answers 1"
STUDY = Path("data", "study.js")  # the first file to be written, so that a folder that was not finished is known
_MOST_PLANS = 10_000
_LARGEST_FILE = 64 * 1024 * 1024
# On a disk, no header can say it. Scripts are those of the folder; nothing can be asked of any host.
_POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; style-src-attr 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)


def check(folder: Path, *, plans: int) -> None:
    """Makes `folder`. Raises UserError: `plans` is no sensible number; it has other files, or cannot be written to."""
    if not 1 <= plans <= _MOST_PLANS:
        raise UserError(f"--plans={plans}: it must be from 1 to {_MOST_PLANS}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # that it can be written
            pass
        if any(folder.iterdir()) and not (folder / STUDY).is_file():
            raise UserError(f"--out={folder} is not empty, and not of a study; give another")
    except OSError as error:
        raise UserError(f"--out={folder} cannot be written to ({error.strerror}); give another") from None


def another(folder: Path) -> UserError:
    """What to say of a folder with another study."""
    return UserError(f"--out={folder} has another study; give another folder, or remove it")


def write(store: Store, folder: Path, *, plans: int) -> Path:
    """Writes index.html, web/ and data/ with `plans` balanced plans; returns the folder.

    The page takes the plan that its address names (index.html?plan=3), else one by chance.

    Raises:
      UserError: as `check` does; `folder` has another study.
    """
    check(folder, plans=plans)
    study = page.study(store) | {"plans": plans}
    known, own = folder / STUDY, json.dumps({"id": study["id"]})[1:-1]
    if known.exists() and own not in known.read_text(encoding="utf-8", errors="replace"):
        raise another(folder)
    write_file(known, f"received({json.dumps(study)});\n")
    parts = page.parts()
    head = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    index = parts.pop("index.html").content.decode()
    index = index.replace("<!-- policy -->", head).replace("web/http.js", "web/files.js")
    parts["files.js"] = parts.pop("http.js")._replace(content=(page.bundle.WEB / "files.js").read_bytes())
    for name, part in parts.items():
        write_file(folder / "web" / name, part.content)
    catalogue, shown = store.catalogue, {}
    for number, steps in enumerate(itertools.islice(plan.of_files(store.settings, catalogue), plans), start=1):
        public = [plan.public(step) for step in steps]
        images = {image: catalogue.images[image]._asdict() for image in plan.images_of(public)}
        shown |= images
        content = json.dumps({"steps": public, "images": images})
        write_file(folder / "data" / f"plan-{number}.js", f"received({content});\n")
    for image in shown:
        content = base64.b64encode(catalogue.content(image)).decode()
        write_file(folder / "data" / f"image-{image}.js", f'received("{content}");\n')
    write_file(folder / "index.html", index)
    return folder


def read(store: Store, path: Path) -> str:
    """Takes in the answers of one file that a page saved; returns what it was in a few words.

    The same file again changes nothing, and a later one of the same observer adds what is new.

    Raises:
      UserError: it is no such file, of another study, or has answers that do not fit; then nothing of it is kept.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{path} is too large for a file of answers")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise KeyError("format")
        study, number, token, participant, code, letters = (
            content[name] for name in ("study", "plan", "token", "participant", "code", "steps")
        )
        letters = [(letter["step"], letter["record"], letter["events"]) for letter in letters]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is no file of answers, as the study's page saves it") from None
    if study != store.catalogue.study:
        raise UserError(f"{path} has answers of another study ({study}); this one is {store.catalogue.study}")
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= _MOST_PLANS:
        raise UserError(f"{path}: there is no plan {number!r}")
    if not isinstance(code, str) or not code.isalnum() or len(code) > 20:
        raise UserError(f"{path}: {str(code)[:40]!r} is no completion code")
    try:
        new = store.take(token, participant, number, code, letters)
    except Refused as refusal:
        raise UserError(f"{path}: {refusal}") from None
    return f"{new} steps" if new else "there already"
