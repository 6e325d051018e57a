"""What is kept of an observer: every column of the exports, in one place.

From `TABLES` come the check of what a page sends, the columns of the CSV and JSON files, and the tables in
docs/study.md.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MOST_EVENTS = 200  # with one step
_HAPPENINGS = ("load", "blur", "focus", "hidden", "visible", "fullscreen", "window", "resize", "offline", "online")
_HAPPENINGS += ("too_small", "retry")
_LONGEST_LIST = 2000
_LARGEST = 1e15


class Column(NamedTuple):
    """A column of an export. `by` says who writes it: the server, or the page in a step of that kind."""

    name: str
    type: str  # integer, number, text, boolean, numbers (a list; in CSV with blanks between them)
    meaning: str
    unit: str = ""
    by: str = "server"
    choices: tuple[str, ...] = ()
    longest: int = 100  # of a text, in characters


def _page(kind: str, *columns: Column) -> list[Column]:
    return [column._replace(by=kind) for column in columns]


ANSWERS = (
    Column("observer", "integer", "number of the observer"),
    Column("step", "text", "name of the step, unique in the study"),
    Column("position", "integer", "place of the step among the observer's"),
    Column("block", "integer", "0 is the training"),
    Column("role", "text", "test, repeat (of a pair shown before), catch_same, catch_different, training"),
    Column("trial", "text", "yesno, flicker, 2afc"),
    Column("pair", "text", "the pair, as in pairs; empty in catch trials and training"),
    Column("image", "text", "name of the image"),
    Column(
        "perturbed_at", "integer", "1 or 2: which of the two was the perturbed one; empty where they were identical"
    ),
    Column("expected", "text", "the right answer, where there is one"),
    *_page(
        "trial",
        Column("answer", "text", "yesno, flicker: same, different; 2afc: first, second is the perturbed one"),
        Column("rt_ms", "number", "from the end of the last image to the answer; flicker: from the start", "ms"),
        Column("input", "text", "how it was given", choices=("key", "touch", "mouse")),
        Column(
            "durations_ms",
            "numbers",
            "measured: image, grey, image, ...; flicker: shortest and longest image, except one that the answer cut",
            "ms",
        ),
        Column("frame_ms", "number", "time between two frames of the display", "ms"),
        Column("dropped_frames", "integer", "frames that the display skipped during the trial"),
        Column("shown", "integer", "how often the trial was begun; more than 1 after a reload"),
        Column("hidden", "boolean", "the page was hidden or without focus meanwhile"),
        Column("fullscreen", "boolean", "the page had the whole screen"),
        Column("pixel_ratio", "number", "pixels of the display to a CSS pixel (devicePixelRatio)"),
        Column("pinch_zoom", "number", "of the visual viewport; 1 is none"),
        Column("width", "number", "of the window", "CSS px"),
        Column("height", "number", "of the window", "CSS px"),
        Column("started_ms", "number", "when the trial began, by the observer's clock", "ms since 1970"),
    ),
    Column("correct", "boolean", "the answer is the right one, where there is one"),
    Column("received", "text", "when the server had it on disk (UTC)"),
)

OBSERVERS = (
    Column("observer", "integer", "number, never given twice"),
    Column("participant", "text", "what the link said (?participant=...), such as the name a panel uses"),
    Column("source", "text", "server; file (imported)"),
    Column("started", "text", "UTC"),
    Column("finished", "text", "UTC; empty if the observer did not get to the end"),
    Column("steps", "integer", "of the whole session"),
    Column("done", "integer", "of them"),
    Column("completion_code", "text", "what the last page showed; empty before it"),
    *_page("consent", Column("agreed", "boolean", "always true: nobody gets further otherwise")),
    *_page(
        "display",
        Column("dark_seen", "integer", "of four dark grey squares on black, how many were seen"),
        Column("bright_seen", "integer", "of four light grey squares on white, how many were seen"),
        Column("frame_ms", "number", "time between two frames of the display", "ms"),
        Column("pixel_ratio", "number", "pixels of the display to a CSS pixel"),
        Column("zoom", "number", "of the browser, estimated (outer by inner width of the window)"),
        Column("screen_width", "number", "of the whole screen", "CSS px"),
        Column("screen_height", "number", "of the whole screen", "CSS px"),
        Column("browser", "text", "its name and version"),
        Column("system", "text", "of the device"),
        Column("mobile", "boolean", "a phone or tablet"),
        Column("verified", "text", "how images were verified", choices=("sha256", "size")),
    ),
    *_page("comments", Column("comment", "text", "what the observer wrote at the end", longest=2000)),
)

EVENTS = (
    Column("observer", "integer", "number of the observer"),
    Column("step", "text", "the step during which it happened"),
    *_page(
        "event",
        Column("at_ms", "number", "by the observer's clock", "ms since 1970"),
        Column("event", "text", "what happened", choices=_HAPPENINGS),
        Column("detail", "text", "more about it"),
    ),
)

PAIRS = (
    Column("pair", "text", "name of the pair"),
    Column("image", "text", "name of the image"),
    Column("model", "text", "the model that was attacked"),
    Column("fidelity", "text", "the distance that the attack kept small"),
    Column("candidate", "integer", "number of the candidate, as in the run's report/candidates.csv"),
    Column("distance", "number", "by `fidelity`"),
    Column("ssim", "number", "SSIM of the two images"),
    Column("max_change", "number", "largest change of a value", "1/255"),
    Column("before", "number", "score of the original", "0..10"),
    Column("after", "number", "score of the perturbed image", "0..10"),
)

TABLES: Mapping[str, tuple[Column, ...]] = {
    "answers": ANSWERS,
    "observers": OBSERVERS,
    "events": EVENTS,
    "pairs": PAIRS,
}


def fields(kind: str) -> list[Column]:
    """What a page sends with a step of this kind ('event': with an event)."""
    return [column for columns in TABLES.values() for column in columns if column.by == kind]


def problem(kind: str, record: Any, *, answers: Iterable[str] = ()) -> str:
    """What is wrong with what a page sent, in a few words; '' if nothing is.

    Args:
      kind: of the step, or 'event'.
      record: what was sent: has to be an object with exactly the fields of that kind.
      answers: what may be answered.
    """
    if not isinstance(record, dict):
        return "not an object"
    known = {column.name: column for column in fields(kind)}
    if record.keys() != known.keys():
        odd = sorted(map(str, record.keys() ^ known.keys()))
        return f"fields missing or unknown: {', '.join(odd)[:100]}"
    for name, column in known.items():
        choices = tuple(answers) if name == "answer" else column.choices
        if not _is(record[name], column) or (choices and record[name] not in choices):
            return f"{name} is not {'one of ' + ', '.join(choices) if choices else column.type}"
    if kind == "consent" and record["agreed"] is not True:
        return "agreed is not true"
    return ""


def _is(value: Any, column: Column) -> bool:
    if column.type == "text":
        return is_of("text", value) and len(value) <= column.longest
    return is_of(column.type, value)


def is_of(type_: str, value: Any) -> bool:
    """Whether a value is of a type of `Column`; numbers are finite and not negative."""
    if type_ == "boolean":
        return isinstance(value, bool)
    if type_ == "text":
        return isinstance(value, str) and is_unicode(value)
    if type_ == "numbers":
        return isinstance(value, list) and len(value) <= _LONGEST_LIST and all(map(_is_number, value))
    return _is_number(value) and (type_ == "number" or float(value).is_integer())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LARGEST


def is_unicode(text: str) -> bool:
    """Whether it can be stored: JSON may have halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text) and "\0" not in text


def cell(value: Any) -> str:
    """A value as CSV has it. Text that a spreadsheet would compute, such as `=1+1`, gets an apostrophe in front."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list):
        return " ".join(cell(one) for one in value)
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return repr(value)


def markdown(columns: Iterable[Column]) -> str:
    """The data dictionary of one table, as docs/study.md has it."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    lines += [f"| `{column.name}` | {column.type} | {column.unit} | {column.meaning} |" for column in columns]
    return "\n".join(lines)
