"""`--config`, its overrides and `--workdir`, with every mistake in one line."""

import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from cprl_jax import methods
from cprl_jax.config.defaults import default
from cprl_jax.config.field import Field
from cprl_jax.config.fields import ALL
from cprl_jax.evaluation.table_attacks import ATTACKS
from cprl_jax.methods import METHODS
from cprl_jax.models import NETWORKS
from cprl_jax.runtime.errors import UserError, for_people
from cprl_jax.runtime.files import utf8_path
from cprl_jax.runtime.program import show

config_flags.DEFINE_config_file("config", None, "The experiment: FILE[:key=value,...].", lock_config=True)
flags.DEFINE_string("workdir", "", "Where the run lives (default: runs/ and the name of the configuration).")


def parse(flag_values: flags.FlagValues, argv: Sequence[str], *, usage: str) -> tuple[ml_collections.ConfigDict, Path]:
    """Parses `--config` (with its overrides) and `--workdir`.

    Returns:
      (config, workdir); the default workdir is runs/ and the name of the configuration with its argument.

    Raises:
      UserError: a flag, file, key or value that does not exist or has the wrong type, in one line.
      SystemExit: `--help` was asked for and printed.
    """
    asked = {argument.lstrip("-") for argument in argv[1:] if argument.startswith("-")}
    if asked & {"help", "h", "helpshort", "helpfull"}:
        show(usage + help_text(every_field="helpfull" in asked))
        raise SystemExit(0)
    try:
        rest = flag_values(list(argv))
        config = flag_values.config
        if config is not None:
            file, _, argument = config_flags.get_config_filename(flag_values["config"]).partition(":")
            if not Path(file).is_file():
                raise UserError(f"there is no config file {file!r}; those of this project are in configs/")
            config.to_dict()  # an error in the file itself is only raised on first use
    except Exception as error:
        raise UserError(_flag_error(error, argv)) from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are --config=FILE, --config.a.b=value, --workdir=DIR")
    if config is None:
        raise UserError("--config=FILE is missing; try --config=configs/quickstart.py")
    workdir = flag_values.workdir
    if not workdir:
        workdir = f"runs/{Path(file).stem}" + (f"-{argument.replace('/', '_')}" if argument else "")
    return config, utf8_path(workdir, field="--workdir")


def _flag_error(error: BaseException, argv: Sequence[str]) -> str:
    """One line on what is wrong with the command line: our own error if one lies beneath, else the parser's."""
    given = [argument.partition("=")[2].partition(":")[0] for argument in argv if re.match("--?config=", argument)]
    files = {os.path.abspath(file) for file in given}
    text, cause = "", error
    while cause is not None:
        if isinstance(cause, UserError):  # the innermost: the ones around it repeat it with a traceback
            text = str(cause)
        elif isinstance(cause, SyntaxError) or (isinstance(cause, AttributeError) and cause.name == "get_config"):
            text = "--config names no configuration, a Python file with a function get_config like those in configs/"
            if isinstance(cause, SyntaxError) and cause.lineno:
                text += f": {cause.filename}, line {cause.lineno}: {cause.msg}"
        elif frames := [
            frame for frame in traceback.extract_tb(cause.__traceback__) if os.path.abspath(frame.filename) in files
        ]:
            text = text or f"{frames[-1].filename}, line {frames[-1].lineno}: {type(cause).__name__}: {cause}"
        cause = cause.__cause__ or cause.__context__
    if text:
        return text
    if isinstance(error, OSError) and (found := for_people(error)):
        return found[0]
    text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    if isinstance(error, (AttributeError, KeyError)):
        text = f"unknown field of --config: {text}; --helpfull lists all fields"
    return text


def help_text(*, every_field: bool) -> str:
    """The methods, networks and table attacks that there are, and every field of the configuration if asked for."""
    config, parts = default(), []
    for heading, entries in (("methods", METHODS), ("model.name", NETWORKS), ("evaluation.attacks", ATTACKS)):
        parts += ["", f"--config.{heading}:"]
        for name, entry in entries.items():
            title = methods.title(name, config[name]) if entries is METHODS else entry.title
            parts.append(f"  {name:<20} {title}" + (f": {entry.source}" if entry.source else ""))
    if every_field:
        parts += ["", "Fields, with their defaults:"]
        parts += [_described(name, field) for name, field in ALL.items()]
    return "\n".join(parts)


def _described(name: str, field: Field) -> str:
    """'  --config.train.ema_decay=0.0  evaluate an exponential ... (at least 0 and below 1)'."""
    value = field.default if isinstance(field.default, str) else repr(field.default)
    limits = f"one of {', '.join(map(str, field.choices))}" if field.choices else field.described_bounds() or field.unit
    return f"  --config.{name}={value}  {field.help}" + (f" ({limits})" if limits else "")
