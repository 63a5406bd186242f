"""Kinds: modules that a configuration names, such as `depth.kind=fixed` for `recursia.depth.fixed`.

A field of `BASES` takes the name of any module beside the module of its base class. The module
holds one subclass of the base, whose fields are the settings of the kind.
"""

import importlib
from typing import Any

from recursia import modules
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


def names(field: str) -> tuple[str, ...]:
    """Returns the kinds that a field of `BASES` takes, in alphabetical order."""
    return modules.names(BASES[field])


def config_class(field: str, name: str) -> type | None:
    """Returns the class of a kind's settings, or None if the field takes no such kind."""
    return modules.subclass(BASES[field], name)


def replacement(field: str, name: str) -> str:
    """Returns what replaced a kind that was removed, in words; "" if there was no such kind."""
    package = importlib.import_module(modules.package_of(BASES[field]))
    return getattr(package, "FORMER", {}).get(name, "")
