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

    A loop that stops early returns no reports: nothing is added for the branches of its blocks.
    """
    reports = {"core": aux.report, "prelude": before, "coda": after}

    def by_entry(slot: str, leaf: Array) -> Array:
        entry = config.schedule.entry(slot)
        flat = leaf.reshape(-1, *leaf.shape[2:])
        return jax.ops.segment_sum(flat, entry, config.schedule.size(slot))

    def of_stack(name: str, slot: str) -> Any:
        tree = reports[name][slot]
        of_core = functools.partial(by_entry, slot)
        return jax.tree.map(of_core, tree) if name == "core" else parameters.at(tree, 0)

    def joined(slot: str, stacks: tuple[str, ...]) -> Any:
        return jax.tree.map(lambda *s: jnp.concatenate(s), *(of_stack(n, slot) for n in stacks))

    losses, metrics = dict(aux.losses), dict(aux.metrics)
    for branch, stacks, prefix in config.branches:
        slots = [slot for slot in reports[stacks[0]] if slot in branch.slots]
        if not slots:
            continue
        added, seen = branch.losses({slot: joined(slot, stacks) for slot in slots})
        of_end = {name: losses[name] + loss for name, loss in added.items() if name in losses}
        losses |= added | (of_end if prefix else {})
        metrics |= {f"{prefix}{name}": metric for name, metric in seen.items()}
    return dataclasses.replace(aux, losses=losses, metrics=metrics)
