"""A tied model as untied copies of its weights, and back."""

import dataclasses

import jax
import numpy as np

from recursia import model
from recursia.params import at


def untied(config, params):
    """Returns the model whose steps all have weights of their own, with these values in them."""
    plan = config.schedule
    core = {slot: at(bank, plan.entry(slot)) for slot, bank in params["core"].items()}
    own = lambda slot, table: "recursion+block" if slot in core else table
    varies = tuple((slot, own(slot, table)) for slot, table in plan.entries)
    return dataclasses.replace(config, varies=varies), {**params, "core": core}


def tied(config, grads):
    """Returns the gradient of the tied model: the sum over the copies of each entry."""
    specs = model.specs(config)["core"]

    def add_up(slot):
        entries = config.schedule.entry(slot)
        is_entry = np.arange(config.schedule.size(slot))[:, None] == entries
        add = lambda copies: np.einsum("en,n...->e...", is_entry, np.asarray(copies))
        return jax.tree.map(lambda g, s: add(g).reshape(s.shape), grads["core"][slot], specs[slot])

    return {**grads, "core": {slot: add_up(slot) for slot in specs}}
