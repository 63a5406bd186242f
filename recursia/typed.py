"""Converts values from the command line or a file to the types of their fields."""

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
    """A value from the command line, not yet converted to the type of its field."""


@dataclasses.dataclass(frozen=True)
class Path:
    """Marks text that names a file or folder, whose `~` and relative paths are resolved.

    Attributes:
      keeps: a regular expression of values that are not paths and stay unchanged.
      after: a regular expression of what may stand before a path.
    """

    keeps: str = ""
    after: str = ""


Place = Annotated[str, Path()]


@dataclasses.dataclass(frozen=True)
class Text:
    """Marks text that may contain commas, which do not separate list entries."""


class _Wrong(Exception):
    """A value has the wrong type; the message replaces the description of the type."""


def read(hint: Any, value: Any, path: str) -> Any:
    """Returns a value converted to the type of its field.

    Args:
      hint: the type.
      value: `Raw` from the command line, or a value from a file.
      path: of the field, for messages.

    Raises:
      ConfigError: if the value cannot be converted.
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


def is_setting(hint: Any) -> bool:
    """Returns whether values can be converted to a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return arguments[0] is str and isinstance(arguments[1], Path | Text)
    if origin is Literal:
        return all(isinstance(choice, str) for choice in arguments)
    if origin is tuple:
        listed = arguments[:1] if arguments[1:] == (...,) else arguments
        return len(listed) in (1, 2) and all(map(is_setting, listed))
    if origin in (typing.Union, types.UnionType):
        return all(map(is_setting, arguments))
    return hint in (int, float, bool, str, types.NoneType)


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
    """Returns a value as the first type that takes it; text takes every value and comes last."""
    message = ""
    for option in sorted(options, key=lambda one: (one is not types.NoneType, one is str)):
        try:
            return _convert(option, value)
        except _Wrong as wrong:
            message = message or str(wrong)
    raise _Wrong(message)


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
    """Returns the entries of a list, typed as a Python literal or as names with commas."""
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
    """Returns the value of a Python literal, or the text itself if it is not one."""
    try:
        return ast.literal_eval(typed.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return typed


def _integer(value: Any) -> int:
    if isinstance(value, Raw):
        value = _decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        raise _Wrong
    if not isinstance(value, int):
        value = decimal.Decimal(value)
        if not value.is_finite() or (abs(value) < _BOUND and value != int(value)):
            raise _Wrong
    if not -_BOUND < value < _BOUND:
        raise _Wrong("an integer of at most 63 bits")
    return int(value)


def _decimal(typed: Raw) -> int | decimal.Decimal:
    """Returns the number of a Python integer, or of text such as 1e3 or 1000.0."""
    try:
        return int(typed, 0)
    except ValueError:
        pass
    try:
        return decimal.Decimal(typed)
    except decimal.InvalidOperation:
        raise _Wrong from None


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
    start = re.match(mark.after, value) if not pathlib.Path(value).exists() else None
    before = start[0] if start else ""
    try:
        return before + str(pathlib.Path(value[len(before) :]).expanduser().absolute())
    except (RuntimeError, OSError):
        raise _Wrong("a path, and here it has no home or working directory") from None


def _shown(value: Any) -> str:
    """Returns a value for a message: numbers as typed, text in quotes."""
    is_plain = isinstance(value, Raw) and not isinstance(_literal(value), str)
    shown = str(value) if is_plain else repr(str(value) if isinstance(value, str) else value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
