"""All steps of a grid as one scan, for tokens that take every one of them.

Of a scan over recursions whose inside scans over blocks, the backward pass keeps more than it
needs: what the inner scan stacked is copied into the outer's stack, and back. Here there is one
stack, and the gradient of a shared weight is added where it lies.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from recursia import inject
from recursia.layers.attention import Context
from recursia.params import at
from recursia.sharing.core import Core, cast, rematerialise
from recursia.sharing.grid import Grid


def can_walk(core: Core) -> bool:
    """Returns whether hidden states are all that goes from step to step.

    Not where a recursion reads another's keys and values, is computed again as a whole, or starts
    with products of its own.
    """
    told = inject.flops(core.inject[0], 1)
    return not core.kv.reads_first and core.remat != "recursion" and not told


def walk(
    core: Core, x: Float[Array, "B T D"], context: Context
) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """Applies every step once, in the order of the grid.

    Args:
      core: for which `can_walk`.
      x: hidden states of all tokens.
      context: where they stand.

    Returns:
      The last hidden states, and what the blocks report, by slot, stacked [R K ...].
    """
    grid, (recursion, block) = core.grid, _order(core.grid)
    banks = {slot: _entries(grid, slot, bank) for slot, bank in core.banks.items()}
    index = {slot: np.array(grid.table_of(slot))[recursion, block] for slot in banks}
    private = {slot: _in_order(banks[slot], i) for slot, i in index.items() if _is_once(i)}
    shared = {slot: i for slot, i in index.items() if slot not in private}
    told = at(inject.private(*core.inject, grid.num_recursions), recursion)
    ends = (block == 0, block == grid.num_blocks - 1)

    def only(when: Array, change: Callable, x: Array) -> Array:
        return change(x) if grid.num_blocks == 1 else jax.lax.cond(when, change, lambda x: x, x)

    def step(x: Array, entry: Any) -> tuple[Array, dict[str, Any]]:
        weights, index, told, (is_first, is_last) = entry
        if core.inject[0] != inject.Config():
            enter = functools.partial(core.enter, private={"inject": told}, context=context)
            x = only(is_first, enter, x)
        weights = weights | {slot: at(banks[slot], i) for slot, i in index.items()}
        weights = core.wrap(cast(core.block, weights, core.dtype))
        x, _, report = core.block.apply(weights, x, context)
        return x if core.norm is None else only(is_last, core.norm, x), report

    if core.remat == "block":
        step = rematerialise(step, core.remat_saves, len(recursion))
    x, report = jax.lax.scan(step, x, (private, shared, told, ends))
    return x, jax.tree.map(functools.partial(_by_step, grid), report)


def _order(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Returns the recursion and the block of each step, in turn."""
    sizes = grid.num_recursions, grid.num_blocks
    if grid.order == "cycle":
        return tuple(np.indices(sizes).reshape(2, -1))
    return tuple(np.indices(sizes).swapaxes(1, 2).reshape(2, -1))


def _entries(grid: Grid, slot: str, bank: Any) -> Any:
    """Returns a bank with its entries along one axis."""
    lead = 1 if slot in dict(grid.tables) else len(grid.axes_of(slot))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[lead:]), bank)


def _is_once(index: np.ndarray) -> bool:
    """Returns whether no entry is used twice."""
    return len(set(index)) == len(index)


def _in_order(bank: Any, index: np.ndarray) -> Any:
    return bank if (index == np.arange(len(index))).all() else at(bank, index)


def _by_step(grid: Grid, leaf: Array) -> Array:
    """Returns what the steps gave in turn, by recursion and block."""
    sizes = grid.num_recursions, grid.num_blocks
    if grid.order == "cycle":
        return leaf.reshape(*sizes, *leaf.shape[1:])
    return leaf.reshape(*sizes[::-1], *leaf.shape[1:]).swapaxes(0, 1)
