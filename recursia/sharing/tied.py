"""Weights as they are in their bank: every step that shares an entry uses the same numbers.

A weight kind is a module with

    Config                        a frozen dataclass
    slots(config, block_specs)    names of what it adds to a step, one for every step by default
    specs(config, block_specs)    -> one tree of specs for each of those slots
    wrap(config, weights)         the block's weights by slot, from those of its slots and its own
    flops(config, block_specs, skipped) -> forward FLOPs that it adds to one token's step

`wrap` may put anything in an array's place that `layers.linear.dot` can multiply by. `skipped` are
the (slot, name) of weights that the step does not use.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Nothing to choose."""


def slots(config: Config, block_specs: dict[str, Any]) -> tuple[str, ...]:
    """Returns no slots."""
    return ()


def specs(config: Config, block_specs: dict[str, Any]) -> dict[str, Any]:
    """Returns no parameters."""
    return {}


def wrap(config: Config, weights: dict[str, Any]) -> dict[str, Any]:
    """Returns the weights."""
    return weights


def flops(config: Config, block_specs: dict[str, Any], skipped: tuple[tuple[str, str], ...]) -> int:
    """Returns 0."""
    return 0
