"""Weights that only make keys and values, in a bank apart from the rest of their slot.

That bank has entries for steps that make keys, the other one for every step: `Schedule.entry` tells
both by name.
"""

from typing import Any

from recursia.sharing.schedule import KEYS

Names = tuple[tuple[str, str], ...]  # (slot, name) of each such weight


def bank(slot: str, name: str, names: Names) -> str:
    """Returns the name of the bank that holds one of a slot's weights."""
    return slot + KEYS if (slot, name) in names else slot


def split(slot: str, tree: Any, names: Names) -> dict[str, Any]:
    """Returns a slot's tree by bank; a slot without such weights has one."""
    if not isinstance(tree, dict) or not any((slot, name) in names for name in tree):
        return {slot: tree}
    found: dict[str, Any] = {slot: {}, slot + KEYS: {}}
    for name, leaf in tree.items():
        found[bank(slot, name, names)][name] = leaf
    return found


def join(banks: dict[str, Any]) -> dict[str, Any]:
    """Returns trees by slot from those by bank."""
    found = {name: tree for name, tree in banks.items() if not name.endswith(KEYS)}
    for name, tree in banks.items():
        if name.endswith(KEYS):
            found[name.removesuffix(KEYS)] = {**found[name.removesuffix(KEYS)], **tree}
    return found
