"""The files that a person names: files, folders of them, and patterns that no shell has replaced."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import PurePath


def files(arguments: Sequence[str], *, recursive: bool = False) -> tuple[list[str], list[str]]:
    """The files, in the order of the arguments, and what is wrong with some of these: sentences.

    A file is itself, whatever its name. A folder stands for the files in it that are not hidden, sorted by name. A name
    of which there is nothing is a pattern if it has `*`, `?` or `[`: `**/` stands for the folder before it and all
    folders below. What is not there, and a pattern without a file, is left as it is for the reader of the files to
    complain of.

    Args:
      arguments: names.
      recursive: folders stand for the files of all folders below, too, which are not hidden: links are followed, and
        no folder is entered twice.
    """
    found, problems = [], []
    for argument in arguments:
        is_pattern = glob.has_magic(argument) and not os.path.lexists(argument)
        for name in (_matches(argument, problems) if is_pattern else None) or [argument]:
            if not os.path.isdir(name):
                found.append(name)
                continue
            before = len(problems)
            entries = list(_below(name, problems)) if recursive else _in(name, problems)
            inside = [entry for entry in entries if not os.path.isdir(entry)]
            found += inside
            if not inside and len(problems) == before:
                hint = "; those of the folders below are for --recursive" if entries else ""
                problems.append(f"{name} has no files in it{hint}")
    return found, problems


def _in(folder: str, problems: list[str]) -> list[str]:
    """What is in a folder and not hidden, sorted by name; nothing, and a problem more, if it cannot be read."""
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    except OSError as error:
        problems.append(f"{folder} cannot be read: {error.strerror}")
        return []


def _below(folder: str, problems: list[str]) -> Iterator[str]:
    """The files of a folder and of those below it, by name; hidden ones are skipped, and no folder is entered twice."""
    entered, waiting = set(), [folder]
    while waiting:
        path = waiting.pop()
        if not os.path.isdir(path):
            yield path
        elif (place := os.path.realpath(path)) not in entered:
            entered.add(place)
            waiting += reversed(_in(path, problems))


def _matches(pattern: str, problems: list[str]) -> list[str]:
    root, deep, rest = pattern.partition("**/")
    if not deep:
        return sorted(glob.glob(pattern))
    folders = glob.glob(root) if glob.has_magic(root) else [root or os.curdir]
    below = [path for folder in sorted(folders) if os.path.isdir(folder) for path in _below(folder, problems)]
    return [path if root else os.path.relpath(path) for path in below if PurePath(path).match(rest)]
