"""Trains, attacks and reports on image quality models: `python -m cprl_jax.main --config=configs/quickstart.py`.

  --config=FILE[:key=value,...]   an experiment of configs/; the keys that each takes stand at the top of its file
  --config.a.b=value              changes one field; --helpfull lists all of them, with their meaning
  --workdir=DIR                   where the run lives (default: runs/ and the name of the configuration)

The same command again resumes a run that was stopped, and prints the table of one that is finished.
"""

from cprl_jax.runtime import program

if __name__ == "__main__":  # before the imports that take time, in which Ctrl-C should have its effect already
    program.own_terminal("stopped; the same command resumes")

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cprl_jax.runtime.errors import for_people
from cprl_jax.runtime.memory import keep_freed_memory

_PACKAGE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the job, returns the exit code: 0, 1 (the run failed) or 2 (a user's mistake)."""
    # Here and in _run, seconds of imports begin, in which Ctrl-C should have its effect already.
    from absl import logging as absl_logging

    keep_freed_memory()
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.INFO)
    absl_logging.get_absl_handler().addFilter(_is_worth_a_line)
    return program.run(lambda: _run(sys.argv if argv is None else argv))


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Notes of the libraries on every start and checkpoint would bury ours; their warnings pass.

    But not those with a traceback of an error for people, of which `program.run` tells at the end.
    """
    if Path(record.pathname).is_relative_to(_PACKAGE):
        return True
    error = record.exc_info[1] if record.exc_info else None
    return record.levelno > logging.INFO and not (error and for_people(error))


def _run(argv: Sequence[str]) -> None:
    import jax
    from absl import flags

    from cprl_jax.config import checks, command_line
    from cprl_jax.runtime import files, parallel
    from cprl_jax.runtime.lock import held

    config, workdir = command_line.parse(flags.FLAGS, argv, usage=__doc__)
    checks.validate(config)
    if config.compilation_cache:
        folder = files.utf8_path(config.compilation_cache, field="config.compilation_cache")
        jax.config.update("jax_compilation_cache_dir", str(folder))
    run = _job("dry_run" if config.dry_run else config.job)
    with parallel.cluster(), held(workdir):
        run(config, workdir)


def _job(name: str) -> Callable:
    """The function that runs a job; imported only now, because a mistyped flag should not wait for it."""
    if name == "perceptual_attack":
        from cprl_jax.experiments.perceptual.experiment import run
    elif name in ("causal_iqa", "leave_one_out"):
        from cprl_jax.experiments.causal_iqa.experiment import run
    elif name == "paper_table":
        from cprl_jax.experiments.cprl.paper_table import run
    elif name == "dry_run":
        from cprl_jax.experiments.cprl.estimate import run
    else:
        from cprl_jax.experiments import repeats
        from cprl_jax.experiments.cprl import experiment

        run = functools.partial(repeats.run, run_one=experiment.run, present=experiment.medians)
    return run


if __name__ == "__main__":
    sys.exit(main())
