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

from cprl_jax.runtime import program

if __name__ == "__main__":  # before the imports that take time, in which Ctrl-C should have its effect already
    program.own_terminal("stopped; every score that was printed stands")

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.memory import keep_freed_memory
from cprl_jax.runtime.parser import Parser

if TYPE_CHECKING:  # JAX takes seconds to start: not for --help, and not where Ctrl-C would show a traceback
    from cprl_jax.evaluation.files import FileScorer


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
        resize=config.dataset.resize,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and prints the scores; returns the exit code."""
    keep_freed_memory()
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m cprl_jax.score", description=__doc__)
    parser.add_argument("images", nargs="+", help="image files (JPEG, PNG, BMP, WebP or TIFF), or folders of them")
    parser.add_argument("--checkpoint", required=True, help="the folder of a run (its --workdir)")
    parser.add_argument("--method", default="", help="which of its models, or updates (default: cprl, else the last)")
    parser.add_argument("--crops", type=int, default=0, help="crops per image (default: as in the run's evaluation)")
    arguments = parser.parse_args(argv)
    scorer = load(arguments.checkpoint, method=arguments.method, crops=arguments.crops)
    return _print_scores(scorer, arguments.images)


def _print_scores(scorer: "FileScorer", arguments: Sequence[str]) -> int:
    from tqdm import tqdm

    if sys.stdout is None:  # closed by who started the program
        program.complain("the scores cannot be written: the output is closed")
        return 1
    files, problems = _files(arguments)
    for problem in problems:
        program.complain(problem)
    failed = bool(problems)
    # Lines on a terminal are progress enough.
    hidden = len(files) < 20 or sys.stdout.isatty() or not sys.stderr.isatty()
    with tqdm(total=len(files), desc="score", unit="image", dynamic_ncols=True, disable=hidden) as bar:
        for path, score in zip(files, scorer.each(files), strict=True):
            if isinstance(score, UserError):
                bar.clear()
                program.complain(score)
                failed = True
            else:
                try:
                    print(f"{score:.2f}\t{program.one_line(path)}", flush=True)
                except BrokenPipeError:  # `| head` has seen enough
                    program.discard(sys.stdout)
                    return 141
                except OSError as error:
                    program.discard(sys.stdout)
                    program.complain(f"the scores cannot be written: {error.strerror}")
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


if __name__ == "__main__":
    exit_code = main()
    if exit_code > 2:  # at once: a thread may be in the middle of a large photograph
        os._exit(exit_code)
    sys.exit(exit_code)
