"""A tied model as untied copies of its weights, and back."""

import dataclasses
import functools
from typing import Any

import jax

from recursia import model, params
from recursia.architecture import Model
from recursia.params import Params, at
from recursia.sharing import entries, key_banks


def by_bank(config: Model, core: Params) -> dict[str, Any]:
    """Returns the trees of a core by bank."""
    split = [key_banks.split(slot, tree, config.key_weights) for slot, tree in core.items()]
    return {bank: tree for banks in split for bank, tree in banks.items()}


def untied(config: Model, weights: Params) -> tuple[Model, Params]:
    """Returns the model whose steps all have weights of their own, with these values in them."""
    plan, core = config.schedule, weights["core"]
    own = lambda slot, table: "recursion+block" if slot in core else table
    varies = tuple((slot, own(slot, table)) for slot, table in plan.entries)
    free = dataclasses.replace(config, varies=varies)
    return free, {**weights, "core": _copies(config, free, core)}


def _copies(config: Model, free: Model, core: Params) -> Params:
    """Returns for each step a copy of the entries that it uses, as wide as the step."""
    plan, banks = config.schedule, by_bank(config, core)
    numbers = lambda bank: plan.entry(bank)[plan.users(bank)].reshape(-1)
    copies = key_banks.join({bank: at(tree, numbers(bank)) for bank, tree in banks.items()})
    return entries.fitted(model.specs(free)["core"], copies) if plan.shapes else copies


def tied(config: Model, free: Model, grads: Params) -> Params:
    """Returns the gradient of the tied model: the sum over the copies of each entry.

    Args:
      config: the tied model.
      free: that of the copies.
      grads: of the copies.
    """
    core = params.abstract(model.specs(config)["core"])
    sum_up = jax.linear_transpose(functools.partial(_copies, config, free), core)
    return {**grads, "core": sum_up(grads["core"])[0]}
