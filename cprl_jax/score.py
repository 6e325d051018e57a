"""Scores image files with a trained model: `python -m cprl_jax.score photo.jpg *.png FOLDER --checkpoint=runs/livec`.

One line per file, `score<TAB>path`, in their order and as soon as it is known; the score is on the scale of the labels,
0..100 for the models of this project, higher is better. A folder stands for every file in it, sorted by name; folders
inside it are not entered. A file that cannot be read or is no image is named on stderr, and the others are scored.

The score is a function of the pixels and the model alone: each image is resized as in the run, if it did, and its
score is the mean over crops at the places that the run's test images of that size have. Files are JPEG, PNG, BMP, WebP
or TIFF and taken as a viewer shows them: upright as EXIF says, transparency over white, 16-bit grey and CMYK converted
(`cprl_jax.data.decode.decode_photograph`).

In printed names, control characters are escaped (a line break is \\n), and so is what the encoding of the output lacks.
Exit code: 0; 1 if a file has no score, or scores could not be written; 2 for a mistake in the command line; 130 after
Ctrl-C, 141 if the reader of the output went away.

From Python: `scorer = load("runs/livec"); scorer(["photo.jpg"])`.
"""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.memory import keep_freed_memory
from cprl_jax.runtime.program import discard, own_terminal

if TYPE_CHECKING:  # JAX takes seconds to start: not for --help, and not where Ctrl-C would show a traceback
    from cprl_jax.evaluation.files import FileScorer

_BREAKS_LINES = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")


def load(run: str | Path, *, method: str = "", crops: int = 0) -> "FileScorer":
    """Makes a function from image files to scores, [files] -> float32 [files], out of a run's folder.

    Args:
      run: the folder (--workdir) of a run of `cprl_jax.main` whose training is done.
      method: which of its models; '' = cprl where it was trained, else the last method. In a run of Causal-IQA, one of
        its updates, or 'cis/seed-3' ('' = the last update; without a seed, the first).
      crops: crops per image; 0 = as in the run's evaluation.

    Raises:
      UserError: no run, method or checkpoint there; when called, a file that is no image (named).
    """
    from cprl_jax.config.defaults import method_of, read_config
    from cprl_jax.evaluation.files import FileScorer
    from cprl_jax.runtime.files import user_path
    from cprl_jax.training.setup import trained_model

    run = user_path(run, field="the folder of the run")
    config = read_config(run)
    module, variables = trained_model(config, method_of(config, method, run), run)
    evaluation = config.evaluation
    return FileScorer(
        module,
        variables,
        crops=crops or evaluation.crops,
        crop_size=evaluation.crop_size,
        seed=config.seed,
        batch_size=evaluation.batch_size,
        resize=config.dataset.get("resize", 0),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and prints the scores; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cprl_jax.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", help="image files (JPEG, PNG, BMP, WebP or TIFF), or folders of them")
    parser.add_argument("--checkpoint", required=True, help="the folder of a run (its --workdir)")
    parser.add_argument("--method", default="", help="which of its models, or updates (default: cprl, else the last)")
    parser.add_argument("--crops", type=int, default=0, help="crops per image (default: as in the run's evaluation)")
    sys.stderr = sys.stderr or io.StringIO()  # where it is closed (2>&-)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")  # names that are not text in this system's encoding
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    try:
        scorer = load(arguments.checkpoint, method=arguments.method, crops=arguments.crops)
        return _print_scores(scorer, arguments.images)
    except UserError as error:
        _complain(error)
        return 2


def _print_scores(scorer: "FileScorer", arguments: Sequence[str]) -> int:
    files, problems = _files(arguments)
    for problem in problems:
        _complain(problem)
    failed = bool(problems)
    # Lines on a terminal are progress enough.
    hidden = len(files) < 20 or sys.stdout is None or sys.stdout.isatty() or not sys.stderr.isatty()
    with tqdm(total=len(files), desc="score", unit="image", dynamic_ncols=True, disable=hidden) as bar:
        for path, score in zip(files, scorer.each(files), strict=True):
            if isinstance(score, UserError):
                bar.clear()
                _complain(score)
                failed = True
            else:
                try:
                    _write(sys.stdout, f"{score:.2f}\t{_one_line(path)}")
                except BrokenPipeError:  # `| head` has seen enough
                    return 141
                except OSError as error:
                    _complain(f"the scores cannot be written: {error.strerror}")
                    return 1
            bar.update()
    return int(failed)


def _files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that are named, folders replaced by what is in them; and what is wrong with folders."""
    files, problems = [], []
    for argument in arguments:
        try:
            inside = sorted(os.listdir(argument)) if os.path.isdir(argument) else None
        except OSError as error:
            problems.append(f"{argument} cannot be read: {error.strerror}")
            continue
        if inside == []:
            problems.append(f"{argument} is an empty folder")
        files += [argument] if inside is None else [os.path.join(argument, name) for name in inside]
    return files, problems


def _complain(problem: object) -> None:
    with contextlib.suppress(OSError):  # a full disk behind stderr costs no score
        _write(sys.stderr, f"error: {_one_line(str(problem))}")


def _one_line(text: str) -> str:
    return _BREAKS_LINES.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def _write(stream: TextIO | None, line: str) -> None:
    """Writes a line now; characters that the stream's encoding lacks become escapes.

    Raises:
      OSError: it could not be written. Then the stream takes no more, so that the end of Python does not try again.
    """
    if stream is None:
        raise OSError(None, "the output is closed")
    encoding = stream.encoding or "utf-8"
    try:
        line.encode(encoding, "surrogateescape")
    except UnicodeError:
        line = line.encode(encoding, "backslashreplace").decode(encoding)
    try:
        stream.write(f"{line}\n")
        stream.flush()
    except OSError:
        discard(stream)
        raise


if __name__ == "__main__":
    own_terminal("stopped; every score that was printed stands")
    exit_code = main()
    if exit_code > 2:  # at once: a thread may be in the middle of a large photograph
        os._exit(exit_code)
    sys.exit(exit_code)
