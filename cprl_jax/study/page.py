"""The files of the page, and the texts that a lab writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path, write_file
from cprl_jax.study import bundle
from cprl_jax.study.settings import Settings
from cprl_jax.study.store import Store

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
CODE = ("style.css", "drawing.js", "http.js", "pages.js", "start.js")
CONSENT = "consent.txt"
LARGEST_TEXT = 100_000  # bytes


class Part(NamedTuple):
    content: bytes
    type: str


def parts() -> dict[str, Part]:
    """Name -> file of everything that the page is made of; they are read once.

    Raises:
      UserError: the libraries are not there, and cannot be put together.
    """
    if trouble := bundle.bundle():
        raise UserError(trouble)
    paths = [bundle.WEB / name for name in ("index.html", *CODE)]
    paths += [bundle.VENDOR / name for name in bundle.LIBRARIES]
    return {path.name: Part(path.read_bytes(), TYPES[path.suffix]) for path in paths}


def study(store: Store) -> dict[str, Any]:
    """What the page has to know of a study."""
    settings = store.settings
    known = {name: getattr(settings, name) for name in ("trial", "title", "fullscreen", "break_seconds")}
    known |= {
        "practice": settings.training > 0,
        "id": store.catalogue.study,
        "answers": settings.answers,
        "schedule": settings.schedule,
    }
    kept = store.catalogue.folder / CONSENT
    return known | {
        "consent": kept.read_text(encoding="utf-8").split("\n\n") if kept.exists() else consent_text(settings)
    }


def keep_consent(folder: Path, paragraphs: Sequence[str]) -> None:
    """Writes what observers agree to into the study's folder when it begins: it does not change under them."""
    write_file(folder / CONSENT, "\n\n".join(paragraphs))


def check_consent(folder: Path, settings: Settings) -> None:
    """Raises UserError if the file that was given says something else than what observers agree to."""
    try:
        given = consent_text(settings)
    except UserError:  # what it said is kept with the study, so that the file is not needed any more
        return
    if (kept := folder / CONSENT).exists() and kept.read_text(encoding="utf-8") != "\n\n".join(given):
        raise UserError(
            f"--consent={settings.consent}: it has changed since the study began with the text in {kept}; begin "
            "another study by --study=NAME"
        )


def consent_text(settings: Settings) -> list[str]:
    """The paragraphs of the consent form; raises UserError for a file that is no text."""
    path = bundle.WEB / "consent.txt"
    if settings.consent:
        path = user_path(settings.consent, field="--consent")
    try:
        content = path.read_bytes()
        if len(content) > LARGEST_TEXT:
            raise UserError(f"--consent={path} has more than {LARGEST_TEXT} bytes; shorten it")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"--consent: there is no file {path}") from None
    except UnicodeDecodeError:
        raise UserError(f"--consent={path} is no text in UTF-8; save it as one") from None
    except OSError as error:
        raise UserError(f"--consent={path} cannot be read ({error.strerror})") from None
    lines = [" ".join(line.split()) for line in text.splitlines()]  # one with blanks alone ends a paragraph as well
    paragraphs = [" ".join(paragraph.split()) for paragraph in "\n".join(lines).split("\n\n")]
    if not any(paragraphs):
        raise UserError(f"--consent={path} is empty; write what observers agree to")
    return [paragraph for paragraph in paragraphs if paragraph]
