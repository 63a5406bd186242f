"""Errors a user can cause: one line each, with the exit code of the process that meets them."""

import errno
import os


class UserError(ValueError):
    """Something the user can mend; the command line prints its message and no traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A wrong name, type, range or combination in a configuration or on a command line."""


class DataError(UserError):
    """Missing, empty, broken or mismatched data."""

    exit_code = 3


class Diverged(UserError):
    """Training met a loss or gradient that is not finite."""

    exit_code = 4


class CheckpointError(UserError):
    """A missing checkpoint, or one that belongs to another model."""

    exit_code = 5


class Preempted(UserError):
    """The run was told to stop, and saved itself first; schedulers requeue on this code."""

    exit_code = 75


class OutputLost(UserError):
    """Nobody reads what a command prints as its product, or there is no place for it.

    Attributes:
      is_closed: whether the reader left, which goes without saying.
    """

    def __init__(self, number: int):
        """Says why.

        Args:
          number: of the system's error.
        """
        self.is_closed = number in (errno.EPIPE, errno.EBADF)
        self.exit_code = 141 if self.is_closed else 6  # 141: of a process that SIGPIPE ends
        super().__init__(f"standard output: cannot be written ({os.strerror(number)})")
