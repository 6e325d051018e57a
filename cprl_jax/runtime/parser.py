"""The command line of a program."""

import argparse
from typing import NoReturn, TextIO

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.program import show


class Parser(argparse.ArgumentParser):
    """The command line of a program whose docstring, `description`, is its help; a mistake in it is a UserError."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists all options")

    def print_help(self, file: TextIO | None = None) -> None:
        show(self.format_help())
