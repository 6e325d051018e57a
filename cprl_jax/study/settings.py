"""What a study is like: decided at its first command, and the same from then on."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file

TRIALS = ("yesno", "flicker", "2afc")
FILE = "settings.json"
_LONGEST = 1000  # characters of a text
_UNWRITABLE = re.compile("[\0-\x1f\x7f\ud800-\udfff]")  # control characters; bytes of a command line that are no UTF-8
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _setting(default: Any, text: str, *, least: float = -math.inf, most: float = math.inf, choices: tuple = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "range": (least, most), "choices": choices})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Each field is a flag of the command line. Raises UserError for a value out of its range."""

    trial: str = _setting("yesno", "what an observer does in a trial", choices=TRIALS)
    trials: int = _setting(120, "pairs that each observer sees (all, if there are fewer)", least=1, most=10_000)
    repeats: int = _setting(12, "of them shown a second time", least=0, most=1000)
    catches: int = _setting(
        8, "catch trials of each kind: identical pairs, plainly different pairs", least=0, most=1000
    )
    training: int = _setting(8, "trials with feedback before the first block", least=0, most=100)
    block: int = _setting(40, "trials between two breaks", least=1, most=10_000)
    break_seconds: int = _setting(20, "shortest break", least=0, most=3600)
    stimulus_ms: int = _setting(
        1000, "how long an image is shown; flicker: for at most eight times that", least=10, most=60_000
    )
    gap_ms: int = _setting(500, "grey between two images", least=10, most=60_000)
    flicker_ms: int = _setting(100, "flicker: how long before the other image takes the place", least=10, most=60_000)
    candidates: int = _setting(0, "of each model, fidelity and image, evenly by rank of distance; 0 = all", least=0)
    seed: int = _setting(0, "of all random choices", least=0, most=2**63 - 1)
    hours: float = _setting(24.0, "how long an unfinished session can be taken up again", least=0.01, most=10_000)
    most_observers: int = _setting(1000, "sessions that the server begins at most", least=1, most=100_000)
    title: str = _setting("Can you see the difference?", "heading of the first page")
    consent: str = _setting("", "a text file, paragraphs with blank lines between them; '' = a short text of ours")
    fullscreen: bool = _setting(True, "ask for the full screen")
    max_catch_errors: float = _setting(
        0.25, "exclusion: an observer with a larger share of wrong catch trials", least=0, most=1
    )
    max_timing_error_ms: float = _setting(
        50.0, "exclusion: a trial with an image or gap that was this much longer or shorter", least=0, most=60_000
    )
    drop_hidden: bool = _setting(True, "exclusion: a trial during which the page was hidden or lost the focus")
    bt500: bool = _setting(True, "exclusion: observers that the screening of ITU-R BT.500 rejects")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given, (least, most) = getattr(self, field.name), field.metadata["range"]
            if isinstance(given, bool) != (field.type is bool) or not isinstance(
                given, float | int if field.type is float else field.type
            ):
                raise UserError(f"--{field.name}={given}: it must be {KINDS[field.type]}")
            if (choices := field.metadata["choices"]) and given not in choices:
                raise UserError(f"--{field.name}={given}: choose one of {', '.join(choices)}")
            if not isinstance(given, str) and not least <= given <= most:
                raise UserError(f"--{field.name}={given}: it must be from {least:g} to {most:g}")
            if isinstance(given, str) and (len(given) > _LONGEST or _UNWRITABLE.search(given)):
                shown = given if len(given) <= 60 else f"{given[:60]}..."
                raise UserError(f"--{field.name}={shown!r}: it must be one line of at most {_LONGEST} characters")

    @property
    def answers(self) -> tuple[str, ...]:
        """What an observer can answer."""
        return ("first", "second") if self.trial == "2afc" else ("same", "different")

    @property
    def schedule(self) -> tuple[tuple[int, int], ...]:
        """(which of the trial's images, -1 for grey; milliseconds), one after the other."""
        if self.trial == "flicker":
            rounds = max(1, round(8 * self.stimulus_ms / self.flicker_ms / 2))
            return ((0, self.flicker_ms), (1, self.flicker_ms)) * rounds
        count = 3 if self.trial == "2afc" else 2
        shown = [((-1, self.gap_ms), (place, self.stimulus_ms)) for place in range(count)]
        return tuple(step for pair in shown for step in pair)[1:]


def parse(field: dataclasses.Field, text: str) -> Any:
    """The value of a flag; raises UserError if the text is none."""
    if field.type is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"--{field.name}={text}: it must be true or false")
        return text.lower() == "true"
    try:
        return field.type(text)
    except ValueError:
        raise UserError(f"--{field.name}={text}: it must be {KINDS[field.type]}") from None


def settle(folder: Path, given: Mapping[str, Any]) -> Settings:
    """The settings of the study in `folder`: those of its file, or new ones, which are written there.

    Args:
      folder: of the study; need not exist.
      given: name -> value of the flags that were typed.

    Raises:
      UserError: a flag disagrees with the study that was begun; a value out of its range; a damaged file.
    """
    path = folder / FILE
    if not path.exists():
        settings = Settings(**given)
        write_file(path, json.dumps(dataclasses.asdict(settings), indent=2) + "\n")
        return settings
    settings = read(folder)
    for name, value in given.items():
        if value != (before := getattr(settings, name)):
            raise UserError(
                f"--{name}={value}: the study in {folder} was begun with {before}; begin another by "
                f"--study=NAME, or remove {folder} if nobody has answered yet"
            )
    return settings


def read(folder: Path) -> Settings:
    """The settings of a study that was begun; raises UserError where there is none."""
    path = folder / FILE
    try:
        return Settings(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        others = sorted(other.parent.name for other in folder.parent.glob(f"*/{FILE}"))
        hint = f"; this run has {', '.join(others)} (--study)" if others else ""
        raise UserError(f"there is no study in {folder}; `serve` or `static` begins one{hint}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no settings file of a study ({error})") from None
