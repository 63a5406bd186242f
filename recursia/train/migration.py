"""Sharing that changes in training: a state is carried from one plan of sharing to another.

Early phases may tie steps that the model itself unties (`train.ties`): a schedule of plans that is
known ahead, instead of the learned one of Dynamic Layer Tying (Hay & Wolf 2024, arXiv 2401.12819).
A step that is untied goes on from a copy of the weights, and of the optimizer's moments, that it
used until then.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from recursia.architecture import Model
from recursia.params import Params, at
from recursia.sharing import key_banks
from recursia.sharing.schedule import KEYS, Schedule
from recursia.train.placement import State
from recursia.train.step import Trainer


def migrate(params: Params, opt_state: Any, old: Model, new: Model) -> tuple[Params, Any]:
    """Returns parameters and optimizer state of a model whose steps share weights otherwise.

    An entry of a bank becomes what the first step that uses it used before; so do its moments.
    Nothing else changes. A step that is untied computes what it computed before; where steps are
    tied, the first keeps its weights.

    Args:
      params: of `old`, by section.
      opt_state: an optax state; trees in it with the sections of `params` hold moments.
      old: the model before.
      new: the same model with other tables of sharing.

    Raises:
      ValueError: if the models differ in more than that.
    """
    if dataclasses.replace(new, varies=old.varies) != old:
        raise ValueError("migrate: the models differ in more than `varies`; take the same model")
    is_like = lambda tree: isinstance(tree, Mapping) and tree.keys() == params.keys()
    move = lambda tree: {**tree, "core": _core(tree["core"], old, new)} if is_like(tree) else tree
    return move(params), jax.tree.map(move, opt_state, is_leaf=is_like)


def _core(core: Params, old: Model, new: Model) -> Params:
    plans = old.schedule, new.schedule

    def moved(slot: str, tree: Any) -> Any:
        banks = key_banks.split(slot, tree, old.key_weights)
        return key_banks.join({name: at(b, _origins(*plans, name)) for name, b in banks.items()})

    changes = lambda slot: (plans[0].entry(slot) != plans[1].entry(slot)).any()
    return {s: moved(s, tree)[s] if changes(s) else tree for s, tree in core.items()}


def _origins(old: Schedule, new: Schedule, bank: str) -> Int[np.ndarray, "E"]:
    """Returns for each entry of a bank the old entry of the first step in the walk that uses it."""
    steps = new.steps
    users = steps[np.isin(steps, new.owners)] if bank.endswith(KEYS) else steps
    _, first = np.unique(new.entry(bank)[users], return_index=True)
    return old.entry(bank)[users[first]]


def moved(state: State, old: Trainer, new: Trainer) -> State:
    """Returns the state of one trainer as another's, sharded as that one shards it."""
    return state if new.model == old.model else _program(old, new)(state)


@functools.lru_cache(maxsize=4)
def _program(old: Trainer, new: Trainer) -> Callable[[State], State]:
    def run(state: State) -> State:
        return State(state.step, *migrate(state.params, state.opt_state, old.model, new.model))

    return jax.jit(run, out_shardings=new.state_shardings)
