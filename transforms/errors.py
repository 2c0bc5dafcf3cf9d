"""Errors that a user can mend. Each message says what, where, found, wanted and what to do."""

from __future__ import annotations


class UserError(Exception):
    """An error with a message for the user; a stack trace adds nothing to it.

    `exit_code` is the exit code of `python -m pipeline.run`.
    """

    exit_code = 1


class ConfigError(UserError):
    """A flag, a configuration key or a combination of them that cannot work."""

    exit_code = 2


class ExpertError(UserError):
    """An expert or a preprocessor that cannot be reached, read or used."""

    exit_code = 2


class InputError(UserError):
    """Input that cannot be read as a whole; a bad row is a `Reject`, not an error."""

    exit_code = 2


class OutputConflictError(UserError):
    """An output that is committed, or in the hands of another run."""

    exit_code = 3


class TooManyRejectsError(UserError):
    """More rejects than `--max_reject_rate` allows; nothing was committed."""

    exit_code = 4


class ConservationError(UserError):
    """Counts that do not add up. A bug of ours or damaged work files; nothing was committed."""

    exit_code = 1
