"""Reports of blocks: states by layer, and losses and metrics summed over uses of a bank entry."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recursia import params as parameters
from recursia.architecture import Model
from recursia.depth.policy import Aux
from recursia.layers.branch import STATES, Report


def by_layer(config: Model, reports: tuple[Report, ...]) -> tuple[Array, list[Report]]:
    """Returns the states after each layer that reports of the stacks hold, and the others."""
    order = np.arange(config.ends["prelude"]), config.schedule.steps, np.arange(config.ends["coda"])
    flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
    states = [flat(r[STATES])[o] for r, o in zip(reports, order, strict=True) if STATES in r]
    others = [{slot: tree for slot, tree in r.items() if slot != STATES} for r in reports]
    return jnp.concatenate(states), others


def summed(aux: Aux, before: Report, after: Report, config: Model) -> Aux:
    """Adds the losses and metrics of the blocks' reports, summed over the uses of each bank entry.

    A loop that stops early returns no reports: nothing is added.
    """
    if not aux.report:
        return aux

    def by_entry(slot: str, leaf: Array) -> Array:
        entry = config.schedule.entry(slot)
        flat = leaf.reshape(-1, *leaf.shape[2:])
        return jax.ops.segment_sum(flat, entry, config.schedule.size(slot))

    def joined(slot: str, tree: Any) -> Any:
        summed = jax.tree.map(functools.partial(by_entry, slot), tree)
        ends = [parameters.at(end[slot], 0) for end in (before, after) if end]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), summed, *ends)

    reports = {slot: joined(slot, tree) for slot, tree in aux.report.items()}
    losses, metrics = config.block.losses(reports)
    return dataclasses.replace(
        aux, losses={**aux.losses, **losses}, metrics={**aux.metrics, **metrics}
    )
