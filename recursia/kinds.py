"""Kinds: modules that a configuration names, such as `depth.kind=fixed` for `recursia.depth.fixed`.

A field of `BASES` takes the name of any module beside the module of its base class. The module
holds one subclass of the base, whose fields are the settings of the kind.
"""

import functools
import importlib
import pkgutil
from typing import Any

from recursia.blocks.block import Block
from recursia.depth.policy import Policy
from recursia.feedforward.feedforward import FeedForward
from recursia.mixers.mixer import Mixer
from recursia.optimizers.optimizer import Optimizer
from recursia.sharing.weights import Weights

# The base class of the settings in each field that names a module.
BASES: dict[str, type] = {
    "block": Block,
    "mixer": Mixer,
    "feedforward": FeedForward,
    "depth": Policy,
    "weights": Weights,
    "optimizer": Optimizer,
}


def kind_of(config: Any) -> str:
    """Returns the name of the module that defines the class of some settings."""
    return type(config).__module__.rpartition(".")[2]


@functools.cache
def names(field: str) -> tuple[str, ...]:
    """Returns the kinds that a field of `BASES` takes, in alphabetical order."""
    package = importlib.import_module(_package(field))
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in modules if config_class(field, name)))


def config_class(field: str, name: str) -> type | None:
    """Returns the class of a kind's settings, or None if the field takes no such kind."""
    base = BASES[field]
    try:
        module = importlib.import_module(f"{_package(field)}.{name}")
    except ModuleNotFoundError:
        return None
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
    return next((c for c in classes if c is not base and c.__module__ == module.__name__), None)


def replacement(field: str, name: str) -> str:
    """Returns what replaced a kind that was removed, in words; "" if there was no such kind."""
    return getattr(importlib.import_module(_package(field)), "FORMER", {}).get(name, "")


def _package(field: str) -> str:
    return BASES[field].__module__.rpartition(".")[0]
