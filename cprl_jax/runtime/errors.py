"""The errors that end a run with one line instead of a traceback."""


class UserError(ValueError):
    """A wrong configuration, flag or file.

    The message is one line that names the offending field, flag or file, what is allowed, and how to correct it.
    `cprl_jax.main` prints it without a traceback and exits with code 2.
    """


class TrainingDiverged(Exception):
    """A loss or gradient became NaN or infinite; the message says what, in which step, and what to try."""
