"""Scores image files with a trained model: `python -m cprl_jax.score photo.jpg FOLDER 'holiday/*.png'`.

One line per file, `score<TAB>path`, in their order and as soon as it is known; the score is on the scale of the labels,
0..100 for the models of this project, higher is better. A folder stands for the files in it, sorted by name; folders
inside it are entered with --recursive (links may lead in a circle). Hidden files and folders in a folder are skipped. A
pattern that the shell has not replaced is replaced here; `**/` stands for all folders below. A file that cannot be read
or is no image is named on stderr, and the others are scored.

The model (--model) is `robust` (the default) or `plain`, which come with the package, the folder of a run of
`cprl_jax.main`, a folder that `cprl_jax.export` wrote, or a name on Hugging Face (user/repo). `robust` and `plain` are
never folders: write ./robust for one.

The score is a function of the pixels and the model alone: each image is resized as in the run, if it did, and its
score is the mean over crops at the places that the run's test images of that size have. Files are JPEG, PNG, BMP, WebP
or TIFF and taken as a viewer shows them: upright as EXIF says, transparency over white, 16-bit grey and CMYK converted
(`cprl_jax.data.decode.decode_photograph`).

--certify prints `score<TAB>lower<TAB>upper<TAB>path`: the median score under noise, and an interval that no change of
the pixels with an l2 norm up to --radius (of values in [0, 1]) can leave, with a confidence of 99.9 % for each image;
`-inf` and `inf` where the samples cannot tell. The noise is the same at every call.

In printed names, control characters are escaped (a line break is \\n), and so is what the encoding of the output lacks.
--csv (a table with a heading) and --json (one object a line) give scores in full and names exactly, in UTF-8: a name
that is not UTF-8, or begins with `bytes:`, is written as `bytes:` and its bytes in percent-encoding (bytes:caf%E9.jpg).
What is infinite is null in JSON.

Exit code: 0; 1 if a file has no score, or scores could not be written; 2 for a mistake in the command line; 130 after
Ctrl-C, 141 if the reader of the output went away.

From Python: `cprl_jax.load("robust").score(["photo.jpg"])`.
"""

from cprl_jax.runtime import program

if __name__ == "__main__":  # before the imports that take time, in which Ctrl-C should have its effect already
    program.own_terminal("stopped; every score that was printed stands")

import argparse
import csv
import functools
import io
import json
import math
import os
import sys
import urllib.parse
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.memory import keep_freed_memory
from cprl_jax.runtime.parser import Parser

if TYPE_CHECKING:  # JAX takes seconds to start: not for --help, and not where Ctrl-C would show a traceback
    from cprl_jax.evaluation.files import FileScorer

COLUMNS = ("score", "lower", "upper")  # the last two with --certify
SMOOTHING = {  # the flags of --certify, their defaults and help
    "radius": (0.05, "of the interval, in l2"),
    "sigma": (0.12, "of the noise, in [0, 1] pixel units"),
    "samples": (1000, "noisy copies of an image"),
}


