"""A tied model as untied copies of its weights, and back."""

import dataclasses

import jax
import numpy as np

from recursia import model


def entries(config, slot, bank):
    """Returns a bank with all its entries along one axis."""
    lead = 1 if slot in dict(config.grid.tables) else len(config.grid.axes_of(slot))
    return jax.tree.map(lambda p: np.asarray(p).reshape(-1, *p.shape[lead:]), bank)


def untied(config, params):
    """Returns the model whose steps all have weights of their own, with these values in them."""
    grid = config.grid
    place = lambda slot, bank: jax.tree.map(
        lambda p: p[np.array(grid.table_of(slot))], entries(config, slot, bank)
    )
    core = {slot: place(slot, bank) for slot, bank in params["core"].items()}
    others = tuple((slot, axes) for slot, axes in grid.axes if slot not in core)
    tables = tuple((slot, table) for slot, table in grid.tables if slot not in core)
    axes = tuple((slot, ("recursion", "block")) for slot in core) + others
    grid = dataclasses.replace(grid, axes=axes, tables=tables)
    return dataclasses.replace(config, grid=grid), {**params, "core": core}


def tied(config, grads):
    """Returns the gradient of the tied model: the sum over the copies of each entry."""
    specs = model.specs(config)["core"]

    def add_up(slot):
        table = np.array(config.grid.table_of(slot))
        is_entry = np.arange(table.max() + 1)[:, None, None] == table
        add = lambda copies: np.einsum("erk,rk...->e...", is_entry, np.asarray(copies))
        return jax.tree.map(lambda g, s: add(g).reshape(s.shape), grads["core"][slot], specs[slot])

    return {**grads, "core": {slot: add_up(slot) for slot in specs}}
