"""Which answers count: rules that are stated before the data, applied one after the other in the same order for all.

`stated` is their text, in the one place where it is: the study shows and exports it, the analysis follows it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cprl_jax.study.analysis import bt500
from cprl_jax.study.analysis.answers import Answers, Row, seen

FASTEST_MS = 200  # nobody decides and presses a key sooner after the last image
FEWEST_SQUARES = 2  # of four: a display that hides three of them hides small differences
MOST_SPOILT, FEWEST_TRIALS = 1 / 3, 10
FEWEST_CATCHES, FEWEST_PLAIN = 8, 3
ONE_ANSWER = 0.95
GROUPS = 8  # of distances, for the screening


def stated(settings: Mapping[str, Any]) -> list[str]:
    """The rules of a study with these settings, a sentence each, in the order in which they are applied."""
    hidden = "during which the page was hidden or without focus"
    answers = [
        "Training trials count for nothing, and of a pair that is shown twice only the first answer counts; the second "
        "tells how consistent an observer is.",
        *([f"An answer to a trial {hidden} does not count."] if settings["drop_hidden"] else []),
        "An answer does not count if an image or the grey between two was shown more than "
        f"{settings['max_timing_error_ms']:g} ms too long or too short.",
        f"An answer less than {FASTEST_MS} ms after the last image does not count"
        + (" (after the trial's start)." if settings["trial"] == "flicker" else "."),
    ]
    observers = [
        f"An observer who saw fewer than {FEWEST_SQUARES} of the 4 dark or of the 4 bright squares of the display test "
        "is left out.",
        f"An observer of whom more than a third of at least {FEWEST_TRIALS} answers do not count is left out.",
        f"An observer who gave one answer in more than {100 * ONE_ANSWER:g} % of the trials, among them at least "
        f"{FEWEST_PLAIN} catch trials in which it was wrong, is left out.",
        f"An observer who is wrong in more than {100 * settings['max_catch_errors']:g} % of the catch trials, of at "
        f"least {FEWEST_CATCHES}, is left out.",
    ]
    if settings["bt500"]:
        observers.append(
            "Of those who remain, observers whom ITU-R BT.500 rejects are left out; a score is an observer's share of "
            f"detected differences among pairs of one fidelity and about one distance (of {GROUPS} groups). This is "
            "done once."
        )
    return [*answers, *observers, "Answers of those who did not get to the end count like all others."]


class Counted(NamedTuple):
    """What is left.

    Attributes:
      tests: the first answers to pairs.
      catches: answers to identical and plainly different pairs.
      observers: a row for each observer: `excluded` is the reason, or ''; how many of his answers were `given` and
        `counted`, his errors in catch trials, how consistent he is.
    """

    tests: list[Row]
    catches: list[Row]
    observers: list[Row]


def apply(answers: Answers) -> Counted:
    """Applies the rules."""
    by_observer: dict[str, list[Row]] = {row["observer"]: [] for row in answers.observers}
    for row in answers.answers:
        if row["role"] != "training":
            by_observer[row["observer"]].append(row)
    nominal = _nominal(answers.settings)
    kept = {
        name: [row for row in rows if not spoilt(row, answers.settings, nominal)] for name, rows in by_observer.items()
    }
    reasons = {
        row["observer"]: _reason(row, by_observer[row["observer"]], kept[row["observer"]], answers)
        for row in answers.observers
    }
    if answers.settings["bt500"]:
        remaining = [name for name, reason in reasons.items() if not reason and kept[name]]
        for name in _screened(answers, {name: kept[name] for name in remaining}):
            reasons[name] = "rejected by BT.500"
    included = [row for name, rows in kept.items() if not reasons[name] for row in rows]
    rows = [_described(name, reasons[name], by_observer[name], kept[name], answers.trial) for name in by_observer]
    catches = [row for row in included if row["role"].startswith("catch_")]
    return Counted([row for row in included if row["role"] == "test"], catches, rows)


def spoilt(row: Mapping[str, Any], settings: Mapping[str, Any], nominal: Sequence[float]) -> str:
    """Why an answer does not count by itself; '' if it does."""
    if settings["drop_hidden"] and row["hidden"]:
        return "hidden"
    shown = np.asarray(row["durations_ms"], float)
    limit = settings["max_timing_error_ms"]
    if settings["trial"] == "flicker":
        if not shown.size:  # answered before the first change: the first image was there until then
            shown = np.maximum(nominal[0], [row["rt_ms"]])
        wrong = np.abs(shown - nominal[0]).max() > limit
    else:
        wrong = shown.size != len(nominal) or np.abs(shown - nominal).max() > limit
    if wrong:
        return "timing"
    return "too fast" if row["rt_ms"] < FASTEST_MS else ""


def _nominal(settings: Mapping[str, Any]) -> list[float]:
    """How long each image and grey of a trial should be shown, in ms."""
    image, grey = settings["stimulus_ms"], settings["gap_ms"]
    trials = {"flicker": [settings["flicker_ms"]], "2afc": [image, grey, image, grey, image]}
    return trials.get(settings["trial"], [image, grey, image])


def _reason(observer: Row, given: Sequence[Row], kept: Sequence[Row], answers: Answers) -> str:
    """The first rule that leaves an observer out by what he did himself, or ''."""
    for squares in ("dark_seen", "bright_seen"):
        if observer[squares] is not None and observer[squares] < FEWEST_SQUARES:
            return "display test"
    if len(given) >= FEWEST_TRIALS and len(given) - len(kept) > MOST_SPOILT * len(given):
        return "too many answers that do not count"
    catches = [row for row in kept if row["role"].startswith("catch_")]
    wrong = [row for row in catches if row["answer"] != row["expected"]]
    if kept:
        (answer, times), *_ = Counter(row["answer"] for row in kept).most_common(1)
        against = [row for row in wrong if row["answer"] == answer]
        if len(kept) >= FEWEST_TRIALS and times > ONE_ANSWER * len(kept) and len(against) >= FEWEST_PLAIN:
            return "one answer to nearly everything"
    if len(catches) >= FEWEST_CATCHES and len(wrong) > answers.settings["max_catch_errors"] * len(catches):
        return "catch trials"
    return ""


def _screened(answers: Answers, kept: Mapping[str, Sequence[Row]]) -> list[str]:
    """Observers whom BT.500 rejects."""
    group_of = groups(answers.pairs)
    counts: dict[tuple[int, str], list[bool]] = defaultdict(list)
    for name, rows in kept.items():
        for row in rows:
            if row["role"] == "test":
                counts[group_of[row["pair"]], name].append(seen(row, answers.trial))
    names = list(kept)
    scores = np.full((len(set(group_of.values())), len(names)), np.nan)
    for (group, name), values in counts.items():
        scores[group, names.index(name)] = np.mean(values)
    if not np.isfinite(scores).any():
        return []
    return [name for name, rejected in zip(names, bt500.screen(scores).rejected, strict=True) if rejected]


def groups(pairs: Sequence[Row]) -> dict[str, int]:
    """pair -> number of its group: pairs of one fidelity, sorted by distance, in `GROUPS` equal parts."""
    first = {row["pair"]: row for row in reversed(pairs)}
    fidelities = dict.fromkeys(row["fidelity"] for row in first.values())
    parts = []
    for fidelity in fidelities:
        own = sorted((row["distance"], pair) for pair, row in first.items() if row["fidelity"] == fidelity)
        parts += [part for part in np.array_split(np.array([pair for _, pair in own]), GROUPS) if part.size]
    return {str(pair): number for number, part in enumerate(parts) for pair in part}


def _described(name: str, reason: str, given: Sequence[Row], kept: Sequence[Row], trial: str) -> Row:
    catches = [row for row in kept if row["role"].startswith("catch_")]
    first = {row["pair"]: seen(row, trial) for row in kept if row["role"] == "test"}
    again = [row for row in kept if row["role"] == "repeat" and row["pair"] in first]
    agreed = sum(first[row["pair"]] == seen(row, trial) for row in again)
    return {
        "observer": name,
        "excluded": reason,
        "given": len(given),
        "counted": 0 if reason else len(kept),
        "catches": len(catches),
        "catch_errors": sum(row["answer"] != row["expected"] for row in catches),
        "repeats": len(again),
        "repeats_alike": agreed,
        "detected": sum(seen(row, trial) for row in kept if row["role"] == "test"),
        "tests": sum(row["role"] == "test" for row in kept),
    }
