"""Range checks of settings: each raises ValueError with the field, its value and the range."""

import math
from typing import Any

LARGEST = 2**31 - 1  # integers of a compiled program have 32 bits
LARGEST_SEED = 2**32 - 1
MOST_LAYERS = 10_000  # the schedule has an entry for each


def at_least(least: int | float, config: Any, *names: str) -> None:
    """Checks that fields are at least a number; NaN and infinity are refused."""
    for name in names:
        value = getattr(config, name)
        if not least <= value < math.inf:
            raise ValueError(f"{name}: got {value}, takes at least {least}")
        if isinstance(value, int) and value > LARGEST:
            raise ValueError(f"{name}: got {value}, takes at most {LARGEST}")


def above(bound: int | float, config: Any, *names: str) -> None:
    """Checks that fields are finite and above a number."""
    for name in names:
        if not bound < (value := getattr(config, name)) < math.inf:
            raise ValueError(f"{name}: got {value}, takes a number above {bound}")


def between(least: int | float, most: int | float, config: Any, *names: str) -> None:
    """Checks that fields are between two numbers, inclusive."""
    for name in names:
        if not least <= (value := getattr(config, name)) <= most:
            raise ValueError(f"{name}: got {value}, takes {least} to {most}")


def fraction(config: Any, *names: str) -> None:
    """Checks that fields are between 0 and 1, inclusive."""
    for name in names:
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise ValueError(f"{name}: got {value}, takes a fraction from 0 to 1")


def choice(config: Any, name: str, among: str) -> None:
    """Checks that a field is at least 1 and at most another field."""
    value, most = getattr(config, name), getattr(config, among)
    if not 1 <= value <= most:
        raise ValueError(f"{name}: got {value}, takes 1 to the {most} of {among}")


def recursions(config: Any) -> None:
    """Checks the number of recursions."""
    between(1, MOST_LAYERS, config, "num_recursions")
