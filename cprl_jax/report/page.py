"""Sections, and what is made of them: one HTML page that needs nothing beside it, Markdown, and text for a terminal."""

import base64
import dataclasses
import io
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jaxtyping import UInt8
from markupsafe import Markup, escape
from numpy import ndarray
from PIL import Image

from cprl_jax.report import figures
from cprl_jax.report.table import Table, escaped
from cprl_jax.report.values import decimals, listed
from cprl_jax.runtime.files import write_file

WIDTH = 110  # characters of wrapped text in a terminal
LARGEST_SIDE = 360  # pixels of an embedded photograph
# Numbers of a verdict: '0.86 → −0.52', '0.89 above', '+0.031 [0.012, 0.052]'.
_STRONG = re.compile(r"(?:−?\d\.\d\d|–) → (?:−?\d\.\d\d|–)|\d\.\d+ (?:above|below)|[+−]?\d\.\d+ \[[^\]]*\]")


class View(NamedTuple):
    """An image, and the lines beneath it. An image of role 'attacked' shows the 'original' of its card on hover."""

    image: UInt8[ndarray, "height width 3"]
    label: str
    lines: Sequence[str]
    role: str = ""


class Card(NamedTuple):
    """Images that belong together. Beside the page they are one figure, of this name."""

    name: str
    title: str
    views: Sequence[View]


def attacked_card(
    name: str, title: str, image: ndarray, attacked: ndarray, *, before: Sequence[str], after: Sequence[str]
) -> Card:
    """An image, its attacked twin and their difference; see `figures.views` for the arguments and errors."""
    image, attacked, difference, factor = figures.views(title, image, attacked)
    twins = [View(image, "image", before, "original"), View(attacked, "attacked image", after, "attacked")]
    return Card(name, title, [*twins, View(difference, "difference", ["difference", f"× {factor}"])])


class Range(NamedTuple):
    """On a line from -1 to 1, a ring at one correlation, a dot at another one, and the interval of the latter."""

    name: str
    colour: str
    before: float
    after: float
    low: float
    high: float
    flagged: bool = False


class Folded(NamedTuple):
    """Text as it is, such as a configuration, under a title that unfolds it."""

    title: str
    text: str


class Section(NamedTuple):
    """A heading, what is shown, and a line of explanation.

    A part is a table, a paragraph (str), or a list of figures, cards, ranges, folded texts, or items (str). Empty parts
    are left out, and so are sections without any. `kind` is a CSS class: 'warnings' sets a section apart.
    """

    title: str
    parts: Sequence[Table | str | Sequence[figures.Panel | Card | Range | Folded | str]]
    hint: str = ""
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """A report; all text in it is escaped.

    Attributes:
      title: a line.
      sections: in their order; the notes and the configuration come after them.
      summary: what was done, in a paragraph or several.
      verdict: what came out, in a paragraph.
      notes: sentences.
      config_text: the resolved configuration, shown as it is.
      words: explained at the end, and wherever headings and hints use them.
    """

    title: str
    sections: Sequence[Section]
    _: dataclasses.KW_ONLY
    summary: str | Sequence[str] = ()
    verdict: str = ""
    notes: str | Sequence[str] = ()
    config_text: str = ""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def html(self, files: Sequence[str] = ()) -> str:
        """The page, with the names of the files beside it."""
        loader = jinja2.PackageLoader("cprl_jax.report")
        options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
        environment = jinja2.Environment(loader=loader, **options)
        environment.filters |= {
            "prose": prose,
            "strong": lambda text: Markup(_STRONG.sub(r"<b>\g<0></b>", str(prose(text)))),
            "linked": lambda text: _linked(text, self.words),
            "decimals": decimals,
            "anchor": _anchor,
            "picture": _picture,
            "svg": _svg,
            "kind": _kind,
        }
        configuration = [Folded("The whole configuration", self.config_text)] if self.config_text.strip() else []
        every = [
            *self.sections,
            Section("Notes", [paragraphs(self.notes)]),
            Section(
                "How to repeat this",
                [configuration],
                "These values fix the split of the data, the training and the attacks, seeds included: the same "
                "command with them repeats this run.",
            ),
        ]
        shown = (section._replace(parts=[part for part in section.parts if part]) for section in every)
        sections = [section for section in shown if section.parts]
        summary, files = paragraphs(self.summary), listed([*files, "figures/"])
        template = environment.get_template("page.html")
        return template.render(page=self, summary=summary, sections=sections, files=files)


