"""Tiles of the attention matrix that causality and a sliding window leave, for the reference.

Where places say what a query sees (positions are None), which tiles are wholly masked is known
before the program runs: the reference neither computes nor stores them.
"""

from typing import Any

from .where import Where

BY_PLACE = Where()
SIDE, MOST = 128, 8  # tokens of a tile's side, and how many sides a sequence has at most


def is_by_place(where: Where, length: int, key_length: int) -> bool:
    """Returns whether places say what a query sees, of as many keys."""
    placed: tuple[Any, ...] = where.query_positions, where.key_positions
    return length == key_length and placed == (None, None)


def by_queries(
    where: Where, length: int, key_length: int, window: int
) -> list[tuple[slice, slice]]:
    """Returns blocks of queries, each with the range of keys that one of them may see."""
    if not is_by_place(where, length, key_length):
        return [(slice(0, length), slice(0, key_length))]
    side, found = _side(length), []
    for start in range(0, length, side):
        stop = min(start + side, length)
        first = max(0, start - window + 1) // side * side if window else 0
        found.append((slice(start, stop), slice(first, stop)))
    return found


def by_keys(where: Where, length: int, key_length: int, window: int) -> list[tuple[slice, slice]]:
    """Returns blocks of keys, each with the range of queries that may see one: the same tiles."""
    if not is_by_place(where, length, key_length):
        return [(slice(0, key_length), slice(0, length))]
    side, found = _side(length), []
    rows = by_queries(where, length, key_length, window)
    for start in range(0, length, side):
        seeing = [queries for queries, keys in rows if keys.start <= start < keys.stop]
        queries = slice(seeing[0].start, seeing[-1].stop)
        found.append((slice(start, min(start + side, length)), queries))
    return found


def pairs(length: int, key_length: int, window: int = 0, where: Where = BY_PLACE) -> int:
    """Returns how many pairs of a query and a key are in the tiles of a sequence."""
    size = lambda part: part.stop - part.start
    found = by_queries(where, length, key_length, window)
    return sum(size(queries) * size(keys) for queries, keys in found)


def _side(length: int) -> int:
    return SIDE * -(-length // (SIDE * MOST))
