"""Banks of steps that differ in width: an entry is as wide as the widest step that uses it.

A step's weights are the first heads and the first hidden units of its entry. An entry that one step
uses is that step's weights, and none has a number that no step uses. Entries of one shape are
stacked; others are `recursia.params.Apart`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from recursia.params import Apart, Params, Spec, is_apart
from recursia.sharing.schedule import Schedule, Table


def bank(plan: Schedule, name: str, steps: Sequence[Any]) -> Any:
    """Returns the specs of a bank.

    Args:
      plan: of the steps.
      name: of the bank.
      steps: specs of the weights that each step takes of it, by the step's number.
    """
    entry, users = plan.entry(name), plan.users(name).tolist()

    def leaf(*specs: Spec) -> Spec | Apart:
        widest: dict[int, Spec] = {}
        for spec, number in sorted(((specs[s], int(entry[s])) for s in users), key=_size):
            widest[number] = spec
        each = [widest[number] for number in sorted(widest)]
        is_one = len({spec.shape for spec in each}) == 1
        return each[0].stack((len(each),), (None,)) if is_one else Apart(each)

    return jax.tree.map(leaf, *steps)


def _size(used: tuple[Spec, int]) -> int:
    return math.prod(used[0].shape)


def shapes(plan: Schedule, steps: Sequence[Params]) -> Table:
    """Returns the table of shapes: steps are alike that one scan can apply.

    They have weights of the same shapes, and the same entries of banks whose entries are apart.

    Args:
      plan: of the steps.
      steps: specs of the block of each, by slot.
    """
    banks = {slot: bank(plan, slot, [own[slot] for own in steps]) for slot in steps[0]}
    leaves = lambda tree: jax.tree.leaves(tree, is_leaf=is_apart)
    apart = [slot for slot, tree in banks.items() if any(map(is_apart, leaves(tree)))]
    keys = [
        (*(spec.shape for spec in leaves(own)), *(plan.entry(slot)[number] for slot in apart))
        for number, own in enumerate(steps)
    ]
    numbers = [list(dict.fromkeys(keys)).index(key) for key in keys]
    width = plan.num_blocks
    return tuple(tuple(numbers[r : r + width]) for r in range(0, len(numbers), width))


def cut(spec: Spec, array: Array) -> Array:
    """Returns the first part of an array along each axis, of the shape of a spec."""
    return array[tuple(map(slice, spec.shape))]


def fitted(specs: Any, banks: Any) -> Any:
    """Returns banks of the shapes of specs, from others whose entries are as wide or wider."""

    def leaf(spec: Spec | Apart, held: Array | Apart) -> Array | Apart:
        if isinstance(spec, Apart):
            return Apart(cut(own, held[number]) for number, own in enumerate(spec.entries))
        if isinstance(held, Apart):
            return jnp.stack([cut(spec, entry[None])[0] for entry in held.entries])
        return cut(spec, held)

    return jax.tree.map(leaf, specs, banks, is_leaf=is_apart)