def load(model: str | Path, *, method: str = "", crops: int = 0) -> "FileScorer":
    """Makes a function from image files to scores, [files] -> float32 [files], out of a trained model.

    Arguments and errors are those of `cprl_jax.load`.
    """
    from cprl_jax import deploy

    return deploy.load(model, method=method, crops=crops).scorer()


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and prints the scores; returns the exit code."""
    keep_freed_memory()
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m cprl_jax.score", description=__doc__)
    parser.add_argument("images", nargs="+", help="image files (JPEG, PNG, BMP, WebP or TIFF), folders or patterns")
    parser.add_argument("--model", default="robust", help="robust (default), plain, a folder, or user/repo")
    parser.add_argument("--checkpoint", dest="model", default=argparse.SUPPRESS, help="deprecated: use --model")
    parser.add_argument("--method", default="", help="which model, or update, of a run (default: cprl, else the last)")
    parser.add_argument("--crops", type=int, default=0, help="crops per image (default: as in the run's evaluation)")
    parser.add_argument("--recursive", action="store_true", help="enter the folders in folders, too")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", action="store_true", help="print a table of comma-separated values")
    output.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument(
        "--certify", action="store_true", help="print the median under noise and its certified interval"
    )
    for name, (default, help_text) in SMOOTHING.items():
        parser.add_argument(f"--{name}", type=type(default), help=f"{help_text} (default: {default}; needs --certify)")
    given = parser.parse_args(argv)
    smoothing = {name: getattr(given, name) for name in SMOOTHING if getattr(given, name) is not None}
    if smoothing and not given.certify:
        raise UserError(f"--{next(iter(smoothing))} says how a score is certified: add --certify, or leave it out")
    smoothing = {name: smoothing.get(name, default) for name, (default, _) in SMOOTHING.items()}
    if given.certify:
        _check_smoothing(**smoothing)
    from cprl_jax.data import listed_files

    warnings.filterwarnings("ignore", message="Image size")  # Pillow's of a large photograph, which is no accident here
    if given.certify:
        from cprl_jax import deploy

        model = deploy.load(given.model, method=given.method, crops=given.crops)
        each = functools.partial(model.certify_each, **smoothing)
    else:
        each = load(given.model, method=given.method, crops=given.crops).each
    files, problems = listed_files.files(given.images, recursive=given.recursive)
    names = COLUMNS[: 3 if given.certify else 1]
    line = functools.partial(_csv_line if given.csv else _json_line if given.json else _text_line, names)
    heading = ",".join([*names, "path"]) if given.csv else ""
    if sys.stdout is not None and (given.csv or given.json):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    return _print_scores(files, each(files), line, problems=problems, heading=heading)


def _check_smoothing(radius: float, sigma: float, samples: int) -> None:
    """Raises UserError, which names the flag, for what no image can be certified with."""
    from cprl_jax.robustness.certify import CONFIDENCE, fewest_samples

    if not 0 <= radius < math.inf:
        raise UserError(f"--radius is {radius}; it must be a number of at least 0")
    if not 1e-6 <= sigma <= 1:
        raise UserError(f"--sigma is {sigma}; it must be from 1e-06 to 1, in units of pixels in [0, 1]")
    if samples < (fewest := fewest_samples(CONFIDENCE)):
        raise UserError(f"--samples is {samples}; it must be at least {fewest}, for a confidence of {CONFIDENCE:.1%}")


def _print_scores(
    files: Sequence[str], results: Iterable, line: Callable[..., str], *, problems: Sequence[str], heading: str
) -> int:
    from tqdm import tqdm

    if sys.stdout is None:  # closed by who started the program
        program.complain("the scores cannot be written: the output is closed")
        return 1
    for problem in problems:
        program.complain(problem)
    failed = bool(problems)
    # Lines on a terminal are progress enough.
    hidden = len(files) < 20 or sys.stdout.isatty() or not sys.stderr.isatty()
    with tqdm(total=len(files), desc="score", unit="image", dynamic_ncols=True, disable=hidden) as bar:
        try:
            if heading:
                print(heading, flush=True)
            for path, result in zip(files, results, strict=True):
                numbers = result if isinstance(result, tuple) else (result,)
                if not isinstance(result, UserError) and not math.isfinite(numbers[0]):
                    result = UserError(f"{path} has no score: the model's is {numbers[0]}")
                if isinstance(result, UserError):
                    bar.clear()
                    program.complain(result)
                    failed = True
                else:
                    print(line(path, numbers), flush=True)
                bar.update()
        except BrokenPipeError:  # `| head` has seen enough
            program.discard(sys.stdout)
            return 141
        except OSError as error:
            program.discard(sys.stdout)
            program.complain(f"the scores cannot be written: {error.strerror}")
            return 1
    return int(failed)


def _text_line(names: Sequence[str], path: str, numbers: Sequence[float]) -> str:
    return "\t".join([*(f"{number:.2f}" for number in numbers[: len(names)]), program.one_line(path)])


def _csv_line(names: Sequence[str], path: str, numbers: Sequence[float]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow([*map(_whole, numbers[: len(names)]), _exact(path)])  # quotes what may end its lines
    return text.getvalue().removesuffix("\r\n")


def _json_line(names: Sequence[str], path: str, numbers: Sequence[float]) -> str:
    values = (_whole(number) if math.isfinite(number) else None for number in numbers)
    return json.dumps(dict(zip(names, values, strict=False)) | {"path": _exact(path)})


def _whole(number: float) -> float:
    """A number of float32 with the nine digits that determine it."""
    return float(f"{number:.9g}")


def _exact(path: str) -> str:
    """A name as valid Unicode from which it can be had back."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "bytes:" + urllib.parse.quote(os.fsencode(path))
    return "bytes:" + urllib.parse.quote(path) if path.startswith("bytes:") else path


if __name__ == "__main__":
    exit_code = main()
    if exit_code > 2:  # at once: a thread may be in the middle of a large photograph
        os._exit(exit_code)
    sys.exit(exit_code)
