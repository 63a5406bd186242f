"""A tied model as untied copies of its weights, and back."""

import dataclasses
from typing import Any

import jax
import numpy as np

from recursia import model
from recursia.architecture import Model
from recursia.params import Params, at
from recursia.sharing import key_banks
from recursia.sharing.schedule import KEYS, Schedule


def users(plan: Schedule, bank: str) -> np.ndarray:
    """Returns the steps that have a copy of a bank's entry: for keys, those that make some."""
    return np.unique(plan.owners) if bank.endswith(KEYS) else np.arange(plan.num_steps)


def by_bank(config: Model, core: Params) -> dict[str, Any]:
    """Returns the trees of a core by bank."""
    split = [key_banks.split(slot, tree, config.key_weights) for slot, tree in core.items()]
    return {bank: tree for banks in split for bank, tree in banks.items()}


def untied(config: Model, params: Params) -> tuple[Model, Params]:
    """Returns the model whose steps all have weights of their own, with these values in them."""
    plan, banks = config.schedule, by_bank(config, params["core"])
    entries = lambda bank: plan.entry(bank)[users(plan, bank)].reshape(-1)
    copies = {bank: at(tree, entries(bank)) for bank, tree in banks.items()}
    core = key_banks.join(copies)
    own = lambda slot, table: "recursion+block" if slot in core else table
    varies = tuple((slot, own(slot, table)) for slot, table in plan.entries)
    return dataclasses.replace(config, varies=varies), {**params, "core": core}


def tied(config: Model, grads: Params) -> Params:
    """Returns the gradient of the tied model: the sum over the copies of each entry."""
    plan, specs = config.schedule, by_bank(config, model.specs(config)["core"])

    def add_up(bank: str, copies: Any) -> Any:
        entries = plan.entry(bank)[users(plan, bank)].reshape(-1)
        is_entry = np.arange(plan.size(bank))[:, None] == entries
        add = lambda copies: np.einsum("en,n...->e...", is_entry, np.asarray(copies))
        return jax.tree.map(lambda g, s: add(g).reshape(s.shape), copies, specs[bank])

    banks = by_bank(config, grads["core"])
    return {
        **grads,
        "core": key_banks.join({bank: add_up(bank, tree) for bank, tree in banks.items()}),
    }
