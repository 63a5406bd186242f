"""What was typed, or stands in a file, as a value of the type of its field."""

import ast
import dataclasses
import decimal
import math
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from recursia.errors import ConfigError

_LARGEST = float.fromhex("0x1.fffffep127")  # float32
_BOUND = 2**63


class Raw(str):
    """A value as it was typed, still to be read by the type of its field."""


@dataclasses.dataclass(frozen=True)
class Path:
    """Marks text that names a file or folder: `~` and relative paths are resolved when given.

    Attributes:
      keeps: a pattern of what is no path, and stays as it is.
    """

    keeps: str = ""


@dataclasses.dataclass(frozen=True)
class Text:
    """Marks text that is taken as it is typed, commas included."""


class _Wrong(Exception):
    """Says what the field takes, where its type does not say enough."""


def read(hint: Any, value: Any, path: str) -> Any:
    """Returns a value as the type of its field.

    Args:
      hint: the type.
      value: as typed, if `Raw`, or as a file gave it.
      path: of the field, for messages.

    Raises:
      ConfigError: if the type does not take it.
    """
    try:
        return _convert(hint, value)
    except _Wrong as wrong:
        takes = str(wrong) or describe(hint)
        raise ConfigError(f"{path}: got {_shown(value)}, takes {takes}") from None


def describe(hint: Any) -> str:
    """Returns a type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    plain = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if hint in plain:
        return plain[hint]
    if hint is types.NoneType:
        return "none"
    if origin is Annotated:
        return "a path" if isinstance(arguments[1], Path) else describe(arguments[0])
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        first = sorted(arguments, key=lambda one: one is not types.NoneType)
        return " or ".join(map(describe, first))
    return f"a list, each {describe(arguments[0])}" if arguments[1:] == (...,) else "a pair"


def _convert(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _place(arguments[1], value) if isinstance(arguments[1], Path) else _text(value)
    if origin in (typing.Union, types.UnionType):
        return _any(arguments, value)
    if origin is Literal:
        if str(value) in arguments:
            return str(value)
        raise _Wrong
    if origin is tuple:
        return _tuple(arguments, value)
    convert = {int: _integer, float: _number, bool: _truth, str: _text, types.NoneType: _none}
    return convert[hint](value)


def _any(options: tuple[Any, ...], value: Any) -> Any:
    """Returns a value as the first type that takes it; text, which takes all, comes last."""
    said = ""
    for option in sorted(options, key=lambda one: (one is not types.NoneType, one is str)):
        try:
            return _convert(option, value)
        except _Wrong as wrong:
            said = said or str(wrong)
    raise _Wrong(said)


def _tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    is_list = arguments[1:] == (...,)
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if isinstance(value, str):
        value = _items(arguments[0] if is_list else None, value)
    if not isinstance(value, list | tuple) or not (is_list or len(value) == len(arguments)):
        raise _Wrong
    return tuple(map(_convert, arguments[:1] * len(value) if is_list else arguments, value))


def _items(item: Any, value: str) -> Any:
    """Returns the entries of a list that is typed as Python writes it, or as names by commas."""
    is_marked = typing.get_origin(item) is Annotated
    listed = _literal(value)
    if item is not str and not is_marked:
        return listed
    if isinstance(listed, list | tuple) and (
        value.lstrip()[:1] in "[(" and all(isinstance(one, str) for one in listed)
    ):
        return listed
    if is_marked and isinstance(typing.get_args(item)[1], Text):
        return (value,) if value else ()
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _literal(typed: str) -> Any:
    """Returns what Python reads, or the text itself."""
    try:
        return ast.literal_eval(typed.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return typed


def _integer(value: Any) -> int:
    if isinstance(value, Raw):
        try:
            value = int(value, 0)
        except ValueError:
            try:
                value = decimal.Decimal(value)
            except decimal.InvalidOperation:
                raise _Wrong from None
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        raise _Wrong
    if not math.isfinite(value) or abs(value) >= _BOUND:
        raise _Wrong("an integer of at most 63 bits")
    if value != int(value):
        raise _Wrong
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Raw | int | float):
        raise _Wrong
    try:
        number = float(value)
    except ValueError:
        raise _Wrong from None
    except OverflowError:
        number = math.inf
    if not abs(number) <= _LARGEST:
        raise _Wrong("a finite number, at most 3.4e38")
    return number


def _truth(value: Any) -> bool:
    if isinstance(value, Raw) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise _Wrong
    return value


def _none(value: Any) -> None:
    if value is not None and not (isinstance(value, Raw) and value.lower() == "none"):
        raise _Wrong


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong
    try:
        return str(value.encode().decode())
    except UnicodeEncodeError:
        raise _Wrong("text in UTF-8") from None


def _place(mark: Path, value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong
    if not value or re.fullmatch(mark.keeps, value) or "://" in value:
        return str(value)
    try:
        return str(pathlib.Path(value).expanduser().absolute())
    except (RuntimeError, OSError):
        raise _Wrong("a path, and here it has no home or working directory") from None


def _shown(value: Any) -> str:
    """Returns a value as a message shows it: numbers as they were typed, text in quotes."""
    is_plain = isinstance(value, Raw) and not isinstance(_literal(value), str)
    shown = str(value) if is_plain else repr(str(value) if isinstance(value, str) else value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
