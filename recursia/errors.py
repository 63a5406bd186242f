"""Errors a user can cause: one line each, with the exit code of the process that meets them."""


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
