"""Kinds: modules that a configuration names, such as `depth.kind=fixed` for `recursia.depth.fixed`.

A field of `BASES` takes the name of any module beside the module of its base class. The module
holds one subclass of the base, whose fields are the settings of the kind. It also takes the dotted
path of a class in a file of the user's own, such as `depth.kind=my_parts.Half`.
"""

import dataclasses
import importlib
import inspect
import typing
from typing import Any

from recursia import dotted, modules, typed
from recursia.blocks.block import Block
from recursia.depth.policy import Policy
from recursia.embeddings.embedding import Embedding
from recursia.errors import ConfigError
from recursia.feedforward.feedforward import FeedForward
from recursia.mixers.mixer import Mixer
from recursia.optimizers.optimizer import Optimizer
from recursia.parameterisations.parameterisation import Parameterisation
from recursia.sharing.weights import Weights

# The base class of the settings in each field that names a module.
BASES: dict[str, type] = {
    "block": Block,
    "mixer": Mixer,
    "feedforward": FeedForward,
    "end_feedforward": FeedForward,
    "depth": Policy,
    "weights": Weights,
    "embed": Embedding,
    "parameterisation": Parameterisation,
    "optimizer": Optimizer,
}


OWN = "MODULE.CLASS of your own"  # in lists of choices
NONE = "none"  # the kind of a field that may have no class


def kind_of(config: Any) -> str:
    """Returns the name by which a configuration names the class of some settings."""
    if config is None:
        return NONE
    cls = type(config)
    package, _, name = cls.__module__.rpartition(".")
    ours = {modules.package_of(base) for base in BASES.values() if issubclass(cls, base)}
    return name if package in ours else f"{cls.__module__}.{cls.__qualname__}"


def takes_none(field: dataclasses.Field) -> bool:
    """Returns whether a field may have no class, which is its default."""
    return field.default is None


def is_own(cls: type) -> bool:
    """Returns whether a class is a user's own."""
    return not cls.__module__.startswith("recursia.")


def names(field: str) -> tuple[str, ...]:
    """Returns the kinds that a field of `BASES` takes, in alphabetical order."""
    return modules.names(BASES[field])


def config_class(field: str, name: str) -> type | None:
    """Returns the class of a kind's settings, or None if the field takes no such kind.

    Raises:
      ConfigError: if a dotted path names no class of settings.
    """
    if "." not in name:
        return modules.subclass(BASES[field], name) if name in names(field) else None
    _check(BASES[field], found := dotted.subclass(BASES[field], name), name)
    return found


def replacement(field: str, name: str) -> str:
    """Returns what replaced a kind that was removed, in words; "" if there was no such kind."""
    package = importlib.import_module(modules.package_of(BASES[field]))
    return getattr(package, "FORMER", {}).get(name, "")


def _check(base: type, cls: Any, path: str) -> None:
    """Refuses a user's class that lacks something, or whose fields are no settings."""
    if "__dataclass_fields__" not in vars(cls) or not cls.__dataclass_params__.frozen:
        raise ConfigError(f"{path}: put @dataclasses.dataclass(frozen=True) above the class")
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigError(f"{path}: the type of a field cannot be read ({error})") from None
    fields = {field.name: field for field in dataclasses.fields(cls)}
    lacks = [n for n in typing.get_type_hints(base) if not hasattr(cls, n) and n not in fields]
    if lacks := sorted({*lacks, *cls.__abstractmethods__} if inspect.isabstract(cls) else lacks):
        raise ConfigError(f"{path}: does not define {', '.join(lacks)}, as every {base.__name__}")
    for name, field in fields.items():
        if name == "kind" or not field.init:
            raise ConfigError(f"{path}: {name!r} cannot be a field of settings; rename it")
        if not (hints[name] is BASES.get(name) or _is_setting(hints[name])):
            raise ConfigError(
                f"{path}: {name!r} is no setting: its type must be int, float, bool, str, a "
                "Literal of text, a tuple of these, or a frozen dataclass"
            )


def _is_setting(hint: Any) -> bool:
    if not dataclasses.is_dataclass(hint):
        return typed.is_setting(hint)
    hints: Any = typing.get_type_hints(hint, include_extras=True)
    return all(_is_setting(hints[field.name]) for field in dataclasses.fields(hint))
