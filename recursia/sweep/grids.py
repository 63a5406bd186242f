"""Combinations of overrides: products, pairs and random samples, as lists for `add(**overrides)`.

An axis is a mapping from fields to their values, or a list of overrides, such as another
combination; fields that are Python names may be keywords.

  product({"optimizer.learning_rate": [1e-3, 3e-3]}, seed=[0, 1])  # 4 trials
"""

import builtins
import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Overrides = dict[str, Any]
Axis = Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]]
Space = Callable[[float], Any] | Sequence[Any]
LABELS = "labels"
DIGITS = 4  # of a number that is drawn, so that it is the same on every machine


def product(*axes: Axis, **values: Iterable[Any]) -> list[Overrides]:
    """Returns every combination of the axes; the last one varies fastest.

    Raises:
      ValueError: for a field that two axes set; their labels are joined.
    """
    return [_joined(parts) for parts in itertools.product(*_axes(axes, values))]


def zip(*axes: Axis, **values: Iterable[Any]) -> list[Overrides]:
    """Returns the first of every axis, the second of every axis, and so on.

    Raises:
      ValueError: if the axes are not of one length, or for a field that two of them set.
    """
    listed = _axes(axes, values)
    lengths = [len(axis) for axis in listed]
    if len(set(lengths)) > 1:
        raise ValueError(f"zip: the axes have {', '.join(map(str, lengths))} values; give as many")
    return [_joined(parts) for parts in builtins.zip(*listed, strict=True)]


def sample(number: int, seed: int, spaces: Mapping[str, Space] | None = None, **more: Space):
    """Returns overrides drawn at random, each field by a generator of its own.

    A larger number adds draws, and another field changes none.

    Args:
      number: of draws.
      seed: of the generators.
      spaces: by field: a sequence to choose from, `uniform(...)` or `log_uniform(...)`.
      **more: the same, of fields that are Python names.
    """
    found: list[Overrides] = [{} for _ in range(number)]
    for field, space in {**(spaces or {}), **more}.items():
        draw = random.Random(f"{seed} {field}").random
        for overrides in found:
            unit = draw()
            overrides[field] = space(unit) if callable(space) else space[int(unit * len(space))]
    return found


def uniform(low: float, high: float) -> Callable[[float], float]:
    """Returns the space of numbers from `low` to `high`, of four significant digits."""
    if not low <= high:
        raise ValueError(f"uniform: takes low <= high, got {low} and {high}")
    return lambda unit: _short(low + unit * (high - low))


def log_uniform(low: float, high: float) -> Callable[[float], float]:
    """Returns the space whose logarithms are uniform; both ends are positive."""
    if not 0 < low <= high:
        raise ValueError(f"log_uniform: takes 0 < low <= high, got {low} and {high}")
    return lambda unit: _short(math.exp(math.log(low) + unit * math.log(high / low)))


def _short(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


def _axes(axes: tuple[Axis, ...], values: Mapping[str, Iterable[Any]]) -> list[list[Overrides]]:
    """Returns each axis as a list of overrides."""
    found: list[list[Overrides]] = []
    for axis in (*axes, values):
        if isinstance(axis, Mapping):
            fields: list[tuple[Any, Any]] = list(axis.items())
            found += [
                [{name: value} for value in _listed(several, name)] for name, several in fields
            ]
        else:
            found.append([dict(overrides) for overrides in _listed(axis, "an axis")])
    return found


def _listed(values: Any, name: str) -> list[Any]:
    if not isinstance(values, Iterable):
        raise ValueError(f"{name}: got {values!r}, takes a list of values")
    return list(values)


def _joined(parts: Iterable[Overrides]) -> Overrides:
    found: Overrides = {}
    for part in parts:
        for field, value in part.items():
            if field == LABELS:
                value = {**found.get(LABELS, {}), **value}
            elif field in found:
                raise ValueError(f"{field!r} is set by two axes; set it by one")
            found[field] = value
    return found
