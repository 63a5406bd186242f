"""Errors that a user can cause, each with a message of one line and the process's exit code."""

import errno
import os


class UserError(ValueError):
    """An error that the user can fix; the command line prints its message without a traceback."""

    exit_code = 2

    def __init__(self, message: object):
        """Takes a message; where it quotes what has line breaks, spaces stand for them."""
        super().__init__(" ".join(str(message).splitlines()))


class ConfigError(UserError):
    """A wrong name, type, range or combination in a configuration or on a command line."""


class CheckFailed(UserError):
    """A command that ran to its end, and found something wrong."""

    exit_code = 1


class DataError(UserError):
    """Data that is missing, empty, broken or of another tokenizer."""

    exit_code = 3


class Diverged(UserError):
    """Training met a loss or gradient that is not finite."""

    exit_code = 4


class CheckpointError(UserError):
    """A missing checkpoint, or one that belongs to another model."""

    exit_code = 5


class StorageError(UserError):
    """Something that cannot be written, or a bucket that cannot be reached."""

    exit_code = 6


class Lost(UserError):
    """Another process of the run, or a device, is lost or stands still."""

    exit_code = 7


class Preempted(UserError):
    """A signal stopped the run, which saved its state; schedulers requeue on this exit code."""

    exit_code = 75


class OutputLost(UserError):
    """The result that a command prints cannot be written to standard output.

    Attributes:
      is_closed: whether the reader closed the stream, which needs no message.
    """

    def __init__(self, number: int):
        """Makes the message and the exit code from an `errno`."""
        self.is_closed = number in (errno.EPIPE, errno.EBADF)
        self.exit_code = 141 if self.is_closed else 6  # 141: as if SIGPIPE ended the process
        super().__init__(f"standard output: cannot be written ({os.strerror(number)})")
