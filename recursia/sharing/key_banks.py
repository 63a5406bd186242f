"""Banks of weights that only make keys and values, apart from the other weights of their slot.

Such a bank has entries for the steps that make keys alone, the other bank for every step.
`Schedule.entry` distinguishes them by name.
"""

from typing import Any

from recursia.params import Params
from recursia.sharing.schedule import KEYS

Names = tuple[tuple[str, str], ...]  # (slot, name) of each such weight


def bank(slot: str, name: str, names: Names) -> str:
    """Returns the name of the bank that holds one of a slot's weights."""
    return slot + KEYS if (slot, name) in names else slot


def split(slot: str, tree: Any, names: Names) -> Params:
    """Returns a slot's tree by bank; a slot without weights of keys has one bank."""
    if not isinstance(tree, dict) or not any((slot, name) in names for name in tree):
        return {slot: tree}
    banks: Params = {slot: {}, slot + KEYS: {}}
    for name, leaf in tree.items():
        banks[bank(slot, name, names)][name] = leaf
    return banks


def join(banks: Params) -> Params:
    """Returns trees by slot from those by bank."""
    slots = {name: tree for name, tree in banks.items() if not name.endswith(KEYS)}
    for name, tree in banks.items():
        if name.endswith(KEYS):
            slot = name.removesuffix(KEYS)
            slots[slot] = {**slots[slot], **tree}
    return slots