def write(folder: str | os.PathLike, page: Page, *, files: Mapping[str, str], figure_names: tuple[str, ...]) -> Path:
    """Writes files, figures/*.png and report.html, each whole or not at all; returns the page's path.

    Args:
      folder: made if it does not exist.
      files: name -> text, written first. One without text is removed, if an earlier report left it.
      figure_names: how the names of this report's figures begin; others left by an earlier report are removed.
    """
    folder = Path(folder)
    html = page.html([name for name, text in files.items() if text])  # before anything is written
    for name, text in files.items():
        if text:
            write_file(folder / name, text)
        else:
            (folder / name).unlink(missing_ok=True)
    items = [item for section in page.sections for part in section.parts if isinstance(part, list) for item in part]
    panels = [item for item in items if isinstance(item, figures.Panel)]
    for card in (item for item in items if isinstance(item, Card)):
        images, captions = zip(*((view.image, ", ".join(view.lines)) for view in card.views), strict=True)
        panels.append(figures.side_by_side(card.name, card.title, images, captions))
    figures.write_panels(folder / "figures", panels, names=figure_names)
    write_file(folder / "report.html", html)
    return folder / "report.html"


def terminal(parts: Iterable[str | Table | Section]) -> str:
    """Tables, paragraphs and sections of items for a terminal."""
    shown = []
    for part in filter(_has_content, parts):
        if isinstance(part, Section):
            indents = {"initial_indent": "  - ", "subsequent_indent": "    "}
            shown.append("\n".join([part.title, *(textwrap.fill(item, WIDTH, **indents) for item in part.parts[0])]))
        elif isinstance(part, Table):
            shown += [part.text(), textwrap.fill(part.explained("*"), WIDTH)]
        else:
            shown.append(textwrap.fill(part, WIDTH))
    return "\n\n".join(filter(None, shown))


def markdown(title: str, parts: Iterable[str | Table | Section]) -> str:
    """The same as a Markdown file."""
    shown = [f"# {escaped(title)}"]
    for part in filter(_has_content, parts):
        if isinstance(part, Section):
            shown += [f"## {part.title}", "\n".join(f"- {escaped(item)}" for item in part.parts[0])]
        elif isinstance(part, Table):
            shown += [part.markdown(), part.explained()]
        else:
            shown.append(escaped(part))
    return "\n\n".join(filter(None, shown)) + "\n"


def _has_content(part: str | Table | Section) -> bool:
    return any(part.parts) if isinstance(part, Section) else bool(part)


def paragraphs(text: str | Sequence[str]) -> list[str]:
    """One paragraph or several as a list."""
    return [text] * bool(text) if isinstance(text, str) else list(text)


def prose(text: Any) -> Markup:
    """Escaped, with true minus signs, percent signs that stay with their number, and names that may break."""
    text = re.sub(r"(?<!\w)-(?=[\d∞])", "−", str(escape(text)))
    return Markup(text.replace(" %", "\N{NO-BREAK SPACE}%").replace("_", "_<wbr>"))


def _linked(text: str, words: Mapping[str, str]) -> Markup:
    """`prose` in which the words that the page explains do so on hover, and lead to their explanation."""
    by_name = {word.lower(): word for word in sorted(words, key=len, reverse=True)}  # longer ones contain shorter ones
    link = Markup('<a class="term" href="#{}" title="{}">{}</a>')
    shown = Markup()
    for piece in re.split(rf"(?<!\w)({'|'.join(map(re.escape, by_name))})(?!\w)", text, flags=re.IGNORECASE):
        word = by_name.get(piece.lower())
        shown += link.format(_anchor(word), words[word], prose(piece)) if word else prose(piece)
    return shown


def _kind(part: Any) -> str:
    """The macro of templates/parts.html for a part."""
    name = type(part[0] if isinstance(part, list) else part).__name__
    return "items" if isinstance(part, list) and name == "str" else name


def _anchor(name: str) -> str:
    return "x" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _picture(pixels: UInt8[ndarray, "height width 3"]) -> dict[str, Any]:
    """Width, height and data of an image that is embedded, not larger than `LARGEST_SIDE`."""
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"width": image.width, "height": image.height, "data": base64.b64encode(file.getvalue()).decode("ascii")}


def _svg(panel: figures.Panel) -> Markup:
    opened = Markup('<svg role="img" aria-label="{}"').format(panel.alt)
    return Markup(figures.to_svg(panel, f"{_anchor(panel.name)}-").replace("<svg", opened, 1))
