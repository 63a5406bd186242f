"""The command line's parser, and readers that convert and check its values."""

import argparse
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from recursia import buckets
from recursia.errors import ConfigError

PICTURES = (".png", ".svg", ".pdf")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which refuses an option given twice."""

    def __init__(self, **how: Any):
        how.setdefault("formatter_class", _Formatter)
        super().__init__(allow_abbrev=False, **how)
        self.register("action", None, Once)
        self.register("action", "add", Add)

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError with a message of one line."""
        verb = self.prog.partition(" ")[2]
        raise ConfigError(f"{verb and f'{verb}: '}{message}; see {self.prog} --help")


class Once(argparse.Action):
    """Stores the value of an option; a second, different value is an error."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Reads one occurrence."""
        given = vars(namespace).setdefault("_given", {})
        if self.dest in given and given[self.dest] != values:
            raise argparse.ArgumentError(
                self, f"given twice, as {given[self.dest]} and as {values}; give one"
            )
        given[self.dest] = values
        setattr(namespace, self.dest, values)


class Add(argparse.Action):
    """Adds the values of every occurrence of an option, in order."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Reads one occurrence."""
        setattr(namespace, self.dest, (*(getattr(namespace, self.dest) or ()), *values))


class Renamed(argparse.Action):
    """Refuses an option of an earlier version, with its new name."""

    def __init__(self, *, new: str, **how: Any):
        super().__init__(help=argparse.SUPPRESS, **how)
        self._new = new

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Refuses an occurrence."""
        raise argparse.ArgumentError(self, f"is now {self._new}; give that")


class _Formatter(argparse.HelpFormatter):
    """Help with the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_none = action.default is None or action.default is False or action.default == ()
        if has_none or "default" in text or action.default == argparse.SUPPRESS:
            return text
        return f"{text} (default: %(default)s)"


def split(typed: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates overrides, `--config.a.b=v` or `--config.a.b v`, from the other arguments.

    Returns:
      The other arguments, and the typed values by field.

    Raises:
      ConfigError: for bytes that are not UTF-8, or a field given twice.
    """
    typed = [_decoded(each, before) for before, each in zip(["", *typed], typed, strict=False)]
    rest, overrides, names = [], {}, {}
    items = iter(typed)
    for item in items:
        if not item.startswith("--config."):
            rest.append(item)
            continue
        name, equals, value = item.removeprefix("--config.").partition("=")
        value = value if equals else next(items, "")
        # The section of the model may be left out.
        first = names.setdefault(name.removeprefix("model."), name)
        if overrides.setdefault(first, value) != value:
            raise ConfigError(
                f"--config.{name}: given twice, as {overrides[first]!r} and as {value!r}; give one"
            )
    return rest, overrides


def _decoded(item: str, before: str) -> str:
    """Returns an argument decoded as UTF-8; Python has decoded it by the locale."""
    if not any("\ud800" <= letter <= "\udfff" for letter in item):
        return item
    name, equals, _ = item.partition("=") if item.startswith("--") else ("", "", "")
    skipped = len(os.fsencode(name + equals))
    raw = os.fsencode(item)[skipped:]
    try:
        return name + equals + raw.decode()
    except UnicodeDecodeError as error:
        named = name or (before if before.startswith("--") else "an argument")
        raise ConfigError(
            f"{named}: byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8"
        ) from None


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """Returns a reader of integers in a range; 1e3 is an integer."""

    def read(typed: str) -> int:
        try:
            value = int(typed)
        except ValueError:
            value = _number(typed)
        if value is None or value != value // 1 or not least <= value <= (most or math.inf):
            to = f" to {most}" if most else ""
            raise argparse.ArgumentTypeError(f"got {typed!r}, takes a number from {least}{to}")
        return int(value)

    return read


def real(least: int | float, most: int | float | None = None) -> Callable[[str], float]:
    """Returns a reader of finite numbers in a range."""

    def read(typed: str) -> float:
        value = _number(typed)
        if value is None or not least <= value <= (math.inf if most is None else most):
            to = "" if most is None else f" to {most}"
            raise argparse.ArgumentTypeError(f"got {typed!r}, takes a number from {least}{to}")
        return value

    return read


def _number(typed: str) -> float | None:
    try:
        value = float(typed)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def something(typed: str) -> str:
    """Reads text that is not empty."""
    if not typed:
        raise argparse.ArgumentTypeError("is empty")
    return typed


def place(typed: str) -> str:
    """Reads a path as text; `~` is the home directory."""
    try:
        return str(pathlib.Path(something(typed)).expanduser()) if typed[:1] == "~" else typed
    except RuntimeError:  # of an unknown user
        raise argparse.ArgumentTypeError(f"got {typed!r}, which is nobody's home") from None


def path(typed: str) -> pathlib.Path:
    """Reads a path on this machine; `~` is the home directory."""
    if buckets.is_place(typed):
        raise argparse.ArgumentTypeError(f"got {typed!r}, takes a path on this machine")
    return pathlib.Path(something(place(typed)))


def picture(typed: str) -> pathlib.Path:
    """Reads the path of a picture that is to be written: a new file in a folder that is there."""
    return _new(typed, PICTURES)


def arrays(typed: str) -> pathlib.Path:
    """Reads the path of a new `.npz`, in a folder that is there."""
    return _new(typed, (".npz",))


def _new(typed: str, suffixes: Sequence[str]) -> pathlib.Path:
    new = path(typed)
    if new.suffix not in suffixes:
        raise argparse.ArgumentTypeError(f"{typed} ends in none of {', '.join(suffixes)}")
    if (is_there := os.path.lexists(new)) or not new.parent.is_dir():
        why = "is there already" if is_there else f"there is no folder {new.parent}"
        raise argparse.ArgumentTypeError(f"{typed}: {why}; give a new file")
    return new


def workdir(typed: str) -> pathlib.Path:
    """Reads a run's directory, on this machine or in a bucket."""
    try:
        return buckets.path(something(place(typed)))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def names(typed: str) -> tuple[str, ...]:
    """Reads names of configurations, separated by commas."""
    if not (values := tuple(place(name) for name in typed.split(",") if name)):
        raise argparse.ArgumentTypeError(f"got {typed!r}, takes configurations, by commas")
    return values


def depths(typed: str) -> tuple[int, ...]:
    """Reads numbers of recursions, separated by commas."""
    try:
        values = tuple(integer(1)(depth) for depth in typed.split(",") if depth)
    except argparse.ArgumentTypeError:
        values = ()
    if not values:
        raise argparse.ArgumentTypeError(
            f"got {typed!r}, takes numbers of recursions such as 1,2,3"
        )
    return values
