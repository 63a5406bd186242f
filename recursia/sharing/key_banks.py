"""Banks of weights that only make what steps read of others, apart from the rest of their slot.

That is keys and values, or queries and keys (`Schedule.reads`). Such a bank has entries for the
steps that make them alone, the other bank for every step. `Schedule.entry` distinguishes them by
name.
"""

from typing import Any, Protocol, runtime_checkable

from recursia.params import Params
from recursia.sharing.schedule import KEYS, Schedule
from recursia.sharing.weights import Weights

Names = tuple[tuple[str, str], ...]  # (slot, name) of each such weight


@runtime_checkable
class _Named(Protocol):
    """A block, or the base of one."""

    @property
    def key_weights(self) -> Names: ...

    @property
    def score_weights(self) -> Names: ...


def names(plan: Schedule, block: _Named, weights: Weights) -> Names:
    """Returns (slot, name) of the weights in such banks, those of the weight kind too."""
    own = block.score_weights if plan.replays else block.key_weights
    return (*own, *weights.key_weights(own))


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
