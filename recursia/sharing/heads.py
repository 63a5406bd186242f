"""Attention heads as units of sharing: a bank of heads, and for each step the heads it consists of.

Head-wise shareable attention (Cao et al. 2024, arXiv 2402.11819). A unit is a key head with its
value head and the query heads that read it, and their part of the output matrix. The units of slot
`attention` are the slot `attention_heads`; a cell of its table names the unit at each place of the
step, so that any map of heads can be given as `varies.attention_heads`. Heads of a step may be
common to all steps, to some, or to places of one step.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from recursia import ranges
from recursia.params import Params, Spec
from recursia.sharing.patterns import Rule
from recursia.sharing.schedule import Entries
from recursia.sharing.weights import Weights

AXES = ("heads", "kv_heads")
SLOT = "attention"


@dataclasses.dataclass(frozen=True)
class Heads(Weights):
    """How many heads of each step all steps have in common.

    Attributes:
      num_shared: key heads of each step, from the first, that are common to all steps of the core;
        the others are its own. `varies.attention_heads` may give another map.
      slot: the slot of the block that holds the heads.
    """

    num_shared: int
    slot: str = SLOT

    def __post_init__(self):
        ranges.at_least(0, self, "num_shared")

    @property
    def _bank(self) -> str:
        return bank_of(self.slot)

    def varies(self, block: Params) -> dict[str, Rule]:
        """Returns the map of heads.

        Raises:
          ValueError: for a slot without heads, or more shared heads than a step has.
        """
        if not axes(block.get(self.slot, {})):
            has = ", ".join(slot for slot, tree in block.items() if axes(tree)) or "none"
            raise ValueError(f"weights.slot: no heads in {self.slot!r}; slots with heads: {has}")
        if self.num_shared > (most := count(block[self.slot])):
            raise ValueError(
                f"weights.num_shared: got {self.num_shared} of {most} key heads; take at most "
                f"{most}"
            )

        def table(num_recursions: int, num_blocks: int) -> Entries:
            own = most - self.num_shared
            shared = tuple(range(self.num_shared))
            cell = lambda step: (*shared, *(self.num_shared + step * own + i for i in range(own)))
            rows = range(0, num_recursions * num_blocks, num_blocks)
            return tuple(tuple(cell(r + k) for k in range(num_blocks)) for r in rows)

        return {self._bank: table}

    def key_weights(self, block: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Returns the parts of heads that only make keys and values."""
        return tuple((self._bank, name) for slot, name in block if slot == self.slot)

    def specs(self, block: Params) -> Params:
        """Returns the specs of the slot's other weights, and of one unit of heads."""
        slot, of_heads = block[self.slot], axes(block[self.slot])
        number = count(slot)
        return {
            self.slot: {name: spec for name, spec in slot.items() if name not in of_heads},
            self._bank: {name: _unit(slot[name], axis, number) for name, axis in of_heads.items()},
        }

    def applied(self, block: Params) -> Params:
        """Returns no specs: a token meets as many heads in each step as without a bank."""
        return {}

    def bind(self, entries: Params) -> Params:
        """Returns the block's weights, with the heads of the step side by side."""
        specs, of_heads = self.block[self.slot], axes(self.block[self.slot])

        def beside(name: str, units: Array) -> Array:
            return jnp.moveaxis(units, 0, of_heads[name]).reshape(specs[name].shape)

        found = {name: beside(name, units) for name, units in entries[self._bank].items()}
        others = {slot: tree for slot, tree in entries.items() if slot in self.block}
        return {**others, self.slot: {**entries[self.slot], **found}}


def bank_of(slot: str) -> str:
    """Returns the slot of a slot's heads."""
    return f"{slot}_heads"


def axes(slot: Params) -> dict[str, int]:
    """Returns the axis of heads of the weights that have one."""
    specs = slot.items() if isinstance(slot, dict) else ()
    named = {name: spec.axes for name, spec in specs if isinstance(spec, Spec)}
    at = {name: [i for i, axis in enumerate(axes) if axis in AXES] for name, axes in named.items()}
    return {name: found[0] for name, found in at.items() if len(found) == 1}


def count(slot: Params) -> int:
    """Returns the number of units: the smallest number of heads."""
    return min(slot[name].shape[axis] for name, axis in axes(slot).items())


def _unit(spec: Spec, axis: int, count: int) -> Spec:
    """Returns the spec of one of `count` parts of a weight along an axis."""
    shape, axes = list(spec.shape), list(spec.axes)
    shape[axis], axes[axis] = shape[axis] // count, None
    return dataclasses.replace(spec, shape=tuple(shape), axes=tuple(axes))
